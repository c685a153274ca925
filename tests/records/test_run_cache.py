"""Addresses of runs follow the code that they import, and no other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import routelab
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_spec import RunSpec
from routelab.core.code_digest import CodeIndex, package_locator, read_module, source_files
from routelab.records import run_cache
from routelab.records.run_cache import cell_key

ARMS = {
    "dense": (),
    "switch": (),
    "top2": ("experts.kind=swiglu",),
    "bagging": (),
    "gated_mixture": (),
    "topk": ("data=domains",),
    "random_forest": (),
}
ALL = set(ARMS)

CHANGED = {
    "routelab.routers.switch": {"switch"},
    "routelab.routers.top2": {"top2"},
    "routelab.routers.topk": {"topk", "top2"},
    "routelab.routers.sinkhorn": set(),
    "routelab.routers.base": ALL,
    "routelab.routers.router_registry": ALL,
    "routelab.routers.router_metadata": set(),
    "routelab.experts.moe_layer": ALL,
    "routelab.experts.kernels.fused_cpu_kernel": ALL,
    "routelab.experts.offload": set(),
    "routelab.baselines.ensembles.bagging": {"bagging"},
    "routelab.baselines.ensembles.ensemble_base": {"bagging", "gated_mixture"},
    "routelab.baselines.classic_moe.gated_mixture": {"gated_mixture"},
    "routelab.baselines.sklearn_baselines": {"random_forest"},
    "routelab.baselines.specialists": set(),
    "routelab.backbones.vit": ALL - {"topk"},
    "routelab.backbones.decoder": {"topk"},
    "routelab.backbones.linear": {"gated_mixture"},
    "routelab.data.digits": ALL - {"topk"},
    "routelab.data.domains": {"topk"},
    "routelab.data.task": ALL,
    "routelab.core.seeds": ALL,
    "routelab.core.errors": ALL,
    "routelab.config.run_options": ALL,
    "routelab.config.schema": set(),
    "routelab.config.resolve": set(),
    "routelab.training.run": ALL,
    "routelab.training.lightning_module": ALL,
    "routelab.training.optimizer": ALL,
    "routelab.records.json_io": set(),
    "routelab.records.run_cache": set(),
    "routelab.core.intervals": set(),
}
"""Module -> the arms whose addresses change with an edit of it."""

NO_EFFECT = ("analysis", "cli", "comparison", "conformance", "parity", "presets", "report", "scaffold", "sweeps", "tracking")
"""Packages that no run imports."""


def specs():
    for arm, overrides in ARMS.items():
        config = resolve([f"arms=[{arm}]", "tracking.uri=null", *overrides]).config
        yield arm, RunSpec.of(config, arm_choices(config, [arm])[0], 0)


def module_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(["routelab", *(parts[:-1] if parts[-1] == "__init__" else parts)])


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Copy the source tree, and compute the addresses of runs from the copy."""
    root = tmp_path / "routelab"
    shutil.copytree(Path(routelab.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    index = CodeIndex(package_locator("routelab", root))
    monkeypatch.setattr(run_cache, "code_index", lambda: index)
    return root, index


def test_an_edit_of_each_module_changes_the_addresses_of_the_runs_that_import_it(tree):
    root, index = tree
    runs = dict(specs())
    before = {arm: cell_key(spec, "data") for arm, spec in runs.items()}
    assert len(set(before.values())) == len(runs)
    changed = {}
    for path in source_files(root):
        name = module_of(path, root)
        source, original = path.read_text(encoding="utf-8"), index.module(name)
        path.write_text(source + "\n# A comment.\n", encoding="utf-8")
        assert read_module(path, name) == original
        path.write_text(source + "\n_EDITED = 1\n", encoding="utf-8")
        index.modules[name] = read_module(path, name)
        changed[name] = {arm for arm, spec in runs.items() if cell_key(spec, "data") != before[arm]}
        path.write_text(source, encoding="utf-8")
        index.modules[name] = original
    assert {name: changed[name] for name in CHANGED} == CHANGED
    without_effect = {name for name in changed if name.split(".")[1:2] and name.split(".")[1] in NO_EFFECT}
    assert len(without_effect) > 80
    assert {name: changed[name] for name in without_effect if changed[name]} == {}
    # The address of every run depends on most modules that some run imports.
    assert sum(arms == ALL for arms in changed.values()) > 40


@pytest.mark.long
def test_a_run_loads_no_module_outside_its_address():
    """Train arm after arm in a new process. The modules that a run loads after its configuration are in its static closure.

    Data sets are left out: the digest of their content is in the address.
    """
    small = ["tracking.uri=null", "backbone.depth=1", "backbone.d_model=16", "budget.steps=1", "trainer.checks=1"]
    cases = {arm: [f"arms=[{arm}]", *small, *ARMS[arm]] for arm in ("switch", "gated_mixture", "topk")}
    code = (
        "import json, sys\nimport torch\ntorch.set_num_threads(1)\n"
        "from routelab.config.arm_grid import arm_choices\n"
        "from routelab.config.resolve import resolve\n"
        "from routelab.config.run_spec import RunSpec\n"
        f"cases = {cases!r}\n"
        "configs = {arm: resolve(words).config for arm, words in cases.items()}\n"
        "specs = {arm: RunSpec.of(config, arm_choices(config, [arm])[0], 0) for arm, config in configs.items()}\n"
        "loaded = {}\n"
        "for arm, spec in specs.items():\n"
        "    before = set(sys.modules)\n"
        "    from routelab.training.run import execute\n"
        "    assert execute(spec).record['status'] == 'ok'\n"
        "    loaded[arm] = [name for name in sys.modules if name.startswith('routelab') and name not in before]\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "routelab.training.run" in loaded["switch"]
    for arm, words in cases.items():
        config = resolve(words).config
        address = dict(run_cache._code_of(RunSpec.of(config, arm_choices(config, [arm])[0], 0)))
        assert {name for name in loaded[arm] if not name.startswith("routelab.data.")} - set(address) == set()
