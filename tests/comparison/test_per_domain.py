"""Losses by domain: in records, tables and summary, and their mean is the loss."""

import csv
import math

import numpy as np
import pytest
import torch

from routelab.baselines.base import Prediction
from routelab.baselines.evaluation_metrics import close_look, close_sums
from routelab.comparison.csv_export import write_domains
from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.per_domain import domains_of
from routelab.comparison.statistics.hypothesis_tests import describe_contrast
from routelab.comparison.statistics.two_way import estimate_two_way
from routelab.comparison.summary import summarise
from routelab.config.schema import StatisticsOptions
from routelab.core.flops import Flops
from routelab.data.task import Batch, InputSpec, Task
from routelab.data.unit_table import UnitTable
from routelab.report.comparison_report import write_report


def record(arm, seed, losses):
    by_domain = {name: {"loss": loss, "bits_per_byte": loss / math.log(2)} for name, loss in losses.items()}
    mean = sum(losses.values()) / len(losses)
    return {
        "arm": arm, "seed": seed, "data": "toy", "metric": "bits_per_byte", "status": "ok", "curve": [],
        "test": {"loss": mean, "bits_per_byte": mean / math.log(2)}, "by_domain": by_domain, "flops_model": 1.0,
    }  # fmt: skip


RECORDS = [
    record("dense", 0, {"a": 2.0, "b": 1.0}),
    record("dense", 1, {"a": 2.2, "b": 1.1}),
    record("mine", 0, {"a": 1.0, "b": 1.0}),
    record("mine", 1, {"a": 1.1, "b": 1.1}),
    {**record("mine", 2, {"a": 9.0, "b": 9.0}), "status": "failed"},
]


def describe(contrast):
    return describe_contrast(contrast, StatisticsOptions(), sequential=False)


def by_domain(records, label):
    return domains_of(MetricTables(records), label, "dense", describe, describe)


def test_differences_are_paired_domain_by_domain():
    found = by_domain(RECORDS, "mine")
    assert found["a"]["loss"]["mean"] == pytest.approx(1.05)
    assert found["a"]["difference"]["mean"] == pytest.approx(math.log(0.5))
    assert found["a"]["difference"]["low"] == pytest.approx(math.log(0.5))  # the same with both seeds
    assert found["b"]["difference"]["mean"] == pytest.approx(0.0)
    assert found["a"]["difference"]["n"] == 2
    assert by_domain(RECORDS, "dense")["a"]["difference"] is None
    assert by_domain([{**each, "by_domain": {}} for each in RECORDS], "mine") == {}


def test_domains_cover_the_test_units_of_their_own():
    """A unit's rows by domain: the error over units is that of the domain's losses alone."""
    losses = {"dense": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], "mine": [[1.1, 0.9, 1.3, 1.1], [1.3, 1.1, 1.5, 1.3]]}
    domain, tables, records = np.array(["a", "a", "b", "b"]), {}, []
    for arm, loss_SR in losses.items():
        for seed, loss_R in enumerate(np.array(loss_SR)):
            tables[arm, seed] = UnitTable(np.arange(4), domain, {"loss": loss_R, "count": np.ones(4)})
            means = {name: float(loss_R[domain == name].mean()) for name in "ab"}
            records.append(record(arm, seed, means) | {"units": {"unit": "document", "number": 4, "pooled": False}})
    read = MetricTables(records, lambda each: tables[each["arm"], each["seed"]])
    found = domains_of(read, "mine", "dense", describe, describe)
    for name, columns in (("a", slice(0, 2)), ("b", slice(2, 4))):
        loss_SU = np.array(losses["mine"])[:, columns]
        # Without one of two units, the loss is that of the other one.
        without_SU = np.log(loss_SU[:, ::-1])
        expected = estimate_two_way(np.log(loss_SU.mean(1, keepdims=True)) + without_SU.mean(1, keepdims=True) - without_SU)
        assert found[name]["difference"]["units"] == 2
        assert found[name]["difference"]["mean"] == pytest.approx(expected.mean)
        assert found[name]["difference"]["standard_error"] == pytest.approx(expected.standard_error)


def test_a_row_for_each_arm_seed_and_domain(tmp_path):
    write_domains(tmp_path / "domains.csv", RECORDS)
    rows = list(csv.DictReader((tmp_path / "domains.csv").open()))
    assert list(rows[0]) == ["arm", "seed", "domain", "test_loss", "bits_per_byte"]
    assert [(row["arm"], row["seed"], row["domain"], float(row["test_loss"])) for row in rows[:2]] == [
        ("dense", "0", "a", 2.0),
        ("dense", "0", "b", 1.0),
    ]
    assert len(rows) == 10
    write_domains(tmp_path / "none.csv", [{**each, "by_domain": {}} for each in RECORDS])
    assert not (tmp_path / "none.csv").exists()


def test_the_report_has_a_table_of_domains(tmp_path):
    summary = summarise("toy", RECORDS, ["dense", "mine"], "dense")
    write_report(tmp_path / "report.html", summary, RECORDS, figures=False)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>By domain</h2>" in page
    assert "1.05 -50.0% [-50.0, -50.0]" in page


@pytest.mark.parametrize("parts", [1, 3])
def test_the_mean_over_domains_is_the_loss(parts):
    task = Task("toy", "language", InputSpec("text", (5,), vocab_size=7), 7, domains=3)
    random = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(9, 5, 7, generator=random), torch.randint(7, (9, 5), generator=random)
    domain = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0])  # none of the third
    sums = {}
    for index in torch.arange(9).tensor_split(parts):
        batch = Batch(targets[index], targets[index], domain=domain[index])
        for name, value in close_sums(task, Prediction(outputs[index], Flops(0, 0)), batch).items():
            sums[name] = sums.get(name, 0.0) + value
    found = close_look(task, sums, ("a", "b", "c"))["by_domain"]
    assert list(found) == ["a", "b"]
    mean = (6 * found["a"]["loss"] + 3 * found["b"]["loss"]) / 9
    assert mean == pytest.approx(float(task.loss(outputs, targets).mean()), rel=1e-6)
    assert found["a"]["loss"] == pytest.approx(float(task.loss(outputs, targets)[domain == 0].mean()), rel=1e-6)
