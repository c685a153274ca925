"""Parquet files of test units: one for every run, in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from routelab.data.unit_table import UnitTable
from routelab.records.atomic_file import replaced_at_end

UNITS = "units.parquet"
"""Name of the file in the folder of a run."""

KEYS = ("unit", "domain")
"""Columns that name a row; all others are sums."""


def arrow_table(table: UnitTable) -> Any:
    """Return a table of units as a pyarrow table.

    Args:
        table: Sums by unit and domain.

    Returns:
        Columns unit (int64), domain (dictionary of strings, or null), then the sums (float64).
    """
    import pyarrow as pa

    domain = (
        pa.array([None] * len(table), pa.string()) if table.domain is None else pa.array(table.domain.tolist(), pa.string())
    )
    columns = {"unit": pa.array(table.unit), "domain": domain.dictionary_encode()}
    return pa.table(columns | {name: pa.array(values) for name, values in table.sums.items()})


def encodings(columns: list[str], strings: tuple[str, ...] = ("domain",)) -> dict[str, Any]:
    """Return the options of a Parquet writer for these columns.

    Bytes of equal significance are stored together, so that zstd removes those that do not vary. Single-precision losses of
    examples then take 4 bytes each, and integers fewer, at full precision.

    Args:
        columns: Names of the columns.
        strings: Columns of strings.
    """
    sums = [name for name in columns if name not in ("arm", "seed", *KEYS)]
    return {
        "compression": "zstd",
        "use_dictionary": list(strings),
        "column_encoding": {"unit": "DELTA_BINARY_PACKED"} | dict.fromkeys(sums, "BYTE_STREAM_SPLIT"),
    }


def write_units(path: Path, table: UnitTable) -> None:
    """Write a table, completely or not at all.

    Args:
        path: Path of the file; its folder is made if it does not exist.
        table: Sums by unit and domain.

    Raises:
        OSError: if it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    # Written to memory first: errors of the disk are then Python's own, with their numbers.
    content, columns = pa.BufferOutputStream(), arrow_table(table)
    parquet.write_table(columns, content, **encodings(columns.column_names))
    with replaced_at_end(path) as temporary:
        temporary.write_bytes(content.getvalue())


def units_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file in hexadecimal digits; None if there is none.

    Args:
        path: Path of the file.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_units(path: Path) -> UnitTable | None:
    """Return the table of a file; None if the file is missing or damaged.

    Args:
        path: Path of the file.
    """
    from pyarrow import lib, parquet

    try:
        columns = parquet.read_table(path)
        sums = {name: np.asarray(columns[name], np.float64) for name in columns.column_names if name not in KEYS}
        unit, domain = np.asarray(columns["unit"], np.int64), columns["domain"]
    except (OSError, KeyError, ValueError, TypeError, lib.ArrowException):
        return None
    if domain.null_count == len(columns):
        return UnitTable(unit, None, sums)
    # Names are few and rows are many.
    encoded = domain.combine_chunks().dictionary_encode()
    return UnitTable(unit, np.array(encoded.dictionary.to_pylist(), np.str_)[np.asarray(encoded.indices)], sums)
