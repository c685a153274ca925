"""Former import names of the four packages that were at the top level and are now part of routelab."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

FORMER_NAMES = {name: f"routelab.{name}" for name in ("baselines", "experts", "routers", "sweeps")}
"""Former name of a package -> its present name."""

_CORE = Path(__file__).resolve().parent


def refuse_former_name(package: str) -> None:
    """Raise ImportError if a package is being imported under its former name.

    If the current folder is a checkout, Python finds the package's folder and would load its modules under two names.

    Args:
        package: `__name__` of the package.

    Raises:
        ImportError: if `package` is a former name.
    """
    if package in FORMER_NAMES:
        raise ImportError(f"import {FORMER_NAMES[package]} instead of {package}", name=package)


def former_import(error: BaseException, plugin: str = "") -> str | None:
    """Describe the import of a package under its former name in a plugin.

    Args:
        error: Exception that the import of the plugin raised.
        plugin: The plugin as the user spells it. The text names the file with the import if the plugin is not that file.

    Returns:
        Predicate of a sentence, "imports 'routers', which is now 'routelab.routers' (line 3)"; None if the error has another cause.
    """
    if not isinstance(error, ImportError):
        return None
    former = (error.name or "").partition(".")[0]
    # A package of that name that was loaded from its own file is not part of routelab.
    if former not in FORMER_NAMES or getattr(sys.modules.get(former), "__file__", None) is not None:
        return None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _imports_for_others(frame.filename, former)]
    position = ""
    if frames:
        line, path = frames[-1].lineno, Path(frames[-1].filename)
        position = f" (line {line})" if path.name == Path(plugin).name else f" ({path.name}, line {line})"
    return f"imports {former!r}, which is now {FORMER_NAMES[former]!r}{position}"


def missing_package(error: BaseException) -> str | None:
    """Return a sentence on a checkout without one of the links routelab/routers -> ../routers and so on; None otherwise."""
    former = (error.name or "").removeprefix("routelab.") if isinstance(error, ModuleNotFoundError) else ""
    if f"routelab.{former}" != getattr(error, "name", None) or former not in FORMER_NAMES:
        return None
    link = _CORE.parent / former
    return (
        f"{str(link)!r} must be a symbolic link to '../{former}'; "
        f"`git config core.symlinks true && git checkout HEAD -- routelab/{former}` restores it (on Windows, in developer mode)"
    )


def _imports_for_others(file: str, former: str) -> bool:
    """Return True if a file of a traceback belongs to the import system or to routelab, and not to a plugin."""
    path = Path(file)
    if file.startswith("<frozen ") or file == importlib.__file__ or path.resolve().parent == _CORE:
        return True
    return path.name == "__init__.py" and path.parent.name == former
