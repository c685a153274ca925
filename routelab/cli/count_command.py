"""`routelab count`: what a published model, or the arms of a configuration, hold and cost. Nothing is trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routelab.cli.arguments import JsonOption, resolve_overrides
from routelab.core.errors import UsageError
from routelab.core.number_format import format_binary_count, format_count

if TYPE_CHECKING:
    from routelab.presets.architecture import Preset

CONTEXT, PRECISION = 4096, "bf16"


def count_command(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET|CONFIG] [KEY=VALUE]...", help="A preset, or what `compare` takes.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Of a preset: positions that a token sees (4096).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of a preset: how weights are stored (bf16), such as fp8, mxfp4.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, active parameters and FLOPs, without training: of a published model, or of a configuration's arms as matched.

    Example: routelab count mixtral-8x7b --precision fp8 --context 32768
    """
    name = named_preset(arguments or [])
    if name is not None:
        count_preset(name, context, precision, as_json)
        return
    for option, value in (("--context", context), ("--precision", precision)):
        if value is not None:
            raise UsageError(
                f"{option} {value} goes with a preset; the arms of a configuration have their data's own positions"
            )
    raise typer.Exit(count_arms(resolve_overrides(arguments), as_json))


def named_preset(words: list[str]) -> str | None:
    """The preset that the words of a call name, or None if they are those of a configuration."""
    first = words[0] if words else ""
    if not first or "=" in first or Path(first).suffix in (".yaml", ".yml") or Path(first).is_file():
        return None
    if len(words) > 1:
        raise UsageError(f"argument {words[1]!r} stands after {first!r}; a preset takes no key=value")
    return first


def count_preset(name: str, context: int | None, stored: str | None, as_json: bool) -> None:
    """Print what a preset holds and costs, in closed form."""
    from rich.table import Table

    from routelab.cli.output import console, print_json
    from routelab.presets import preset
    from routelab.presets.precision import precision

    context = CONTEXT if context is None else context
    if context < 1:
        raise UsageError(f"--context {context} must be at least 1")
    counted = counts(preset(name), context, stored or PRECISION)
    if as_json:
        print_json(counted)
        return
    chosen = precision(stored or PRECISION)
    out, view = console(), Table(header_style="", title=counted["title"], title_justify="left")
    for column in ("", "exact", ""):
        view.add_column(column, justify="right" if column else "left", no_wrap=True)
    for label, key, write in (
        ("parameters", "total_params", format_count),
        ("active per token, everything counted", "active_params", format_count),
        ("active without the input embedding (the published way)", "active_params_without_embedding", format_count),
        ("buffers beside the parameters", "buffers", format_count),
        (f"forward FLOPs per token at {context} positions", "flops_per_token", format_count),
        ("  of them attention's scores and mixtures", "attention_flops_per_token", format_count),
        (f"weights in {chosen.name}, bytes", "weight_bytes", format_binary_count),
        ("cache per token, bytes", "cache_bytes_per_token", format_binary_count),
        (f"cache at {context} positions, bytes", "cache_bytes", format_binary_count),
    ):
        view.add_row(label, f"{counted[key]:,}", write(counted[key]))
    out.print(view)
    parts = ", ".join(f"{part} {count:,}" for part, count in counted["parts"].items() if count)
    out.print(f"Parameters: {parts}", soft_wrap=True)
    out.print(f"{chosen.name}: {chosen.note}", soft_wrap=True)
    if counted["note"]:
        out.print(f"Note: {counted['note']}", soft_wrap=True)
    out.print(f"Its layer here: {' '.join(counted['layer'])}", soft_wrap=True)


def counts(chosen: Preset, context: int, stored: str) -> dict[str, Any]:
    """All counts of a preset: whole numbers, and the words that make its mixture layer."""
    from routelab.presets.precision import precision

    whole, form = chosen.parts(), precision(stored)
    return {
        "name": chosen.name,
        "title": chosen.title,
        "total_params": whole.total,
        "active_params": chosen.active.total,
        "active_params_without_embedding": chosen.active_without_embedding,
        "buffers": chosen.buffers,
        "context": context,
        "flops_per_token": chosen.flops(context),
        "attention_flops_per_token": chosen.attention_flops(context),
        "precision": form.name,
        "weight_bytes": form.weight_bytes(whole),
        "cache_bytes_per_token": form.cache_bytes(chosen.cached_per_token),
        "cache_bytes": form.cache_bytes(chosen.cached(context)),
        "parts": asdict(whole),
        "layer": chosen.words,
        "note": chosen.note,
    }


def count_arms(resolved: Any, as_json: bool) -> int:
    """Print what the arms of a configuration hold and cost at the widths that `compare` would give them; 1 if one fails.

    A configuration that names `arm` and no `arms` is one for `train`: that arm, and the reference that it is matched to.
    """
    from routelab.baselines.build import arm_class
    from routelab.cli.output import print_json
    from routelab.comparison.matching import match_arms
    from routelab.comparison.train_one import with_reference
    from routelab.config.resolve import seed_list
    from routelab.data.base import load
    from routelab.records.lineage import Origins
    from routelab.tracking.artifacts import store_at

    config = resolved.config
    single = "arm" in resolved.sources and "arms" not in resolved.sources
    data = load(**config.data)
    seed = config.seed if single else seed_list(config)[0]
    choices = Origins.of(config, data, store_at(config.tracking.uri)).choices([config.arm] if single else config.arms, seed)
    matched = match_arms(with_reference(config, choices) if single else choices, data.task, config.match)
    rows = [
        {
            "name": arm.choice.label,
            "total_params": arm.total_params,
            "active_params": arm.active_params,
            "flops_per_example": None if arm.flops_per_example is None else round(arm.flops_per_example),
            "ratio": arm.ratio,
            "widths": {knob: arm.choice.spec.get(knob) for knob in arm_class(arm.choice.spec.name)(arm.choice.spec).knobs},
            "error": arm.error,
        }
        for arm in matched
    ]
    if as_json:
        print_json(rows)
    else:
        _show_arms(resolved, rows)
    return int(any(row["error"] for row in rows))


def _show_arms(resolved: Any, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from routelab.cli.output import console

    out, view = console(), Table(header_style="")
    for column in ("arm", "parameters", "active", "FLOPs per example", "ratio", "widths"):
        view.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for row in rows:
        flops, ratio = row["flops_per_example"], row["ratio"]
        widths = ", ".join(f"{knob}={'default' if width is None else width}" for knob, width in row["widths"].items())
        view.add_row(
            row["name"], f"{row['total_params']:,}", f"{row['active_params']:,}", "n/a" if flops is None else f"{flops:,}",
            "-" if ratio is None else f"{ratio:.3f}", widths or "-",
        )  # fmt: skip
    match = resolved.config.match
    how = "as configured" if match.on == "none" else f"matched to {match.reference!r} on {match.on}"
    out.print(f"{resolved.name}: {resolved.config.data['name']}, backbone {resolved.config.backbone.get('name')}, {how}")
    out.print(view)
    for row in rows:
        if row["error"]:
            out.print(f"FAILED {row['name']}: {row['error']}", soft_wrap=True)
