"""`routelab compare` of a configuration that names a published experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import typer
from rich.table import Table

from routelab.cli.output import console, print_json


def show(experiment: ModuleType, words: Sequence[str], as_json: bool, print_config: bool) -> None:
    """Run it, print its tables beside the published ones, and leave the rows in its output folder."""
    from routelab.comparison.compare import check_writable
    from routelab.core.errors import UsageError
    from routelab.records.json_io import write_json
    from routelab.records.provenance import provenance
    from routelab.reproductions.tables import HEADER, lines, verdict

    for word in words[1:]:
        if "=" not in word:
            raise UsageError(f"argument {word!r} is not key=value; a configuration file comes first")
    settings = experiment.settings_of(words[0], words[1:])
    if print_config:
        typer.echo("\n".join(f"{name}: {value}" for name, value in asdict(settings).items()))
        return
    folder = Path(settings.output)
    check_writable(folder)
    out, rows = console(as_json), []
    for found in experiment.run(settings):
        rows += found
        for criterion in dict.fromkeys(row["criterion"] for row in found):
            chosen = [row for row in found if row["criterion"] == criterion]
            out.print(f"{experiment.Reading.of(chosen[0])}; criterion {settings.criterion:g} {criterion}")
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
    if as_json:
        print_json(rows)
