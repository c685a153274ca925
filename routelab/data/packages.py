"""Files that lie in an installed package, found without importing it."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from routelab.core.errors import UsageError


def package_folder(module: str, wanted_by: str, install: str) -> Path:
    """The folder of an installed package; UsageError saying how to install it if it is not there."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UsageError(f"{wanted_by} comes with the package {module}, which is not installed: pip install {install}")
    return Path(found.origin).parent


def installed_version(distribution: str) -> str:
    """The version of a distribution, or "unknown"."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
