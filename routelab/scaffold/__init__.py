"""Templates for `routelab new`: an installable package with one router.

The files under `router/` are templates of `string.Template`; "package" in a name stands for the package's name.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from routelab.core.errors import UsageError, unknown
from routelab.routers.router_registry import ROUTERS

KINDS = ("router",)
"""What there are templates for."""

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")


def new(kind: str, name: str, into: str | Path = ".") -> list[Path]:
    """Write the package `into`/`name`, and return its files, sorted. Nothing is left behind if that fails.

    kind: one of `KINDS`. name: letters, digits, - and _; the router and its module carry it with _ for -. UsageError for a
    name that is none, is taken by a router or a module, or whose folder is there already.
    """
    if kind not in KINDS:
        raise unknown("template", kind, KINDS)
    module = _module(name)
    folder = Path(into) / name
    if folder.exists():
        raise UsageError(
            f"name {name!r}: the folder {str(folder)!r} is there already; choose another name, or --into another folder"
        )
    words = {
        "name": name,
        "module": module,
        "title": module.replace("_", " "),
        "router": "".join(part[:1].upper() + part[1:] for part in module.split("_")) + "Router",
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that a whole package appears there at once or none does.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as place:
            written = _fill(files(__name__) / kind, Path(place) / name, words)
            shutil.move(Path(place) / name, folder)
            return sorted(folder / path.relative_to(Path(place) / name) for path in written)
    except OSError as error:
        raise UsageError(f"--into {str(into)!r} cannot be written to: {error.strerror or error}") from None


def _module(name: str) -> str:
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or not module.isidentifier():
        raise UsageError(
            f"name {name!r} must be letters, digits, - and _, begin with a letter and end with a letter or a digit, such as my_idea"
        )
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise UsageError(f"name {name!r} is a word of the Python language; choose another, such as {module}_router")
    if module in ROUTERS:
        raise UsageError(f"name {name!r} is taken by {ROUTERS.title(module)}; choose another")
    spec = importlib.util.find_spec(module)
    # Without an origin it is only a folder that happens to be on the path.
    if spec is not None and spec.origin is not None:
        raise UsageError(
            f"name {name!r} is taken by the module {module} ({spec.origin}); choose another, such as {module}_router"
        )
    return module


def _fill(template: Traversable, target: Path, words: dict[str, str]) -> list[Path]:
    """Write a template, a file or a folder, to `target`; the files written."""
    if template.is_dir():
        target.mkdir(parents=True)
        parts = [part for part in template.iterdir() if part.name != "__pycache__"]
        return [path for part in parts for path in _fill(part, target / _placed(part.name, words), words)]
    target.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    return [target]


def _placed(name: str, words: dict[str, str]) -> str:
    return name.removesuffix(".template").replace("package", words["module"])
