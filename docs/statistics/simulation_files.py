"""Files and command line of the simulations in docs/statistics: a CSV file of rows, and Markdown tables from it."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)]


def write_rows(rows: Sequence[Mapping[str, Any]], output: Path, digits: Mapping[str, int]) -> None:
    """Write rows as CSV.

    Args:
        rows: Rows with the same columns.
        output: Path of the file.
        digits: Column -> decimals of its floats; other floats have four.
    """
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.{digits.get(name, 4)}f}" if isinstance(v, float) else v for name, v in row.items()})


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_script(
    description: str,
    simulate: Callable[[int], Iterator[dict[str, Any]]],
    render: Callable[[Sequence[dict[str, str]]], str],
    output: Path,
    draws: int,
    draws_help: str,
    digits: Mapping[str, int],
    arguments: Sequence[str] | None = None,
) -> None:
    """Simulate the rows, write them as CSV, and print their tables.

    Args:
        description: Description of the command.
        simulate: Function from a number of draws to the rows.
        render: Function from the rows of the CSV file to Markdown.
        output: Path of the CSV file.
        draws: Number of draws, unless the command line gives another.
        draws_help: Meaning of the number of draws.
        digits: Column -> decimals, as in `write_rows`.
        arguments: Words of the command line, None = those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--draws", type=int, default=draws, help=draws_help)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--tables", action="store_true", help="render the existing CSV file without a simulation")
    options = parser.parse_args(arguments)
    if not options.tables:
        write_rows(list(simulate(options.draws)), options.output, digits)
    text = render(read_rows(options.output))
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    print(text)
