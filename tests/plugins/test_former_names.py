"""Plugins that import routers, experts, baselines or sweeps under their former names get one sentence with the new name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from routelab.cli.app import guarded
from routelab.core.errors import PluginError, UsageError
from routelab.core.former_names import FORMER_NAMES, missing_package
from routelab.core.plugins import load_plugin

CHECKOUT = Path(__file__).parents[2]
IMPORTS = ("import {}.base", "from {} import Router", "from {}.contract import Router")


@pytest.fixture(params=["checkout", "elsewhere", "folder of that name"])
def module_path(request, monkeypatch, tmp_path):
    """Set sys.path as in a process that starts in a checkout, in another folder, or in one with folders of the former names."""
    path = [entry for entry in sys.path if not any((Path(entry or ".") / name).is_dir() for name in FORMER_NAMES)]
    if request.param == "checkout":
        path.insert(0, str(CHECKOUT))
    elif request.param == "folder of that name":
        for name in FORMER_NAMES:
            (tmp_path / "current" / name).mkdir(parents=True)
        path.insert(0, str(tmp_path / "current"))
    monkeypatch.setattr(sys, "path", path)
    # An editable install of a release that had the former names finds them in any folder.
    finders = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
    monkeypatch.setattr(sys, "meta_path", finders)
    yield path
    for name in FORMER_NAMES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("statement", IMPORTS)
@pytest.mark.parametrize("name", FORMER_NAMES)
def test_a_plugin_that_is_a_file(name, statement, module_path, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"import json\n\n{statement.format(name)}\n")
    with pytest.raises(UsageError) as caught:
        load_plugin(str(plugin))
    assert str(caught.value) == f"plugin {str(plugin)!r} imports {name!r}, which is now 'routelab.{name}' (line 3)"
    assert f"{name}.base" not in sys.modules


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_a_plugin_that_is_a_module_names_the_file_with_the_import(name, module_path, tmp_path, monkeypatch):
    package = tmp_path / f"pack_of_{name}"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text(f"import importlib\nimportlib.import_module('{name}.base')\n")
    # Not syspath_prepend: at the end it would restore the list of `module_path` instead of the original one.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *module_path])
    with pytest.raises(UsageError) as caught:
        load_plugin(package.name)
    assert str(caught.value) == f"plugin {package.name!r} imports {name!r}, which is now 'routelab.{name}' (inner.py, line 2)"


def test_an_entry_point(install, table, module_path, monkeypatch):
    install("pack", {"routers": {"mine": "former_names_entry:Mine"}}, {"former_names_entry.py": "from routers import Router\n"})
    monkeypatch.setattr(sys, "path", [*module_path, *(entry for entry in sys.path if entry not in module_path)])
    with pytest.raises(PluginError) as caught:
        table("routers").get("mine")
    sentence = "router 'mine' (pack 1.2) imports 'routers', which is now 'routelab.routers' (former_names_entry.py, line 1)"
    assert str(caught.value) == sentence


def test_a_package_of_the_plugin_itself_may_have_a_former_name(tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("from sweeps import absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sweeps", raising=False)
    with pytest.raises(
        UsageError, match=r"failed to import: ImportError: cannot import name 'absent' from 'sweeps'.*\(line 1\)"
    ):
        load_plugin(str(tmp_path / "mine.py"))
    sys.modules.pop("sweeps", None)


def test_another_failure_after_a_folder_was_imported_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "folder_without_code").mkdir()
    (tmp_path / "mine.py").write_text("import folder_without_code\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"ZeroDivisionError: division by zero \(line 2\)"):
        load_plugin(str(tmp_path / "mine.py"))
    del sys.modules["folder_without_code"]


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_an_import_in_a_checkout_names_the_new_package(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=CHECKOUT,
        env=_without_python_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: import routelab.{name} instead of {name}"


def _without_python_path():
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_a_checkout_without_a_link_gets_one_sentence(capsys):
    def call():
        raise ModuleNotFoundError("No module named 'routelab.routers'", name="routelab.routers")

    assert guarded(call) == 1
    said = capsys.readouterr().err
    assert "routelab/routers' must be a symbolic link to '../routers'" in said
    assert said.count("\n") == 1
    assert missing_package(ModuleNotFoundError("", name="routelab.nosuch")) is None
    assert missing_package(ModuleNotFoundError("", name="routers")) is None
