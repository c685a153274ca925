"""`routelab list`: what is registered, with its origin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from routelab.cli.arguments import JsonOption
from routelab.core.errors import unknown


def list_command(
    kind: Annotated[str | None, typer.Argument(metavar="[routers|experts|backbones|baselines|data|presets]")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is registered, with its origin.

    Example: routelab list routers
    """
    from rich.table import Table

    from routelab.backbones.backbone_registry import BACKBONES
    from routelab.baselines.baseline_registry import BASELINES
    from routelab.cli.output import console, print_json
    from routelab.core.registry import Registry
    from routelab.data.dataset_registry import DATA
    from routelab.experts.expert_registry import KINDS
    from routelab.presets import PRESETS
    from routelab.routers.router_registry import ROUTERS

    kinds: dict[str, Registry[Any]] = {
        "routers": ROUTERS,
        "experts": KINDS,
        "backbones": BACKBONES,
        "baselines": BASELINES,
        "data": DATA,
    }
    if kind not in (None, "presets", *kinds):
        raise unknown("kind", kind, (*kinds, "presets"))
    from routelab.routers.router_metadata import read

    known = read()
    rows = [
        {
            "name": name,
            "kind": title,
            "origin": registry.origin(name),
            # `problem` imports plugins, so that the list shows the error of a broken one. It imports no built-in part.
            "summary": registry.problem(name) or registry.summary(name),
            **(known.get(name, {}) if registry is ROUTERS and registry.origin(name) == "built in" else {}),
        }
        for title, registry in kinds.items()
        if kind in (None, title)
        for name in registry.names()
    ]
    if kind in (None, "presets"):
        rows += [
            {"name": name, "kind": "presets", "origin": "built in", "summary": preset.summary}
            for name, preset in PRESETS.items()
        ]
    if as_json:
        print_json(rows)
        return
    out = console()
    view = Table(header_style="")
    columns = _ROUTER_COLUMNS if kind == "routers" else {name: lambda row, name=name: row[name] for name in _COLUMNS}
    for column in columns:
        view.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        view.add_row(*(show(row) for show in columns.values()))
    out.print(view)


_COLUMNS = ("kind", "name", "origin", "summary")


def _matches(row: dict[str, Any]) -> str:
    """The references whose outputs this router's layer gives, and the largest difference."""
    gaps = {each["reference"]: each["outputs"] for each in row.get("parity", ())}
    return "; ".join(f"{name} to {gap:.0e}" if gap else f"{name} exactly" for name, gap in gaps.items())


_ROUTER_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "origin": lambda row: row["origin"],
    "causal": lambda row: _said(row.get("causal")),
    "batch-coupled": lambda row: _said(row.get("batch_coupled")),
    "matches": _matches,
    "paper": lambda row: row.get("paper") or "",
    "summary": lambda row: row["summary"].replace(f" ({row.get('paper')})", ""),
}
"""What is shown of a router; of a plugin's, dependence and parity are not recorded (`routelab check router` tests them)."""


def _said(value: bool | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "yes" if value else "no"
