"""The one writer of CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routelab.records.json_io import write_text


def write_csv(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    """Rows as CSV, whole or not at all; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    write_text(path, text.getvalue())
