"""CSV files. Only this module writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from routelab.records.json_io import write_text


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV with Unix line ends; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV, completely or not at all; None is an empty field."""
    write_text(path, csv_text(rows))
