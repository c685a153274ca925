"""Which experiments there are, and whether a configuration names one; free of heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

KEY = "reproduce"
"""A configuration that holds this key names an experiment instead of the arms of a comparison."""

REPRODUCTIONS = {"vowels1991": "routelab.reproductions.vowels1991"}


def reproduction_of(words: Sequence[str]) -> ModuleType | None:
    """The module of the experiment that the configuration file in front of `words` names; None if there is no such file."""
    if not words or "=" in words[0]:
        return None
    try:
        text = Path(words[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not any(line.startswith(f"{KEY}:") for line in text.splitlines()):
        return None
    import yaml

    from routelab.core.errors import UsageError, unknown

    try:
        name = str(yaml.safe_load(text)[KEY])
    except yaml.YAMLError:
        raise UsageError(f"configuration file {words[0]!r} is not valid YAML") from None
    if name not in REPRODUCTIONS:
        raise unknown(KEY, name, REPRODUCTIONS)
    return import_module(REPRODUCTIONS[name])
