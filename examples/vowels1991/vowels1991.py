"""Command that runs the vowel experiment of 1991 (docs/vowels1991.md).

python examples/vowels1991/vowels1991.py [KEY=VALUE]...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from report_1991 import HEADER, lines, verdict
from rich.table import Table
from vowel_experiment import Reading, run, settings_of

from routelab.cli.app import guarded
from routelab.cli.output import console, print_json
from routelab.core.errors import UsageError
from routelab.records.json_io import check_writable, write_json
from routelab.records.provenance import provenance

CONFIG = Path(__file__).with_name("vowels1991.yaml")


def main(arguments: Sequence[str]) -> None:
    """Run the experiment, print its tables beside the published ones, and write all rows to the output folder.

    Args:
        arguments: KEY=VALUE overrides of vowels1991.yaml, and options.

    Raises:
        UsageError: if an override is not KEY=VALUE, or its key or value is not allowed.
    """
    parser = argparse.ArgumentParser(description="Run the vowel experiment of 1991.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Settings of vowels1991.yaml.")
    parser.add_argument("--json", action="store_true", help="Print the rows as JSON.")
    parser.add_argument("--print-config", action="store_true", help="Show the settings and run nothing.")
    options = parser.parse_args(arguments)
    for override in options.overrides:
        if "=" not in override:
            raise UsageError(f"argument {override!r} is not key=value")
    settings = settings_of(CONFIG, options.overrides)
    if options.print_config:
        print("\n".join(f"{name}: {value}" for name, value in asdict(settings).items()))
        return
    folder = Path(settings.output)
    check_writable(folder)
    out, rows = console(options.json), []
    for of_reading in run(settings):
        rows += of_reading
        for criterion in dict.fromkeys(row["criterion"] for row in of_reading):
            chosen = [row for row in of_reading if row["criterion"] == criterion]
            out.print(f"{Reading.of(chosen[0])}; criterion {settings.criterion:g} {criterion}")
            table = Table(header_style="")
            for name in HEADER:
                table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
            for line in lines(chosen, settings.epochs):
                table.add_row(*line)
            out.print(table)
            out.print(verdict(chosen, settings.epochs))
    result = {"settings": asdict(settings), "rows": rows, "provenance": provenance()}
    write_json(folder / "table.json", result)
    out.print(f"Rows: {folder / 'table.json'}")
    if options.json:
        print_json(rows)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
