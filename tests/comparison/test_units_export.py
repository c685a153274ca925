"""units.parquet of a comparison from end to end: it adds up to results.csv, and a lost table is computed again."""

import csv
from collections import defaultdict

import pytest
from pyarrow import parquet

from routelab.comparison import compare as comparison
from routelab.comparison.compare import compare
from routelab.records.run_cache import cell_folder, unit_table_of
from routelab.records.unit_file import UNITS


def words(folder, *extra):
    return [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=3", "trainer.checks=1",
        "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "experts.count=4", "seeds=2", "workers=1",
        "arms=[dense,switch,random_forest]", *extra,
    ]  # fmt: skip


@pytest.mark.slow
def test_units_add_up_to_the_results(tmp_path, in_this_process, monkeypatch):
    sent = []
    log = comparison.Tracker.log_artifacts
    monkeypatch.setattr(
        comparison.Tracker, "log_artifacts", lambda self, run, paths: (sent.append(paths), log(self, run, paths))
    )
    with in_this_process():
        first = compare(words(tmp_path, "dense_ladder=[1,2]"))
    output = tmp_path / "results/mine"
    rows = parquet.read_table(output / UNITS).to_pylist()
    assert output / UNITS in sent[0]
    assert {row["arm"] for row in rows} == {record["arm"] for record in first.records}
    assert len(rows) == 360 * len(first.records)
    totals = defaultdict(lambda: {"count": 0.0, "loss": 0.0, "correct": 0.0})
    for row in rows:
        for name in ("count", "loss", "correct"):
            totals[row["arm"], row["seed"]][name] += row[name]
    for row in csv.DictReader((output / "results.csv").open()):
        total = totals[row["arm"], int(row["seed"])]
        assert total["loss"] / total["count"] == pytest.approx(float(row["test_loss"]), rel=1e-9)
        assert total["correct"] / total["count"] == float(row["test_accuracy"])

    # A lost table is computed again, to the same bits; a large file stays out of MLflow.
    record = first.records[0]
    table = unit_table_of(output, record)
    (cell_folder(output, record["provenance"]["cell"]) / UNITS).unlink()
    monkeypatch.setattr(comparison, "MAX_ARTIFACT_BYTES", 2000)
    with in_this_process():
        second = compare(words(tmp_path, "dense_ladder=[1,2]"))
    assert second.reused == len(first.records) - 1
    assert unit_table_of(output, record).sums["loss"].tobytes() == table.sums["loss"].tobytes()
    assert output / UNITS not in sent[1]
