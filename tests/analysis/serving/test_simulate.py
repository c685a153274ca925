"""Runs served from little memory: what is counted from choices is what a server reads, and the outputs do not change."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from routelab.analysis.serving.serving_options import Options
from routelab.analysis.serving.serving_report import batch_rows, row_at, sentences
from routelab.analysis.serving.simulate import few, serve_cost, slots_to_try
from routelab.analysis.trained_run import TrainedRun
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.cli.app import app, guarded
from routelab.comparison.train_one import train
from routelab.data.base import load
from routelab.experts.offload import ExpertFile, Offloaded, write_experts

pytestmark = pytest.mark.slow
DECODER = {"name": "decoder", "d_model": 16, "depth": 2, "heads": 2}
ADAPTERS = {"whole_model": True, "allow_leak": True}


@pytest.fixture(scope="module")
def texts():
    return load("domains", domains=["python", "mathematics"], window=16, bytes_per_domain=30000)


def untrained(data, arm, examples=10, backbone=DECODER, kind="gelu", **router):
    """Weights as they are drawn; routers' larger, so that choices differ from token to token."""
    model = make_arm(ArmSpec(arm, backbone, {"count": 4, "hidden": 8, "kind": kind}, router), data.task, 0).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".router." in name or name.endswith("_b"):
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    index = torch.arange(examples)
    return TrainedRun(
        {"arm": arm, "seed": 0, "data": data.task.name}, Path("."), None, data, model, data.test.select(index), index
    )


def rows_of(found, batch):
    return {row["slots"]: row for row in found["rows"] if row["batch"] == batch}


@torch.inference_mode()
def test_what_is_counted_from_choices_is_what_a_server_reads(texts, tmp_path):
    """Text by text, prompt and tokens, with the cache of keys and values and two experts in memory."""
    run = untrained(texts, "topk", examples=6)
    found = serve_cost(run, tmp_path / "out", Options(slots=[2, 3], prompt=4, steps=0))
    assert (found["mode"], found["unit"], found["units"], found["unit_bytes"]) == ("decode", "expert", 8, 4 * 2 * 16 * 8)
    write_experts([layer.experts for layer in run.arm.mixtures], tmp_path / "experts.safetensors")
    file = ExpertFile(tmp_path / "experts.safetensors")
    for slots in (2, 3):
        offloaded, read = Offloaded(run.arm.mixtures, file, slots), []
        full = file.bytes_read
        with offloaded.serving():
            for text in run.sample.inputs.long():
                caches = run.arm.network.caches()
                run.arm.network(text[None, :4], None, caches)
                before = file.bytes_read
                for place in range(4, 16):
                    run.arm.network(text[None, place : place + 1], None, caches)
                read.append(file.bytes_read - before)
        assert file.bytes_read - full == offloaded.misses * file.unit_bytes
        row = rows_of(found, 1)[slots]
        assert row["bytes_per_token"]["mean"] == pytest.approx(np.mean(read) / 12)
        assert row["hit_rate"]["mean"] == pytest.approx(1 - np.mean(read) / (12 * 2 * 2 * file.unit_bytes))
        assert row["bytes_per_example"]["mean"] == pytest.approx((file.bytes_read - full) / 6)
        assert row["resident_bytes"] == slots * file.unit_bytes
        assert row["optimum"] >= row["hit_rate"]["mean"]
    assert list((tmp_path / "out").iterdir()) == [], "the file of experts is gone"
    file.close()


@pytest.mark.parametrize(
    ("arm", "kind", "router"),
    [("topk", "gelu", {}), ("relu", "swiglu", {}), ("sequence", "lora", ADAPTERS), ("soft", "gelu", {"allow_leak": True})],
)
def test_a_server_changes_no_output(texts, tmp_path, arm, kind, router):
    found = serve_cost(untrained(texts, arm, kind=kind, **router), tmp_path, Options(steps=4))
    assert {row["batch"] for row in found["rows"]} == {1, 8}, "10 texts fill no batch of 64"
    timed = [row for row in found["rows"] if "ratio" in row]
    assert {row["slots"] for row in timed} == set(few(slots_to_try(found["units"])))
    assert all(row["outputs_equal"] and row["outputs_apart"] < 1e-4 for row in timed)
    assert all(row["milliseconds"] > 0 and row["steps"] == 4 for row in timed)
    everything = rows_of(found, 8)[found["units"]]
    assert everything["bytes_per_token"]["mean"] == everything["bytes_per_example"]["mean"] == 0
    assert everything["hit_rate"]["mean"] == everything["optimum"] == everything["chance"] == 1
    read = [row["bytes_per_example"]["mean"] for row in found["rows"] if row["batch"] == 1]
    assert read == sorted(read, reverse=True)


def test_adapters_are_chosen_once_and_read_once(texts, tmp_path):
    """With one adapter in memory a text costs one read where its neighbour chose another, in the prompt, and no token any."""
    run = untrained(texts, "sequence", kind="lora", examples=40, **ADAPTERS)
    found = serve_cost(run, tmp_path, Options(slots=[1, 4], steps=0))
    assert (found["unit"], found["per_text"], found["units"]) == ("adapter", True, 4)
    assert found["unit_bytes"] == 2 * 4 * 2 * 8 * (16 + 8), "two layers, four bytes, two factors of two matrices of rank 8"
    one = rows_of(found, 1)[1]
    assert one["bytes_per_token"]["mean"] == 0
    with torch.no_grad():
        _, routings = run.arm.network(run.sample.inputs[:, : found["prompt"]])
    first, second = (routing.plan.expert.view(40, -1) for routing in routings)
    assert torch.equal(first, second), "the same adapter in all layers"
    assert (first == first[:, :1]).all()
    changes = int((first[1:, 0] != first[:-1, 0]).sum()) + int(first[0, 0] != 0)
    assert changes > 0
    assert one["bytes_per_example"]["mean"] == pytest.approx(changes / 40 * found["unit_bytes"])
    assert one["hit_rate"]["mean"] == 1 > one["chance"]
    # Eight texts at a time take turns in it: each layer finds one of their adapters, and reads the others, for both layers.
    together = np.array([len(np.unique(part)) for part in first[:, 0].numpy().reshape(5, 8)])
    eight = rows_of(found, 8)[1]
    assert (together > 1).any()
    assert eight["hit_rate"]["mean"] == pytest.approx(5 / together.sum())
    assert eight["bytes_per_token"]["mean"] == pytest.approx(2 * (together - 1).mean() / 8 * found["unit_bytes"])


def test_plans_that_need_every_expert_say_so(texts, tmp_path):
    found = serve_cost(untrained(texts, "soft", allow_leak=True), tmp_path, Options(slots=[2], steps=0))
    assert (found["mode"], found["needs_all"]) == ("pass", True)
    assert rows_of(found, 1)[2]["hit_rate"]["mean"] == rows_of(found, 1)[2]["chance"]
    assert "every token needs every expert of a layer" in sentences([found])[0]
    assert len(batch_rows([found], 1)) == 1, "one number of slots is one row, whatever shares are shown"


def test_images_go_through_at_once(tmp_path):
    vit = {"name": "vit", "d_model": 16, "depth": 2, "heads": 2}
    found = serve_cost(untrained(load("digits"), "sequence", backbone=vit), tmp_path, Options(slots=[1, 8], steps=2))
    assert (found["mode"], found["prompt"], found["unit"]) == ("pass", 0, "expert")
    one = rows_of(found, 1)[1]
    assert one["bytes_per_token"]["mean"] * found["sample"]["positions"] == pytest.approx(one["bytes_per_example"]["mean"])


def test_slots_for_each_layer(texts, tmp_path):
    found = serve_cost(untrained(texts, "topk"), tmp_path, Options(per_layer=True, steps=2))
    rows = rows_of(found, 1)
    assert list(rows) == [1, 2, 3, 4]
    assert [row["resident"] for row in rows.values()] == [2, 4, 6, 8]
    assert rows[4]["hit_rate"]["mean"] == 1


def test_slots_that_are_tried_and_timed():
    assert slots_to_try(5) == [1, 2, 3, 4, 5]
    assert slots_to_try(24) == [1, 2, 4, 6, 8, 12, 16, 18, 24]
    assert few(slots_to_try(16)) == [1, 4, 8, 12, 16]
    assert few([3]) == [3]
    assert (
        row_at({"rows": [{"batch": 1, "resident_share": share} for share in (0.2, 0.4, 1.0)]}, 1, 0.5)["resident_share"] == 0.4
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_store):
    folder = tmp_path_factory.mktemp("served")
    new_store(folder / "results/mlflow.db")
    words = [
        f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=4", "trainer.checks=2", "backbone.d_model=16",
        "backbone.depth=2", "backbone.heads=2", "experts.count=4", "experts.hidden=8", "match.on=none", "data=domains",
        "backbone=decoder", "data.bytes_per_domain=30000", "data.window=16", "data.domains=[python,mathematics]",
    ]  # fmt: skip
    arms = {"dense": [], "hash": [], "sequence": ["router.whole_model=true", "router.allow_leak=true", "experts.kind=lora"]}
    runs = {arm: train([*words, f"output={folder}/results/{arm}", f"arm={arm}", *more]) for arm, more in arms.items()}
    return folder, {arm: Path(run.record["folder"]) for arm, run in runs.items()}


def called(*words):
    return guarded(lambda: app(["serve-cost", *map(str, words)], standalone_mode=False))


def test_the_command_leaves_table_numbers_and_figures(trained, capsys):
    from mlflow.tracking import MlflowClient

    folder, cells = trained
    uri = f"sqlite:///{folder}/results/mlflow.db"
    client = MlflowClient(uri)
    (mlflow_run,) = [
        found.info.run_id
        for experiment in client.search_experiments()
        for found in client.search_runs([experiment.experiment_id])
        if found.data.params.get("arm") == "hash" or found.data.params.get("arm.name") == "hash"
    ]
    out = folder / "made"
    small = ["--output", out, "--examples", 20, "--steps", 2]
    assert not called(mlflow_run, cells["sequence"], "--uri", uri, *small)
    said = capsys.readouterr().out
    assert "an expert of all layers" in said
    assert "8 at a time" in said
    assert re.search(r"hash: with 2 of 8 in memory .* of the requests for an expert find it there, .* by chance", said)
    assert "equal, to the bit" in said
    assert "Bytes read per token with 25% of the experts in memory, fewest first: sequence" in said
    header, *rows = csv.reader((out / "serve_cost.csv").open())
    assert len(rows) == 2 * 8 + 2 * 4
    assert all(len(row) == len(header) for row in rows)
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("cost-batch-1", "cost-batch-8", "choices-batch-1") for kind in ("png", "csv")
    }
    left = {item.path for item in client.list_artifacts(mlflow_run, "serving")}
    assert left == {"serving/serve_cost.json", "serving/serve_cost.csv", "serving/figures"}
    assert not called(cells["hash"], "--json", "--slots", "1,8", *small)
    (only,) = json.loads(capsys.readouterr().out)["runs"]
    assert only == json.loads((out / "serve_cost.json").read_text())["runs"][0]
    assert [row["slots"] for row in only["rows"]] == [1, 8, 1, 8]


def test_errors_are_sentences(trained, tmp_path, capsys):
    _, cells = trained

    def told(*words):
        assert called(*words, "--output", tmp_path) == 2
        return capsys.readouterr().err

    assert "is dense: it has no mixture layer" in told(cells["dense"])
    assert "--slots is 9; it must be between 1 and the 8 experts of hash, seed 0, on domains" in told(
        cells["hash"], "--slots", "9"
    )
    assert "--slots is '0,2'; it must be whole numbers of at least 1, such as 1,4,8" in told(cells["hash"], "--slots", "0,2")
    assert "--slots is '1;2'; it must be whole numbers of at least 1" in told(cells["hash"], "--slots", "1;2")
    assert "the 4 experts per layer of hash" in told(cells["hash"], "--slots", "5", "--per-layer")
    assert "--per-layer does not go with sequence, seed 0, on domains" in told(cells["sequence"], "--per-layer")
    assert "--prompt is 16; it must be between 1 and 15" in told(cells["hash"], "--prompt", "16")
    assert "--steps is -1; it must be at least 0" in told(cells["hash"], "--steps", "-1")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "record.json").write_text((cells["hash"] / "record.json").read_text())
    assert "has no weights: there is no file" in told(bare)
