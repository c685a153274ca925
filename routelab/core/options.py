"""Options of routers, arms, backbones and data sets: what a constructor takes, and whether a value is of the right type."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from routelab.core.errors import UsageError, unknown


def option_names(router: Callable[..., Any], first: int = 2) -> list[str] | None:
    """Names of the constructor's options after its first arguments; None if it takes any keyword."""
    parameters = list(inspect.signature(router).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters[first:]]


def check_options(what: str, target: Callable[..., Any], options: Mapping[str, Any], first: int = 2, section: str = "") -> None:
    """UsageError for an option that `target` does not take, or whose value is not of the annotated type.

    first: how many arguments are not options. section: the part of the configuration that they stand in. Checked are whole
    numbers, numbers, truth values and text, alone or with None; values of other types are left to `target`.
    """
    allowed = option_names(target, first)
    hints = _hints(target)
    for key, value in options.items():
        if allowed is not None and key not in allowed:
            raise unknown(f"option of {what}", f"{section}{key}", [f"{section}{name}" for name in allowed])
        hint = hints.get(key)
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        fixed = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        kinds = [part for part in parts if get_origin(part) is not Literal]
        if not set(kinds) & set(_WORDS) or not set(kinds) <= {*_WORDS, NoneType}:
            continue
        if value not in fixed and type(value) not in kinds and not (float in kinds and type(value) is int):
            words = [_WORDS[kind] for kind in kinds if kind is not NoneType]
            words += map(repr, fixed)
            words += ["null"] if NoneType in kinds else []
            raise UsageError(f"{what}: {key} is {value!r}; it must be {' or '.join(words)}")


@functools.lru_cache(maxsize=256)
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a constructor's arguments. The result is cached, as every annotation is a string to compile."""
    try:
        return get_type_hints(cast(Any, target).__init__ if isinstance(target, type) else target)
    except Exception:
        # A plugin's annotations need not be importable.
        return {}


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
