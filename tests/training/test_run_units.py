"""A tested run leaves its sums by test unit, which add up to its test metrics; other runs leave none."""

from dataclasses import replace

import pytest

from routelab.baselines.base import ArmSpec
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.data.base import load
from routelab.records.unit_file import UNITS, read_units
from routelab.training.run import execute

VIT = {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}
DECODER = {"name": "decoder", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}
TOKENS = {"name": "tokens", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}
TEXT = {"name": "domains", "bytes_per_domain": 60_000, "window": 64, "domains": ["medicine", "mathematics"]}
FLIGHTS = {"name": "flights", "rows": 500, "split": "days"}


def spec(arm="dense", backbone=VIT, data=None, **changes):
    base = RunSpec(
        arm, ArmSpec(arm, backbone, {"count": 4}), 0, data or {"name": "digits"}, Budget(steps=3), Optimizer(),
        TrainerOptions(batch_size=32, checks=1, accelerator="cpu"),
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("arm", "backbone", "data", "unit", "number"),
    [
        ("switch", VIT, None, "image", 360),
        ("random_forest", VIT, None, "image", 360),
        ("switch", DECODER, TEXT, "document", 3),
        ("dense", TOKENS, FLIGHTS, "day", 24),
    ],
)
def test_units_add_up_to_the_test_metrics(tmp_path, arm, backbone, data, unit, number):
    run = execute(spec(arm, backbone, data), folder=tmp_path)
    assert run.record["status"] == "ok", run.record["error"]
    assert run.record["units"]["unit"] == unit
    assert run.record["units"]["number"] == number
    assert run.record["units"]["pooled"] is False
    table = read_units(tmp_path / UNITS)
    assert table.unit.tolist() == run.units.unit.tolist()
    totals = {name: values.sum() for name, values in table.sums.items()}
    assert totals["loss"] / totals["count"] == pytest.approx(run.record["test"]["loss"], rel=1e-6)
    if "accuracy" in run.record["test"]:
        assert totals["correct"] / totals["count"] == run.record["test"]["accuracy"]
    if "r2" in run.record["test"]:
        mean = totals["target_0"] / totals["count"]
        spread = totals["target_square_0"] / totals["count"] - mean**2
        r2 = 1 - totals["squared_error_0"] / totals["count"] / spread
        assert r2 == pytest.approx(run.record["test"]["r2"], rel=1e-6)
    for domain, metrics in run.record["by_domain"].items():
        in_domain = table.domain == domain
        loss = table.sums["loss"][in_domain].sum() / table.sums["count"][in_domain].sum()
        assert loss == pytest.approx(metrics["loss"], rel=1e-6)


@pytest.mark.parametrize("arm", ["dense", "random_forest"])
def test_without_a_test_there_are_none(tmp_path, arm):
    run = execute(spec(arm), folder=tmp_path, test=False)
    assert run.record["status"] == "ok"
    assert run.units is None
    assert run.record["units"] is None
    assert not (tmp_path / UNITS).exists()


def test_a_failed_run_has_none(tmp_path):
    data = load("digits")
    far = replace(data, test=replace(data.test, inputs=data.test.inputs * float("inf")))
    run = execute(spec(), data=far, folder=tmp_path)
    assert run.record["status"] == "failed"
    assert run.units is None
    assert run.record["units"] is None
    assert not (tmp_path / UNITS).exists()


@pytest.mark.long
def test_two_processes_leave_the_same_file(tmp_path):
    """With a rate near 0 both have the initial weights; sums of halves differ in the rounding of their products."""
    base = spec("dense", DECODER, TEXT, optimizer=Optimizer(lr=1e-30))
    one = execute(base, folder=tmp_path / "one")
    two = execute(replace(base, trainer=replace(base.trainer, devices=2)), folder=tmp_path / "two")
    assert two.units is None
    assert two.record["units"] == one.record["units"]
    tables = [read_units(tmp_path / part / UNITS) for part in ("one", "two")]
    assert tables[0].unit.tolist() == tables[1].unit.tolist()
    assert tables[0].domain.tolist() == tables[1].domain.tolist()
    assert tables[0].sums["count"].tolist() == tables[1].sums["count"].tolist()
    assert tables[1].sums["loss"] == pytest.approx(tables[0].sums["loss"], rel=1e-6)
