"""Latency side by side: shares that add up to 1, rivals that cost the same, sentences with numbers, and one run from end to end."""

import csv
import json
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from routelab.analysis.latency.dense_counterparts import EQUAL_FLOPS, EQUAL_PARAMETERS, MIXTURE
from routelab.analysis.latency.inference_precision import in_precision
from routelab.analysis.latency.latency_plots import figures_of, table
from routelab.analysis.latency.measure import WHOLE, Settings, _warm, clock
from routelab.analysis.latency.profiler import PARTS, Stopwatch, timed_parts
from routelab.analysis.latency.summary_text import sentences
from routelab.analysis.trained_run import open_run
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.cli.app import app, guarded
from routelab.comparison.train_one import train
from routelab.core.intervals import median_interval
from routelab.data.base import load
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.build import build_router


def test_the_interval_of_a_median_counts_from_both_ends():
    """Binomial(9, 1/2): P(X <= 1) = 10/512 < .025 < P(X <= 2) = 46/512, so the second smallest and the second largest."""
    assert median_interval([5, 1, 9, 2, 8, 3, 7, 4, 6]).as_dict() == {"mean": 5.0, "low": 2.0, "high": 8.0, "n": 9}
    six = median_interval(range(1, 7))
    assert (six.low, six.mean, six.high) == (1.0, 3.5, 6.0)
    assert median_interval(range(5)).low != median_interval(range(5)).low, "NaN: five values have no 95% interval"


@pytest.mark.parametrize("n", [6, 8, 15, 40])
def test_it_is_the_narrowest_that_covers(n):
    found = median_interval(range(1, n + 1))
    left_out = int(found.low) - 1
    assert 1 - 2 * stats.binom.cdf(left_out, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(left_out + 1, n, 0.5) < 0.95


def test_a_moment_is_charged_to_the_innermost_part():
    """Moments 0, 1, 3, 6, 10, 15: rest 1, dispatch 2, router 3, dispatch 4, rest 5."""
    watch = Stopwatch(iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0]).__next__)
    watch.start()
    watch.enter("dispatch")
    watch.enter("router")
    watch.leave()
    watch.leave()
    watch.stop()
    assert {part: seconds for part, seconds in watch.seconds.items() if seconds} == {
        "router": 3.0,
        "dispatch": 6.0,
        "rest": 6.0,
    }
    assert watch.shares["router"] == pytest.approx(0.2)
    assert sum(watch.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("kernel", ["fused", "grouped", "batched", "loop"])
@pytest.mark.parametrize("router", ["topk", "soft", "dense_gate", "relu", "expert_choice"])
def test_every_kernel_and_plan_is_taken_apart_and_left_as_it_was(router, kernel):
    torch.manual_seed(0)
    bank, x = ExpertBank("gelu", num_experts=4, d_model=8, d_hidden=16), torch.randn(2, 6, 8)
    extra = {"positions": 6} if router == "soft" else {}
    layer = MixtureLayer(
        build_router(router, d_model=8, num_experts=4, **extra), bank, shared=FeedForward("gelu", 8, 16), kernel=kernel
    ).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    moments = iter(range(1000))
    watch = Stopwatch(lambda: float(next(moments)))
    with torch.inference_mode():
        before = layer(x)[0]
        with timed_parts(layer, watch):
            watch.start()
            within = layer(x)[0]
            watch.stop()
    assert torch.equal(before, within)
    # The bank and the shared feed-forward, one moment each.
    assert watch.seconds["experts"] >= 2
    assert watch.seconds["router"] == 1
    assert watch.seconds["dispatch"] >= 2
    assert not {"fused", "grouped", "batched", "loop"} & set(bank.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())


def row(mode, batch, arm, seconds, ratio):
    parts = dict.fromkeys(PARTS, 0.0) | {"router": 0.25, "rest": 0.75}
    made = {"mode": mode, "batch": batch, "arm": arm, "seconds": {"mean": seconds, "low": seconds, "high": seconds, "n": 9},
            "per_second": batch / seconds, "parts": parts, "bytes": None, "steps": 1, "ratio": None}  # fmt: skip
    return made if ratio is None else made | {"ratio": dict(zip(("low", "mean", "high"), ratio, strict=True)) | {"n": 9}}


FOUND = {
    "arms": {
        MIXTURE: {"flops_per_example": 100.0}, EQUAL_FLOPS: {"flops_per_example": 101.0}, EQUAL_PARAMETERS: {"flops_per_example": 400.0},
    },
    "machine": {"device": "cpu", "name": "a machine", "threads": 1, "torch": "2", "precision": "float32", "clock": "wall"},
    "positions": 128,
    "rows": [
        row("whole", 1, MIXTURE, 2.0, None), row("whole", 1, EQUAL_FLOPS, 1.0, (1.9, 2.0, 2.1)),
        row("whole", 1, EQUAL_PARAMETERS, 1.5, (1.2, 1.33, 1.5)), row("whole", 16, MIXTURE, 3.0, None),
        row("whole", 16, EQUAL_FLOPS, 3.0, (0.9, 1.0, 1.1)), row("whole", 16, EQUAL_PARAMETERS, 6.0, (0.4, 0.5, 0.6)),
    ],
    "stopped": [{"mode": "whole", "arm": EQUAL_PARAMETERS, "batch": 64, "reason": "memory is out"}],
    "undecoded": "it does not generate text",
}  # fmt: skip


def test_sentences_say_when_a_mixture_is_slower_although_it_computes_less():
    assert sentences(FOUND) == [
        "Against dense, equal FLOPs, on windows of 128 tokens, the mixture computes as much, and is slower at batch 1 (2.00x the time "
        "[1.90, 2.10]); shows no difference at batch 16 (1.00x the time [0.90, 1.10]).",
        "Against dense, equal parameters, on windows of 128 tokens, the mixture computes 0.25x as much, and is slower although it "
        "computes less at batch 1 (1.33x the time [1.20, 1.50]); is faster at batch 16 (0.50x the time [0.40, 0.60]).",
        "Where the mixture's time goes, on windows of 128 tokens: at batch 1 rest 75%, router 25%; at batch 16 rest 75%, router 25%.",
        "Dense, equal parameters, was not timed from batch 64 on, on windows of 128 tokens: memory is out.",
        "Decoding was not timed: it does not generate text.",
    ]


@pytest.mark.parametrize("data", ["digits", "peterson_barney"])
@pytest.mark.parametrize("router", ["topk", "deepseek", "soft", "expert_choice", "relu"])
def test_a_model_in_bfloat16_chooses_in_float32(data, router):
    """Its outputs are those of float32 to the two or three digits that it has, but where two experts tie, and its router's
    weights are left alone."""
    task, given = (loaded := load(data)).task, loaded.test.select(slice(0, 32))
    widths = {"d_model": 16, "depth": 2, "heads": 2}
    leak = {"allow_leak": True} if router in ("soft", "expert_choice") else {}
    arm = make_arm(ArmSpec(router, widths, {"count": 4, "hidden": 16}, leak), task, 0).eval()
    half = in_precision(arm, "bfloat16")
    assert {value.dtype for name, value in half.named_parameters() if ".router." not in name} == {torch.bfloat16}
    assert {value.dtype for value in arm.parameters()} == {torch.float32}, "the model itself is as it was"
    for layer, other in zip(arm.mixtures, half.mixtures, strict=True):
        for name, value in layer.router.state_dict().items():
            assert torch.equal(value, other.router.state_dict()[name])
    with torch.inference_mode():
        inputs = given.inputs.bfloat16()
        outputs, wanted = half.network(inputs, given.mask)[0], arm.network(inputs.float(), given.mask)[0]
    assert (outputs.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    assert outputs.dtype == torch.bfloat16


def test_figures_and_table_hold_every_row():
    latency, shares = figures_of(FOUND)
    assert len(table(FOUND)) == len(latency.table) == len(shares.table) == 7
    assert all(sum(row[3:]) == pytest.approx(1.0) for row in shares.table[1:])
    assert [axes.get_xscale() for axes in latency.figure.axes] == ["log", "log"]


def words(folder, *more):
    return [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=2", "trainer.checks=1",
        "backbone.d_model=16", "backbone.depth=2", "backbone.heads=2", "experts.count=4", "experts.hidden=16", "match.on=none",
        "data=domains", "backbone=decoder", "data.bytes_per_domain=30000", "data.window=16", "data.domains=[python,mathematics]",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_the_clock_from_end_to_end(tmp_path, capsys, new_store):
    new_store(tmp_path / "results/mlflow.db")
    run = Path(train(words(tmp_path, "arm=topk", "router.top_k=2")).record["folder"])
    output = tmp_path / "clock"
    command = ["clock", str(run), "--sizes", "4,1", "--rounds", "6", "--cpu-time", "--json", "--output", str(output)]
    capsys.readouterr()
    assert guarded(lambda: app(command, standalone_mode=False)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["mode"], row["batch"]) for row in found["rows"][::3]] == [
        ("whole", 1),
        ("whole", 4),
        ("token", 1),
        ("token", 4),
    ]
    assert found["machine"]["threads"] == 1
    for row in found["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(1.0)
        assert row["seconds"]["low"] <= row["seconds"]["mean"] <= row["seconds"]["high"]
        mixed = [row["parts"][part] > 0 for part in ("router", "dispatch", "experts", "feed-forward")]
        assert mixed == ([True, True, True, False] if row["arm"] == MIXTURE else [False, False, False, True])
    arms = found["arms"]
    assert arms[EQUAL_FLOPS]["flops_per_example"] == pytest.approx(arms[MIXTURE]["flops_per_example"], rel=0.02)
    assert arms[EQUAL_PARAMETERS]["total_params"] == pytest.approx(arms[MIXTURE]["total_params"], rel=0.02)
    assert len(list(csv.reader((output / "clock.csv").open()))) == 13
    assert (output / "figures/latency.png").read_bytes()[:4] == b"\x89PNG"
    assert (output / "figures/parts.csv").is_file()
    assert found["stopped"] == []
    # In bfloat16, whole examples and token by token.
    half = clock(open_run(str(run), None), Settings([4], 6, precision="bfloat16"))
    assert (half["machine"]["precision"], half["stopped"], len(half["rows"])) == ("bfloat16", [], 6)
    # The same run, where no pass may take any time at all: there is a table without rows, and the sentences say why.
    command = ["clock", str(run), "--sizes", "1", "--longest", "1e-9", "--output", str(output)]
    assert guarded(lambda: app(command, standalone_mode=False)) == 0
    assert "The mixture was not timed from batch 1 on" in capsys.readouterr().out
    stopped = clock(open_run(str(run), None), Settings([1, 4], 2, 1e-9))
    assert not stopped["rows"]
    assert {stop["arm"] for stop in stopped["stopped"]} == {MIXTURE, EQUAL_FLOPS, EQUAL_PARAMETERS}
    assert sentences(stopped)[0].startswith("The mixture was not timed from batch 1 on, on windows of 16 tokens: a pass takes")


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_memory_that_is_out_ends_a_model_and_a_broken_kernel_ends_the_clock(error, stops):
    class Broken:
        inputs = mask = None

        def network(self, inputs, mask):
            raise error

    if stops:
        assert _warm(Broken(), Broken(), WHOLE, time.perf_counter, 1.0) == "memory is out"
    else:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            _warm(Broken(), Broken(), WHOLE, time.perf_counter, 1.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sizes", "1,x"], "--sizes is '1,x'; it must be whole numbers of at least 1, such as 1,16,256"),
        (["--rounds", "0"], "--rounds is 0; it must be above 0"),
        (["--precision", "bf16"], "--precision 'bf16'"),
        (["--uri", "sqlite:///none.db"], "there is no such store"),
    ],
)
def test_wrong_words_are_one_sentence(options, sentence, capsys):
    assert guarded(lambda: app(["clock", "nowhere", *options], standalone_mode=False)) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
