"""Modules of plugins: where they lie, what their docstrings say without importing them, and loading one that the user names."""

from __future__ import annotations

import ast
import contextvars
import hashlib
import importlib
import importlib.util
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path

from routelab.core.errors import UsageError, first_line
from routelab.core.former_names import former_import

FILE_MODULE = "routelab_plugin_"
"""How the modules of plugins that are files are called, with the stem and a digest of the path behind it."""

loading: contextvars.ContextVar[str | None] = contextvars.ContextVar("routelab_plugin_being_loaded", default=None)
"""Origin of the plugin that is being imported: what registers itself meanwhile comes from there."""


def locate(module: str) -> Path | None:
    """The file of a module; None if there is none. Unlike `importlib.util.find_spec`, it does not import parent packages,
    which may be slow or broken."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded)
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def docstring_in(tree: ast.Module, name: str) -> str:
    """The docstring of a class or function, or the string that follows the assignment of a constant."""
    for here, after in zip(tree.body, [*tree.body[1:], None], strict=False):
        if isinstance(here, (ast.ClassDef, ast.FunctionDef)) and here.name == name:
            return ast.get_docstring(here) or ""
        named = isinstance(here, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in here.targets)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return str(after.value.value)
    return ""


def load_plugin(spec: str) -> None:
    """Import a plugin that the user asked for: a path to a .py file, or a module name. Failure is a UsageError."""
    token = loading.set(f"plugin {spec}")
    try:
        if spec.endswith(".py") or "/" in spec:
            path = Path(spec).expanduser().resolve()
            if path.is_dir():
                raise UsageError(f"plugin {spec!r} is a folder; name a .py file, or a module")
            if not path.is_file():
                raise UsageError(f"plugin {spec!r}: there is no such file")
            # Named by its path, so that two plugins called plugin.py do not collide and a reload is recognised.
            name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
            if name in sys.modules:
                return
            module_spec = importlib.util.spec_from_file_location(name, path)
            if module_spec is None or module_spec.loader is None:
                raise UsageError(f"plugin {spec!r}: not a Python file")
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[name] = module
            try:
                module_spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        elif getattr(importlib.import_module(spec), "__file__", None) is None:
            raise UsageError(f"plugin {spec!r} is a folder without code; name a .py file, or a module")
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        former = former_import(error, spec)
        if former is not None:
            raise UsageError(f"plugin {spec!r} {former}") from error
        where = ""
        if isinstance(error, SyntaxError):
            where = f" (line {error.lineno})"
        elif isinstance(error, ModuleNotFoundError) and error.name == spec and Path(f"{spec}.py").is_file():
            where = f"; a file is given with its ending: {spec}.py"
        elif error.__traceback__ is not None:
            # Not inspect.getinnerframes, which raises TypeError once a package without a file has been imported.
            frames = traceback.extract_tb(error.__traceback__)
            inside = [frame.lineno for frame in frames if frame.filename.endswith(Path(spec).name)]
            where = f" (line {inside[-1]})" if inside else ""
        message = error.msg if isinstance(error, SyntaxError) else first_line(error)
        raise UsageError(f"plugin {spec!r} failed to import: {type(error).__name__}: {message}{where}") from error
    finally:
        loading.reset(token)
