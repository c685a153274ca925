"""On a CUDA device: what is asked of a trained mixture is answered there as on the CPU, and its clocks wait for the device."""

import copy
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from routelab.analysis.latency.dense_counterparts import EQUAL_FLOPS, MIXTURE
from routelab.analysis.latency.measure import TOKEN, WHOLE, Settings, clock
from routelab.analysis.latency.profiler import clock_of
from routelab.analysis.latency.summary_text import sentences as clock_sentences
from routelab.analysis.routing.analyze import analyze
from routelab.analysis.serving.serving_options import Options
from routelab.analysis.serving.serving_report import sentences, write_serving
from routelab.analysis.serving.simulate import serve_cost
from routelab.analysis.trained_run import open_run
from routelab.comparison.train_one import train
from routelab.experts.offload import ExpertFile, write_experts
from routelab.training.memory import Footprint

pytestmark = pytest.mark.gpu
DATA = [
    "data=domains",
    "data.domains=[python,mathematics]",
    "data.bytes_per_domain=30000",
    "data.window=32",
    "backbone=decoder",
]
SIZES = ["backbone.d_model=64", "backbone.depth=2", "backbone.heads=2", "experts.count=4", "experts.hidden=64", "match.on=none"]
ROUTERS = {
    "topk": ["router.top_k=2"],
    "relu": [],
    "soft": ["router.allow_leak=true"],
    "expert_choice": ["router.allow_leak=true"],
    "sequence": ["router.allow_leak=true", "router.whole_model=true", "experts.kind=lora"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator):
    """A short run of each router, trained on the device."""
    made = {}

    def run(router):
        if router not in made:
            folder = tmp_path_factory.mktemp(router)
            words = [*DATA, *SIZES, f"arm={router}", *ROUTERS[router], f"trainer.accelerator={accelerator}", "trainer.checks=2"]
            words += ["budget.steps=8", "tracking.uri=null", f"output={folder}/results"]
            made[router] = open_run(train(words).record["folder"], None, examples=24)
        return made[router]

    return run


def on_the_cpu(run):
    """The same run with its weights on the CPU."""
    return replace(run, arm=copy.deepcopy(run.arm).cpu())


@pytest.mark.parametrize("router", ROUTERS)
def test_analyze_finds_what_the_cpu_finds(runs, router, device):
    run = runs(router)
    assert next(run.arm.parameters()).device == device
    there, here = analyze(run), analyze(on_the_cpu(run))
    assert there["loss"]["mean"] == pytest.approx(here["loss"]["mean"], rel=1e-3)
    for one, other in zip(there["layers"], here["layers"], strict=True):
        # Where two experts tie, rounding decides.
        np.testing.assert_allclose(one["load"], other["load"], atol=0.05)
        np.testing.assert_allclose(one["similarity"]["outputs"], other["similarity"]["outputs"], atol=1e-2)
    for one, other in zip(there["ablation"], here["ablation"], strict=True):
        assert one["rise"]["mean"] == pytest.approx(other["rise"]["mean"], abs=1e-2), (one["kind"], one["layer"], one["expert"])


@pytest.mark.parametrize("router", ["topk", "soft"])
def test_a_clock_times_the_device(runs, router, device):
    found = clock(runs(router), Settings(sizes=(1, 16), rounds=6))
    assert found["machine"]["device"] == str(device)
    assert found["machine"]["precision"] == ("bfloat16" if device.type == "cuda" else "float32")
    assert not found["stopped"]
    modes = {row["mode"] for row in found["rows"]}
    assert modes == ({WHOLE} if router == "soft" else {WHOLE, TOKEN})
    assert len(found["rows"]) == 3 * 2 * len(modes)
    for row in found["rows"]:
        assert 0 < row["seconds"]["low"] <= row["seconds"]["mean"] <= row["seconds"]["high"]
        assert sum(row["parts"].values()) == pytest.approx(1.0)
        assert row["parts"]["experts" if row["arm"] == MIXTURE else "feed-forward"] > 0
        assert row["bytes"] is None or row["bytes"] >= 0
    said = clock_sentences(found)
    assert any(sentence.startswith(f"Against {EQUAL_FLOPS}") for sentence in said)


def test_a_clock_waits_for_the_device(device):
    """Products of a tenth of a second or so, which a host hands over at once: the clock says what the device's own events say."""
    if device.type == "cpu":
        pytest.skip("a CPU has no queue to wait for")
    x, now = torch.randn(4096, 4096, device=device), clock_of(device)
    begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    x @ x
    started = now()
    handed = time.perf_counter()
    begun.record()
    for _ in range(30):
        x @ x
    done.record()
    handed = time.perf_counter() - handed
    taken = now() - started
    assert handed < taken / 2, "the products were long enough to see"
    assert taken >= 0.9 * begun.elapsed_time(done) / 1e3


def test_a_footprint_is_what_is_taken_beyond_what_is_held(device):
    if device.type == "cpu":
        pytest.skip("that of a CPU is the process's")
    held = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    footprint = Footprint()
    more = torch.empty(16 << 20, dtype=torch.uint8, device=device)
    del more
    # Of what torch keeps, a block may be a little larger than what is asked for.
    assert 16 << 20 <= footprint.peak(device) < 20 << 20
    assert held.numel() == 64 << 20


@pytest.mark.parametrize("cold", [False, True])
def test_experts_are_read_to_the_device(runs, device, tmp_path, cold):
    layers = runs("topk").arm.mixtures
    write_experts([layer.experts for layer in layers], tmp_path / "experts.safetensors")
    file = ExpertFile(tmp_path / "experts.safetensors", device=device, cold=cold)
    for number, layer in enumerate(layers):
        found = file.read(file.unit(number, 2))[number]
        for name, value in layer.experts.own_parameters().items():
            assert found[name].device == device
            assert torch.equal(found[name], value[2])
    file.close()


@pytest.mark.parametrize("router", ROUTERS)
def test_serving_from_little_memory_changes_no_output(runs, router, device, tmp_path):
    run = runs(router)
    options = Options(steps=6)
    there = serve_cost(run, tmp_path / "there", options)
    here = serve_cost(on_the_cpu(run), tmp_path / "here", replace(options, steps=0))
    assert there["device"] == str(device)
    assert there["loss"]["mean"] == pytest.approx(here["loss"]["mean"], rel=1e-3)
    assert [row["slots"] for row in there["rows"]] == [row["slots"] for row in here["rows"]]
    for one, other in zip(there["rows"], here["rows"], strict=True):
        assert one["hit_rate"]["mean"] == pytest.approx(other["hit_rate"]["mean"], abs=0.05)
    timed = [row for row in there["rows"] if "ratio" in row]
    assert timed
    assert all(row["outputs_equal"] and row["outputs_apart"] < 1e-2 for row in timed)
    assert all(row["milliseconds"] > 0 and math.isfinite(row["ratio"]["mean"]) for row in timed)
    write_serving(tmp_path / "there", [there])
    assert any(sentence.startswith("Outputs with experts on disk equal") for sentence in sentences([there]))
