"""Digests of source code: edits that change them, and the modules that an import runs."""

import ast

import pytest

from routelab.core.code_digest import CodeIndex, package_locator, read_module, source_files, tree_digest

BASE = '"""Text."""\nimport math\n\ndef area(r):\n    """Return the area."""\n    return math.pi * r * r  # a circle\n'


def digest(source):
    return tree_digest(ast.parse(source))


@pytest.mark.parametrize(
    "edited",
    [
        BASE.replace("  # a circle", ""),
        BASE.replace('"""Return the area."""', '"""Return the area of a circle."""'),
        BASE.replace('"""Text."""\n', ""),
        BASE.replace("\n\n", "\n\n\n\n"),
        BASE + '"""A string after a definition."""\n',
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(edited):
    assert edited != BASE
    assert digest(edited) == digest(BASE)


@pytest.mark.parametrize(
    "edited",
    [BASE.replace("math.pi", "3.14"), BASE.replace("r * r", "r ** 2"), BASE + "x = 'text'\n", BASE.replace("area", "disc")],
)
def test_code_counts(edited):
    assert digest(edited) != digest(BASE)


def test_a_table_of_names_does_not_count_but_its_other_arguments_do():
    first = 'R = Registry("router", "group", {"a": "pkg.a:A"}, contract="pkg:check")'
    assert digest(first.replace('"a": "pkg.a:A"', '"a": "pkg.a:A", "b": "pkg.b:B"')) == digest(first)
    assert digest(first.replace('"group"', '"other"')) != digest(first)


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nfrom pkg.tools import lazy\n"
        "if TYPE_CHECKING:\n    from pkg.inner.deep import Deep\n"
        '__getattr__, __dir__ = lazy(__name__, {"Deep": "pkg.inner.deep"})\n',
        "tools.py": "def lazy(*_):\n    return None, None\n",
        "entry.py": "from pkg import middle\n\ndef late():\n    import pkg.late_one\n    from .inner import relative\n",
        "middle.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.typed_only\nelse:\n    import pkg.other\n",
        "late_one.py": "import os\n",
        "typed_only.py": "",
        "other.py": "",
        "alone.py": "",
        "uses_export.py": "from pkg import Deep\n",
        "inner/__init__.py": "",
        "inner/relative.py": "from ..middle import nothing\n",
        "inner/deep.py": "class Deep: ...\n",
    }
    for name, text in files.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "pkg"


def closure(package, *names, **kwargs):
    return CodeIndex(package_locator("pkg", package)).closure(names, **kwargs)


def test_the_closure_holds_lazy_and_relative_imports_and_the_packages_around_them(package):
    assert list(closure(package, "pkg.entry")) == [
        "pkg", "pkg.entry", "pkg.inner", "pkg.inner.relative", "pkg.late_one", "pkg.middle", "pkg.other", "pkg.tools",
    ]  # fmt: skip


def test_a_lazily_exported_name_stands_for_its_module(package):
    assert "pkg.inner.deep" in closure(package, "pkg.uses_export")
    assert "pkg.inner.deep" in closure(package, imports=[("pkg", "Deep")])
    assert "pkg.inner.deep" not in closure(package, "pkg.entry")


def test_other_packages_are_not_followed(package):
    assert not any(name.startswith("os") for name in closure(package, "pkg.late_one"))
    assert closure(package, "elsewhere") == {}


def test_a_file_that_is_no_python_has_the_digest_of_its_bytes(tmp_path):
    (tmp_path / "one.py").write_text("def (:\n")
    (tmp_path / "two.py").write_text("def (: \n")
    one, two = (read_module(tmp_path / name, "m") for name in ("one.py", "two.py"))
    assert one.digest != two.digest
    assert one.imports == frozenset()


def test_links_to_folders_are_followed(package, tmp_path):
    (package / "linked").symlink_to(tmp_path / "target", target_is_directory=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "__init__.py").write_text("")
    (tmp_path / "target" / "part.py").write_text("x = 1\n")
    assert package / "linked" / "part.py" in list(source_files(package))
    before = closure(package, "pkg.linked.part")
    (tmp_path / "target" / "part.py").write_text("x = 2\n")
    after = closure(package, "pkg.linked.part")
    assert list(before) == list(after) == ["pkg", "pkg.linked", "pkg.linked.part", "pkg.tools"]
    assert [name for name in before if before[name] != after[name]] == ["pkg.linked.part"]
