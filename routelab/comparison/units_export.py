"""units.parquet of a comparison: the sums by test unit of all its runs, in one table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.core.errors import StorageError
from routelab.records.atomic_file import replaced_at_end
from routelab.records.run_cache import unit_table_of
from routelab.records.unit_file import arrow_table, encodings


def write_units_file(path: Path, records: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write a row for every arm, seed, test unit and domain: arm, seed, unit, domain, then the sums.

    Runs are copied one by one, so that memory holds one of them. A run without a table, such as a failed one, has no rows.
    Without any table there is no file.

    Args:
        path: the file, written completely or not at all.
        records: the records of the comparison's runs; `arm` is the label of the arm at its size and budget.
        output: the folder of the comparison, beside which the runs lie.

    Raises:
        StorageError: if the file cannot be written.
    """
    from pyarrow import parquet

    tables = _tables(records, output)
    first = next(tables, None)
    try:
        if first is None:
            path.unlink(missing_ok=True)
            return
        options = encodings(first.column_names, ("arm", "domain"))
        with replaced_at_end(path) as temporary, parquet.ParquetWriter(temporary, first.schema, **options) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table.select(first.column_names))
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def _tables(records: Sequence[Mapping[str, Any]], output: Path) -> Iterator[Any]:
    """Yield the rows of one run after another."""
    import pyarrow as pa

    for record in records:
        units = unit_table_of(output, record)
        if units is None:
            continue
        table = arrow_table(units)
        arm = pa.DictionaryArray.from_arrays(pa.array([0] * len(units), pa.int32()), pa.array([record["arm"]], pa.string()))
        seed = pa.array([record["seed"]] * len(units), pa.int64())
        yield table.add_column(0, "seed", seed).add_column(0, "arm", arm)
