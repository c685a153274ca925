"""Trained runs of every type of plan, looked at: the numbers agree with each other, the page is whole, errors are sentences."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from routelab.analysis.routing.ablation import Ablation
from routelab.analysis.routing.analysis_report import texts_by_expert
from routelab.analysis.routing.analyze import analyze
from routelab.analysis.routing.routing_capture import observe, rerouted
from routelab.analysis.routing.routing_plots import figures_of
from routelab.analysis.routing.token_labels import BYTE_CLASSES, byte_class, labels_of
from routelab.analysis.trained_run import TrainedRun, open_run
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.cli.app import app, guarded
from routelab.comparison.train_one import train
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.text import SEPARATOR, documents

pytestmark = pytest.mark.slow
ARMS = {
    "dense": (),
    "topk": ("router.top_k=2",),
    "soft": ("router.allow_leak=true",),
    "expert_choice": ("router.allow_leak=true",),
    "relu": (),
    "dense_gate": (),
}
PLANS = {"topk": "TopK", "soft": "Slots", "expert_choice": "PerExpert", "relu": "Ragged", "dense_gate": "Blend"}


def words(folder, *more):
    return [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=4", "trainer.checks=2",
        "backbone.d_model=16", "backbone.depth=2", "backbone.heads=2", "experts.count=4", "experts.hidden=8", "match.on=none",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory, new_store):
    folder = tmp_path_factory.mktemp("texts")
    new_store(folder / "results/mlflow.db")
    data = (
        "data=domains",
        "backbone=decoder",
        "data.bytes_per_domain=30000",
        "data.window=16",
        "data.domains=[python,mathematics]",
    )
    runs = {arm: train(words(folder, *data, f"arm={arm}", *options)) for arm, options in ARMS.items()}
    return folder, {arm: Path(run.record["folder"]) for arm, run in runs.items()}


def opened(folder, cell, examples=24):
    return open_run(str(cell), None, folder / "results", examples)


@pytest.mark.parametrize("arm", PLANS)
def test_every_type_of_plan(texts, arm):
    folder, cells = texts
    run = opened(folder, cells[arm])
    found = analyze(run)
    assert [layer["plan"] for layer in found["layers"]] == [PLANS[arm]] * 2
    for layer in found["layers"]:
        assert np.mean(layer["load"]) == pytest.approx(1.0)
        assert len(layer["similarity"]["weights"]) == 4
    for name in ("domain", "byte"):
        for table, mass in zip(found["labels"][name]["distribution"], found["labels"][name]["mass"], strict=True):
            for share, weight in zip(table, mass, strict=True):
                assert sum(share) == pytest.approx(1.0 if weight else 0.0)
    assert found["sample"]["examples"] == 24
    rows = found["ablation"]
    assert len(rows) == 2 * (4 + 4) + 3 * 3
    for row in rows:
        # The domains' means weigh up to the whole. No text ends in so small a split, so that every window is one by itself.
        by = [row["by"]["domain"][name] for name in run.data.domain_names]
        drawn = np.bincount(run.sample.domain.numpy(), minlength=2)
        assert sum(each["mean"] * count for each, count in zip(by, drawn, strict=True)) / 24 == pytest.approx(
            row["rise"]["mean"]
        )
        assert sum(each["n"] for each in by) == row["rise"]["n"] == 24
        assert row["loss"] - found["loss"]["mean"] == pytest.approx(row["rise"]["mean"])
    json.dumps({name: value for name, value in found.items() if name != "first"})


def test_an_expert_off_is_its_weights_at_zero(texts):
    """Weights at 0 make a gelu expert give 0: the same loss as without it."""
    folder, cells = texts
    run = opened(folder, cells["topk"])
    row = next(r for r in analyze(run)["ablation"] if (r["kind"], r["layer"], r["expert"]) == ("without", 1, 2))
    with torch.no_grad():
        run.arm.mixtures[1].experts.down[2] = 0
    assert observe(run.arm, run.batches()).loss.mean() == pytest.approx(row["loss"], abs=1e-6)


def test_the_layer_is_left_as_it_was(texts):
    folder, cells = texts
    run = opened(folder, cells["topk"])
    before = observe(run.arm, run.batches())
    layer = run.arm.mixtures[0]
    with pytest.raises(RuntimeError), rerouted(layer, lambda plan, groups, positions: 1 / 0):
        raise RuntimeError
    assert "choose" not in layer.__dict__
    again = observe(run.arm, run.batches())
    assert np.array_equal(before.loss, again.loss)
    assert np.array_equal(before.layers[1].share, again.layers[1].share)


def test_what_is_observed_is_the_plan(texts):
    folder, cells = texts
    seen = observe(opened(folder, cells["topk"]).arm, opened(folder, cells["topk"]).batches()).layers[0]
    assert seen.share.shape == (24, 16, 4)
    assert (seen.share.sum(-1) == 2).all()
    assert (seen.chosen.sum(-1) == 2).all()
    ordered = np.argsort(-seen.prob, -1)
    assert np.array_equal(seen.first, ordered[..., 0])
    assert np.array_equal(seen.second, ordered[..., 1])


def test_the_loss_of_the_whole_split_is_the_recorded_one(texts):
    folder, cells = texts
    run = opened(folder, cells["relu"], examples=10_000)
    assert len(run.sample) == len(run.data.test)
    assert observe(run.arm, run.batches()).loss.mean() == pytest.approx(run.record["test"]["loss"], abs=1e-5)


def test_page_figures_and_mlflow(texts, capsys):
    from mlflow.tracking import MlflowClient

    folder, cells = texts
    uri = f"sqlite:///{folder}/results/mlflow.db"
    client, record = MlflowClient(uri), json.loads((cells["topk"] / "record.json").read_text())
    runs = client.search_runs([client.get_experiment_by_name("domains").experiment_id])
    run_id = next(run.info.run_id for run in runs if run.data.tags.get("routelab.cell") == record["provenance"]["cell"])
    assert guarded(lambda: app(["analyze", run_id, "--uri", uri, "--examples", "24"], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    assert "24 of" in said
    assert "Consecutive tokens share their first expert in" in said
    assert re.search(r"the domain.* beyond the token's own byte.* \(layer \d, p=[\d.]+ for the most of 2 layers\)", said)
    place = cells["topk"] / "analysis"
    page = (place / "analysis.html").read_text()
    assert f"Page: {place / 'analysis.html'}" in said
    assert "http" not in re.sub(r"http-equiv", "", page), "no address of the network"
    assert "<script" not in page
    assert "<image" not in page
    assert re.search(r'<span class="c[0-3]" title="expert [0-3]">', page)
    made = {path.name for path in (place / "figures").iterdir()}
    for name in ("experts-by-domain", "experts-by-byte", "information", "repetition", "paths", "confidence", "load", "co-selection",
                 "similarity-weights", "similarity-outputs", "churn", "loss-without", "loss-only", "loss-without-by-domain",
                 "rerouting"):  # fmt: skip
        assert {f"{name}.png", f"{name}.csv"} <= made
        header, *rows = list(csv.reader((place / "figures" / f"{name}.csv").open()))
        assert rows
        assert all(len(row) == len(header) for row in rows)
    left = {item.path for item in client.list_artifacts(run_id, "analysis")}
    assert left == {"analysis/analysis.html", "analysis/analysis.json", "analysis/figures"}


def test_images_have_classes_and_no_texts(tmp_path, capsys):
    folder = train(words(tmp_path, "data=digits", "arm=switch", "tracking.uri=null")).record["folder"]
    run = open_run(folder, None, examples=40)
    numbers = analyze(run)
    assert list(numbers["labels"]) == ["class"]
    assert len(numbers["labels"]["class"]["names"]) == 10
    assert numbers["sample"]["documents"] is None
    assert numbers["layers"][0]["repetition"]["all"]["either"] is None, "one choice has no second"
    assert numbers["layers"][0]["co_selection"] is None
    assert texts_by_expert(run, numbers) == []


def test_errors_are_sentences(texts, tmp_path, capsys):
    _, cells = texts

    def told(*more):
        assert guarded(lambda: app(["analyze", *map(str, more)], standalone_mode=False)) == 2
        return capsys.readouterr().err

    assert "run dense-s0 on domains is dense: it has no mixture layer" in told(cells["dense"])
    assert "there is no such store" in told("nowhere", "--uri", f"sqlite:///{tmp_path}/none.db")
    assert "--examples is 1; it must be at least 2" in told(cells["topk"], "--examples", "1")
    (tmp_path / "bare").mkdir()
    record = (cells["topk"] / "record.json").read_text()
    (tmp_path / "bare/record.json").write_text(record)
    assert "run topk-s0 on domains has no weights: there is no file" in told(tmp_path / "bare")
    (tmp_path / "bare/record.json").write_text(record.replace('"status": "ok"', '"status": "failed"'))
    assert "failed, so there is nothing to analyze" in told(tmp_path / "bare")


def test_bytes_have_a_kind():
    named = {char: BYTE_CLASSES[byte_class(char.encode()[0])] for char in "aZ7 \t\n.é\0\x07"}
    assert list(named.values()) == ["lower case", "upper case", "digit", "space", "space", "line end", "punctuation", "beyond ASCII",
                                    "text end", "other ASCII"]  # fmt: skip


def test_documents_are_told_apart_by_their_ends():
    data = load("domains", domains=["law", "mathematics"], window=64, bytes_per_domain=30000)
    found, test = documents(data), data.test
    for number in range(2):
        mine = found[test.domain == number]
        ends = (test.inputs[test.domain == number] == SEPARATOR[0]).sum(1).numpy()
        assert (np.diff(mine) == ends[:-1]).all()
    assert not set(found[test.domain == 0]) & set(found[test.domain == 1])
    run = untrained(data, 60, "topk", {"name": "decoder", "d_model": 16, "depth": 1, "heads": 2})
    blocks, known = run.blocks()
    assert known
    assert blocks.tolist() == found[:60].tolist()
    row = Ablation("random", None, None, np.arange(60.0)).row(np.zeros(60), labels_of(data, run.sample), blocks)
    assert row["rise"]["mean"] == pytest.approx(29.5)
    assert row["rise"]["n"] == sum(each["n"] for each in row["by"]["domain"].values()) == len(set(blocks)) < 60


def untrained(data, examples, arm, backbone, **router):
    model = make_arm(ArmSpec(arm, backbone, {"count": 4, "hidden": 8}, router), data.task, 0).eval()
    index = torch.arange(examples)
    record = {"arm": arm, "seed": 0, "data": data.task.name}
    return TrainedRun(record, Path("."), None, data, model, data.test.select(index), index)


def test_where_the_batch_is_one_group_a_row_is_a_token():
    found = analyze(untrained(load("peterson_barney"), 30, "topk", {"name": "mlp", "d_model": 16, "depth": 2}))
    assert found["sample"]["positions"] == 1
    assert found["layers"][0]["repetition"]["all"]["first"] is None, "a row has no neighbour"
    assert found["labels"]["class"]["information"][0]["units"] == 30
    assert found["paths"]["tokens"] == 30


def test_tokens_without_an_expert_are_told_apart():
    """A mixture of depths has one expert, the block: what its router tells about a byte is who goes through it."""
    data = load("domains", domains=["python", "mathematics"], window=16, bytes_per_domain=30000)
    run = untrained(data, 12, "mixture_of_depths", {"name": "decoder", "d_model": 16, "depth": 2, "heads": 2})
    seen, found = observe(run.arm, run.batches()).layers[0], analyze(run)
    assert 0 < found["layers"][0]["unrouted"] < 1
    table, mass = (np.array(found["labels"]["byte"][key][0]) for key in ("distribution", "mass"))
    assert table.shape == (len(BYTE_CLASSES), 2)
    assert (table[:, 1] * mass).sum() == (seen.first < 0).sum()
    assert found["labels"]["byte"]["information"][0]["bits"] > 0
    drawn = next(each for each in figures_of(found) if each.name == "experts-by-byte")
    assert {row[2] for row in drawn.table[1:]} == {"0", "none"}
    rows = {row["kind"]: row["rise"]["mean"] for row in found["ablation"]}
    assert "only" not in rows, "the one expert is alone already"
    assert rows["without"] != 0


def test_a_run_is_found_by_its_cell_and_beside_the_store(texts, tmp_path):
    _, cells = texts
    key = json.loads((cells["relu"] / "record.json").read_text())["provenance"]["cell"]
    shutil.copytree(cells["relu"], tmp_path / "cells" / key)
    run = open_run(key, None, tmp_path, 8)
    assert (run.folder, run.run_id) == (tmp_path / "cells" / key, None)
    assert torch.equal(run.index, open_run(str(run.folder / "record.json"), None, tmp_path, 8).index)
    shutil.move(tmp_path / "cells" / key / "weights.ckpt", tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="has no weights"):
        open_run(key, None, tmp_path, 8)
    torch.save({"state_dict": {"arm.other": torch.zeros(1)}}, tmp_path / "cells" / key / "weights.ckpt")
    with pytest.raises(UsageError, match="do not fit this version of the code"):
        open_run(key, None, tmp_path, 8)


def test_padding_counts_nowhere():
    data = load("domains", domains=["python", "mathematics"], window=16, bytes_per_domain=30000)
    run = untrained(data, 12, "topk", {"name": "decoder", "d_model": 16, "depth": 1, "heads": 2})
    mask = torch.ones(12, 16, dtype=torch.bool)
    mask[3, 9:] = False
    whole = observe(run.arm, run.batches()).layers[0]
    run = replace(run, sample=replace(run.sample, mask=mask))
    seen = observe(run.arm, run.batches()).layers[0]
    assert np.array_equal(seen.real, mask.numpy())
    assert seen.share[3, 9:].sum() == seen.prob[3, 9:].sum() == 0
    assert (seen.first[3, 9:] == -1).all()
    assert np.array_equal(seen.first[mask.numpy()], whole.first[mask.numpy()])
    found = analyze(run)
    assert found["layers"][0]["unrouted"] == 0
    assert found["paths"]["tokens"] == mask.sum()
    assert len(found["labels"]["domain"]["distribution"][0][0]) == 4, "padding is no token without an expert"
