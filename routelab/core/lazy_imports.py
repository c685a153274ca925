"""Packages whose public names are imported on first use, so that importing the package is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from routelab.core.former_names import refuse_former_name


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose public names are imported on first use.

    Args:
        package: `__name__` of the package.
        names: Public name -> the module that defines it.

    Raises:
        ImportError: if `package` is a former name, such as "routers".
    """
    refuse_former_name(package)

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*names, *vars(sys.modules[package])})

    return get, listed
