"""Names and where they come from: built-in tables, entry points, and plugins loaded on request.

Nothing is imported before it is asked for, so that the command line can list every name without loading torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from routelab.core.code_digest import read_module, source_files
from routelab.core.errors import PluginError, PluginWarning, UsageError, first_line, unknown
from routelab.core.former_names import former_import
from routelab.core.plugins import FILE_MODULE, docstring_in, loading, locate

if TYPE_CHECKING:
    pass

T = TypeVar("T")
Decorated = TypeVar("Decorated")

BUILT_IN = "built in"


@dataclass(frozen=True)
class Entry:
    """One registered name: where it comes from, and either the object or the "module:attribute" that holds it.

    installed: it is an entry point of a distribution. checked: it has been held to its registry's contract. clash: the
    sentence that says who else claims the name.
    """

    name: str
    origin: str
    target: str
    value: Any = None
    installed: bool = False
    checked: bool = False
    clash: str | None = None

    @property
    def package(self) -> str:
        """The top-level module that the target lies in."""
        return self.target.partition(":")[0].partition(".")[0]


class Registry(Generic[T]):
    """A table of names for one kind of thing ("router", "backbone", ...).

    kind: the word that errors use. group: the entry-point group of plugins. builtin: name -> "module:attribute". contract:
    "module:function" of a function that takes a plugin's object and raises ValueError, naming the rule that it breaks.

    Of two plugins that claim a name, one that is loaded on request is refused; where both are installed the name cannot be
    used until one of them is gone. A plugin never replaces what is built in.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], contract: str | None = None) -> None:
        self.kind, self.group, self.contract = kind, group, contract
        self._entries = {name: Entry(name, BUILT_IN, target) for name, target in builtin.items()}
        self._entry_points_read = False

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """A decorator that adds a class, function or object under `name`."""

        def add(value: Decorated) -> Decorated:
            self._read_entry_points()
            # An object that is neither class nor function does not know where it was made.
            named = isinstance(value, type) or inspect.isroutine(value)
            module = value.__module__ if named else sys._getframe(1).f_globals.get("__name__", "?")
            target = f"{module}:{getattr(value, '__qualname__', name)}"
            self._add(Entry(name, loading.get() or f"module {module}", target, value))
            return value

        return add

    def names(self) -> list[str]:
        """Every name, sorted."""
        self._read_entry_points()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._read_entry_points()
        return name in self._entries

    def origin(self, name: str) -> str:
        """Where the name comes from: "built in", a distribution, or the plugin's file or module."""
        return self._entry(name).origin

    def title(self, name: str) -> str:
        """The name with its kind, and its origin if it is a plugin's: "router 'mine' (my-idea 0.1.0)"."""
        origin = self.origin(name)
        return f"{self.kind} {name!r}" + ("" if origin == BUILT_IN else f" ({origin})")

    def title_of(self, value: Any) -> str:
        """As `title`, of a registered class or object; of one that is not registered, its own name."""
        for entry in self._entries.values():
            if entry.value is value:
                return self.title(entry.name)
        return f"{self.kind} {getattr(value, '__name__', type(value).__name__)}"

    def get(self, name: str) -> T:
        """The registered object; UsageError with the nearest match if there is none.

        PluginError if it is a plugin's and cannot be imported, breaks the contract, or shares its name with another.
        """
        entry = self._entry(name)
        if entry.clash:
            raise PluginError(entry.clash)
        if entry.value is None:
            value = self._import(entry)
            # The import may have registered it, under the target that it has inside its package.
            entry = replace(self._entries[name], value=value)
        if not entry.checked and entry.origin != BUILT_IN:
            self._check(entry)
        self._entries[name] = replace(entry, checked=True)
        return cast(T, entry.value)

    def source(self, name: str) -> Path | None:
        """The file that defines the name, if there is one. Nothing is imported."""
        return locate(self.module(name))

    def module(self, name: str) -> str:
        """Return the module that defines the name. Nothing is imported."""
        return self._entry(name).target.partition(":")[0]

    def sources(self, name: str) -> list[Path]:
        """Return the files of the plugin that defines the name: its file with the modules below its folder that it
        imports, or all files of its package. Nothing is imported.

        Returns:
            Paths in sorted order; empty for what is built in, whose code is known by its module.
        """
        path, entry = self.source(name), self._entry(name)
        if path is None or entry.origin == BUILT_IN:
            return []
        top = locate(entry.package)
        return _with_helpers(path) if top is None or top.name != "__init__.py" else list(source_files(top.parent))

    def summary(self, name: str) -> str:
        """The first line of the docstring, read without importing the module."""
        entry = self._entry(name)
        if entry.value is not None and (isinstance(entry.value, type) or inspect.isroutine(entry.value)):
            text = inspect.getdoc(entry.value) or ""
        else:
            try:
                path = self.source(name)
                tree = ast.parse(path.read_text(encoding="utf-8")) if path else ast.Module([], [])
            except (OSError, SyntaxError, ValueError):
                return ""
            module, _, attribute = entry.target.partition(":")
            # An object that was registered by a call is known by the variable that holds it.
            held = vars(sys.modules[module]).items() if entry.value is not None and module in sys.modules else ()
            text = docstring_in(tree, next((key for key, value in held if value is entry.value), attribute))
        return text.strip().split("\n")[0]

    def problem(self, name: str) -> str | None:
        """Why a plugin's name cannot be used, which is also a PluginWarning; None if it can, and for what is built in."""
        if self.origin(name) == BUILT_IN:
            return None
        try:
            self.get(name)
        except PluginError as error:
            if not self._entry(name).clash:
                warnings.warn(str(error), PluginWarning, stacklevel=2)
            return str(error)
        return None

    def _import(self, entry: Entry) -> Any:
        module, _, attribute = entry.target.partition(":")
        token = loading.set(None if entry.origin == BUILT_IN else entry.origin)
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except (Exception, SystemExit) as error:
            if entry.origin == BUILT_IN:
                raise
            former = former_import(error)
            if former is not None:
                raise PluginError(f"{self.title(entry.name)} {former}") from error
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise PluginError(f"{self.title(entry.name)} cannot be imported: {reason}") from error
        finally:
            loading.reset(token)
        return value

    def _check(self, entry: Entry) -> None:
        if self.contract is None:
            return
        module, _, function = self.contract.partition(":")
        try:
            getattr(importlib.import_module(module), function)(entry.value)
        except ValueError as error:
            raise PluginError(f"{self.title(entry.name)} broke the contract: {error}") from None

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self._read_entry_points()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def _add(self, entry: Entry) -> None:
        old = self._entries.get(entry.name)
        if old is None:
            self._entries[entry.name] = entry
            return
        if _same(old, entry):
            known = old if old.installed else entry
            self._entries[entry.name] = replace(entry, origin=known.origin, installed=known.installed or entry.installed,
                                                value=old.value if entry.value is None else entry.value, clash=old.clash)  # fmt: skip
            return
        clash = f"{self.kind} {entry.name!r} is defined twice, by {old.origin} and by {entry.origin}; rename one of them"
        if not entry.installed:
            raise UsageError(clash)
        if old.origin == BUILT_IN:
            clash += ", or uninstall the plugin, which is left out"
        else:
            self._entries[entry.name] = replace(old, origin=f"{old.origin} and {entry.origin}", clash=clash)
        warnings.warn(clash, PluginWarning, stacklevel=2)

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for point in sorted(entry_points(group=self.group), key=_origin):
            self._add(Entry(point.name, _origin(point), f"{point.module}:{point.attr}", installed=True))


def _with_helpers(plugin: Path) -> list[Path]:
    """Return a plugin's file and the modules below its folder that it imports, directly or through others, in sorted order."""
    files, pending = {plugin}, [plugin]
    # The folder of an installed plugin holds every other distribution too.
    while pending and "site-packages" not in plugin.parts:
        module = pending.pop()
        for target, attribute in read_module(module, module.stem).imports:
            for name in (target, f"{target}.{attribute}"):
                is_own = name.partition(".")[0] not in ("", "routelab") and not name.endswith(".")
                helper = locate(name) if is_own else None
                if helper is not None and helper.suffix == ".py" and plugin.parent in helper.parents and helper not in files:
                    files.add(helper)
                    pending.append(helper)
    return sorted(files)


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _same(old: Entry, new: Entry) -> bool:
    """Whether two entries of one name are one definition: a module reloaded, a distribution found in two folders of the
    path, or a package's entry point beside the decorator inside it, which may lie deeper than the entry point says."""
    if old.target == new.target:
        return True
    one_is_a_name = (old.value is None) != (new.value is None)
    return one_is_a_name and old.origin != BUILT_IN and old.package == new.package


@contextmanager
def only_for_now(registry: Registry[Any]) -> Iterator[None]:
    """Forget, on leaving, whatever was registered inside, and the plugins' files that were loaded. For tests."""
    before, modules = dict(registry._entries), set(sys.modules)
    try:
        yield
    finally:
        registry._entries = before
        for name in set(sys.modules) - modules:
            if name.startswith(FILE_MODULE):
                del sys.modules[name]
