"""Digests of the code that a run imports, found by reading source files without importing them.

A module's digest covers its syntax tree without comments, docstrings and line numbers. The closure of a module is everything
that it imports, at the top of a file or inside a function, directly or through others. Imports under `TYPE_CHECKING` do not
run. They count only in a package that exports names lazily and lists them there (`from routelab import Router`).
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LAZY_EXPORT = "lazy"
"""Function whose result a package binds to `__getattr__`, see `routelab.core.lazy_imports`."""

NAME_TABLE = "Registry"
"""Class whose instances map names to modules. The table is not part of a digest: the module that a name stands for has a
digest of its own, so a new entry leaves the keys of all other entries valid."""


@dataclass(frozen=True)
class SourceModule:
    """One source file: its digest, the imports that run, and the names that it exports lazily.

    Attributes:
        digest: hexadecimal SHA-256 of the syntax tree.
        imports: pairs of a module and a name in it; the name is "" for `import module`.
        exports: lazily exported name -> the module that defines it.
    """

    digest: str
    imports: frozenset[tuple[str, str]]
    exports: dict[str, str]


@dataclass
class CodeIndex:
    """Modules of some top-level packages, read from their source files on first use.

    Args:
        locate: returns the source file of a module, or None for a module that the closure leaves out.
        modules: modules that have been read.
    """

    locate: Callable[[str], Path | None]
    modules: dict[str, SourceModule | None] = field(default_factory=dict)

    def module(self, name: str) -> SourceModule | None:
        """Return the module called `name`, or None if `locate` returns None."""
        if name not in self.modules:
            path = self.locate(name)
            self.modules[name] = None if path is None else read_module(path, name)
        return self.modules[name]

    def closure(self, names: Iterable[str], imports: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
        """Return the digests of some modules and of every module that they import.

        Args:
            names: modules to start from.
            imports: further pairs of a module and a name in it, as in `SourceModule.imports`.

        Returns:
            Module name -> digest, in sorted order.
        """
        pending, digests = [*names, *(name for pair in imports for name in self._targets(*pair))], dict[str, str]()
        while pending:
            name = pending.pop()
            module = None if name in digests else self.module(name)
            if module is None:
                continue
            digests[name] = module.digest
            # The import of a module runs the packages that contain it.
            parent = name.rpartition(".")[0]
            pending += [parent] if parent else []
            for target, attribute in module.imports:
                pending += self._targets(target, attribute)
        return dict(sorted(digests.items()))

    def _targets(self, target: str, attribute: str) -> list[str]:
        """Return the modules that `from target import attribute` runs."""
        if not attribute:
            return [target]
        if self.module(f"{target}.{attribute}") is not None:
            return [f"{target}.{attribute}"]
        package = self.module(target)
        exported = None if package is None else package.exports.get(attribute)
        return [target] if exported is None else [target, exported]


def package_locator(package: str, folder: Path) -> Callable[[str], Path | None]:
    """Return a function from the name of a module to its source file in the folder of one package.

    Args:
        package: name of the package.
        folder: folder that holds its modules; symbolic links in it are followed.

    Returns:
        A function for `CodeIndex`. It returns None for modules of other packages and for names that are not modules.
    """

    def locate(name: str) -> Path | None:
        top, *rest = name.split(".")
        if top != package:
            return None
        base = folder.joinpath(*rest)
        candidates = (base / "__init__.py", base.with_name(f"{base.name}.py")) if rest else (base / "__init__.py",)
        return next((path for path in candidates if path.is_file()), None)

    return locate


def read_module(path: Path, name: str) -> SourceModule:
    """Read a source file.

    Args:
        path: the file.
        name: dotted name of the module, to which relative imports refer.

    Returns:
        Its digest, imports and lazy exports. A file with a syntax error has the digest of its bytes and no imports.
    """
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return SourceModule(hashlib.sha256(content).hexdigest(), frozenset(), {})
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    running, typing_only = _imports(tree, package)
    is_lazy = any(isinstance(node, ast.Call) and _called(node) == LAZY_EXPORT for node in ast.walk(tree))
    exports = {attribute: target for target, attribute in typing_only if attribute} if is_lazy else {}
    return SourceModule(tree_digest(tree), frozenset(running), exports)


def tree_digest(tree: ast.Module) -> str:
    """Return the hexadecimal SHA-256 of a syntax tree without docstrings, line numbers and the tables of registries."""
    return hashlib.sha256(ast.dump(_Stripped().visit(tree)).encode()).hexdigest()


class _Stripped(ast.NodeTransformer):
    """Transformer that removes code without effect on results: strings used as statements, and tables of names."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _called(node) == NAME_TABLE:
            node.args = [argument for argument in node.args if not isinstance(argument, ast.Dict)]
        return self.generic_visit(node)


def _imports(tree: ast.Module, package: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the imports that run, and those for type checkers only, as pairs of a module and a name."""
    running: set[tuple[str, str]] = set()
    typing_only: set[tuple[str, str]] = set()

    def collect(node: ast.AST, into: set[tuple[str, str]]) -> None:
        if isinstance(node, ast.Import):
            into.update((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            into.update((target, alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and _called(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                collect(statement, typing_only)
            for statement in node.orelse:
                collect(statement, into)
        else:
            for child in ast.iter_child_nodes(node):
                collect(child, into)

    collect(tree, running)
    return running, typing_only


def _called(node: ast.AST) -> str | None:
    """Return the last part of a name, of an attribute, or of a call to either."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def source_files(folder: Path) -> Iterator[Path]:
    """Yield every Python file below a folder in sorted order. Links to folders are followed, as imports follow them."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(root) / name for name in sorted(files) if name.endswith(".py"))
