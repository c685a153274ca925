"""Files of test units: read as written, small, and a damaged one is a missing one."""

import numpy as np
import pytest
import torch

from routelab.comparison import units_export
from routelab.comparison.units_export import write_units_file
from routelab.core.errors import StorageError
from routelab.data.task import Batch, InputSpec, Task
from routelab.data.unit_table import MAX_UNITS, UnitIndex, UnitSums, UnitTable
from routelab.records.json_io import write_json
from routelab.records.run_cache import cell_folder, finished, unit_table_of
from routelab.records.unit_file import UNITS, read_units, units_digest, write_units

MEGABYTE_LIMIT = 50e6


def table(rows=5, domain=True, seed=0):
    draw = np.random.default_rng(seed)
    names = np.array(["law", "medicine"])[np.arange(rows) % 2] if domain else None
    sums = {"count": draw.integers(1, 9, rows).astype(float), "loss": draw.lognormal(size=rows)}
    return UnitTable(np.arange(rows) * 3, names, sums)


def assert_same(one, other):
    assert one.unit.tolist() == other.unit.tolist()
    assert (one.domain is None) == (other.domain is None)
    assert one.domain is None or one.domain.tolist() == other.domain.tolist()
    assert list(one.sums) == list(other.sums)
    for name, values in one.sums.items():
        assert other.sums[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("domain", [True, False])
def test_read_as_written(tmp_path, domain):
    write_units(tmp_path / "new" / UNITS, table(domain=domain))
    result = read_units(tmp_path / "new" / UNITS)
    assert_same(result, table(domain=domain))
    assert result.unit.dtype == np.int64
    assert [path.name for path in (tmp_path / "new").iterdir()] == [UNITS]


def test_a_missing_or_damaged_file_is_none(tmp_path):
    path = tmp_path / UNITS
    assert read_units(path) is None
    write_units(path, table())
    content_of_file = path.read_bytes()
    for content in (content_of_file[:-20], b"", b"no Parquet", content_of_file[:40] + b"\0" * 40 + content_of_file[80:]):
        path.write_bytes(content)
        assert read_units(path) is None


@pytest.mark.parametrize("column", ["unit", "loss"])
def test_a_column_of_another_type_is_damage(tmp_path, column):
    import pyarrow as pa
    from pyarrow import parquet

    write_units(tmp_path / UNITS, table())
    rows = parquet.read_table(tmp_path / UNITS)
    rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(["x"] * len(rows)))
    parquet.write_table(rows, tmp_path / UNITS)
    assert read_units(tmp_path / UNITS) is None


def test_a_million_documents_take_less_than_50_mb(tmp_path):
    draw = np.random.default_rng(0)
    length = draw.lognormal(7, 1.5, MAX_UNITS).astype(np.int64) + 1
    sums = {"count": length.astype(float), "loss": length * draw.lognormal(0, 0.3, MAX_UNITS), "bytes": length.astype(float)}
    path = tmp_path / UNITS
    write_units(path, UnitTable(np.arange(MAX_UNITS), np.array(["law", "medicine"])[np.arange(MAX_UNITS) % 2], sums))
    size = path.stat().st_size
    print(f"{size / 1e6:.1f} MB")
    assert size < MEGABYTE_LIMIT


@pytest.mark.parametrize("outputs", [1, 12])
def test_a_million_rows_of_a_regression_take_less_than_50_mb(tmp_path, outputs):
    """Beyond 6 sums, rows are pooled; those of a run of examples are of single precision, but pools are not."""
    count = 1_000_000
    task = Task("values", "regression", InputSpec("table", (1,)), outputs)
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(count, outputs, generator=draw)
    split = Batch(torch.zeros(count, 1), target)
    sums = UnitSums(task, UnitIndex.from_split(split, task))
    sums.add(torch.randn(count, outputs, generator=draw), target, 0)
    path = tmp_path / UNITS
    write_units(path, sums.table())
    size = path.stat().st_size
    print(f"{outputs} outputs: {size / 1e6:.1f} MB")
    assert size < MEGABYTE_LIMIT
    assert sums.summary() == {"unit": "example", "number": min(count, 6 * count // (2 + 3 * outputs)), "pooled": outputs > 1}


# --- in the cache ---


def mean_loss(units):
    return {"loss": float(units.sums["loss"].sum() / units.sums["count"].sum())}


def rows_of(units, rows):
    """Return some rows of a table."""
    return UnitTable(units.unit[rows], units.domain[rows], {name: values[rows] for name, values in units.sums.items()})


def record_of(output, key, has_file=True, **changes):
    record = {"arm": "dense", "seed": 0, "status": "ok", "provenance": {"cell": key},
              "units": {"unit": "example", "number": 5, "pooled": False}} | changes  # fmt: skip
    units = table(seed=int(record["seed"]))
    by_domain = {name: mean_loss(rows_of(units, units.domain == name)) for name in ("law", "medicine")}
    record = {"test": mean_loss(units), "by_domain": by_domain} | record
    if has_file:
        write_units(cell_folder(output, key) / UNITS, units)
        record["provenance"]["units_sha256"] = units_digest(cell_folder(output, key) / UNITS)
    write_json(cell_folder(output, key) / "record.json", record)
    return record


def test_a_cell_without_its_units_is_trained_again(tmp_path):
    output = tmp_path / "results" / "mine"
    record = record_of(output, "a")
    assert finished(output, "a") == record
    path = cell_folder(output, "a") / UNITS
    path.write_bytes(path.read_bytes()[:-10])
    assert finished(output, "a") is None
    path.unlink()
    assert finished(output, "a") is None
    assert unit_table_of(output, record) is None
    without = record_of(output, "b", has_file=False, units=None)
    assert finished(output, "b") == without
    assert unit_table_of(output, without) is None


def _changed(name, change):
    return lambda units: UnitTable(units.unit, units.domain, units.sums | {name: change(units.sums[name])})


@pytest.mark.parametrize(
    "change",
    [
        lambda units: table(seed=1),
        lambda units: rows_of(units, np.arange(4)),
        lambda units: rows_of(units, np.arange(5)[::-1]),
        lambda units: UnitTable(units.unit, np.roll(units.domain, 1), units.sums),
        lambda units: UnitTable(units.unit, np.array(["law", "poetry"])[np.arange(5) % 2], units.sums),
        lambda units: UnitTable(units.unit, None, units.sums),
        lambda units: UnitTable(units.unit, units.domain, {"loss": units.sums["loss"]}),
        _changed("loss", lambda loss: loss * 1.01),
        _changed("loss", lambda loss: np.where(np.arange(5) == 2, np.nan, loss)),
        _changed("loss", lambda loss: np.where(np.arange(5) == 2, np.inf, loss)),
        _changed("count", lambda count: 0 * count),
    ],
)
def test_a_cell_with_the_units_of_another_run_is_trained_again(tmp_path, change):
    """They would be judged together with the record, and contradict it."""
    output = tmp_path / "results" / "mine"
    record_of(output, "a")
    write_units(cell_folder(output, "a") / UNITS, change(table()))
    assert finished(output, "a") is None


def test_sums_of_single_precision_are_those_of_the_run(tmp_path):
    output = tmp_path / "results" / "mine"
    record = record_of(output, "a", test={"loss": mean_loss(table())["loss"] * (1 + 1e-6)})
    assert finished(output, "a") == record


def test_the_file_of_a_comparison_holds_all_runs(tmp_path):
    from pyarrow import parquet

    output = tmp_path / "results" / "mine"
    records = [
        record_of(output, "a"),
        record_of(output, "b", seed=1),
        record_of(output, "c", has_file=False, status="failed", units=None),
        record_of(output, "d", arm="switch x2", seed=1),
    ]
    output.mkdir()
    write_units_file(output / UNITS, records, output)
    rows = parquet.read_table(output / UNITS).to_pandas()
    assert list(rows.columns) == ["arm", "seed", "unit", "domain", "count", "loss"]
    assert rows["arm"].tolist() == ["dense"] * 10 + ["switch x2"] * 5
    assert rows["seed"].tolist() == [0] * 5 + [1] * 10
    assert_same(unit_table_of(output, records[3]), table(seed=1))
    assert rows["loss"].to_numpy()[10:].tobytes() == table(seed=1).sums["loss"].tobytes()
    write_units_file(output / UNITS, [], output)
    assert not (output / UNITS).exists()


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    output = tmp_path / "results" / "mine"
    record = record_of(output, "a")
    output.mkdir()
    (output / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_units_file(output / "file" / UNITS, [record], output)


def test_an_interrupted_file_of_a_comparison_leaves_the_earlier_one(tmp_path, monkeypatch):
    output = tmp_path / "results" / "mine"
    records = [record_of(output, "a"), record_of(output, "b", seed=1)]
    output.mkdir()
    write_units_file(output / UNITS, records, output)
    content = (output / UNITS).read_bytes()

    def interrupt(output, record):
        if record["seed"]:
            raise KeyboardInterrupt
        return unit_table_of(output, record)

    monkeypatch.setattr(units_export, "unit_table_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_units_file(output / UNITS, records, output)
    assert [path.name for path in output.iterdir()] == [UNITS]
    assert (output / UNITS).read_bytes() == content
