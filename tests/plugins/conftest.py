"""Distributions as pip leaves them: modules and a dist-info folder, found by importlib.metadata on the path."""

import importlib
import sys

import pytest

from routelab.backbones.backbone_registry import BACKBONES
from routelab.baselines.baseline_registry import BASELINES
from routelab.core.registry import BUILT_IN, Registry
from routelab.data.dataset_registry import DATA
from routelab.experts.expert_registry import KINDS
from routelab.routers import base, build, router_registry
from routelab.routers.router_registry import ROUTERS

TABLES = {"routers": ROUTERS, "experts": KINDS, "backbones": BACKBONES, "baselines": BASELINES, "data": DATA}


def _write(folder, name, points, files):
    """Write a distribution NAME 1.2. points: group -> {name: "module:attribute"}. files: path -> text."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [
        line for group, each in points.items() for line in (f"[routelab.{group}]", *(f"{k} = {v}" for k, v in each.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture
def write_distribution():
    """The function that writes one into a folder, which a process of its own then has on its path."""
    return _write


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution for one test, under module names of its own."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def do(name, points, files):
        _write(tmp_path, name, points, files)
        importlib.invalidate_caches()

    yield do
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def table(monkeypatch):
    """A registry as a new process has it: built-in names only, entry points not yet read."""

    def fresh(kind):
        old = TABLES[kind]
        builtin = {name: entry.target for name, entry in old._entries.items() if entry.origin == BUILT_IN}
        new = Registry(old.kind, old.group, builtin, old.contract)
        if old is ROUTERS:
            for module in (router_registry, build, base):
                monkeypatch.setattr(module, "ROUTERS", new)
        return new

    return fresh
