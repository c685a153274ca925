"""Figures and tables of series: what an option buys, and what it costs beside FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from routelab.core.number_format import finite, format_exact_change, is_bounded
from routelab.report.interval_labels import describe_intervals
from routelab.report.plots.plot_style import Drawn, colour, legend, log_axis, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = 8
"""Values that span this factor, or more, stand on a logarithmic axis."""

_GREY = "#7d838a"


def series(summary: Mapping[str, Any]) -> list[Drawn]:
    """One figure for each option (or options that vary together) that arms run through: loss with intervals, total parameters,
    memory and speed against the option's value, the reference as a line."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for each in summary.get("series") or ():
        found.setdefault(tuple(each["options"]), []).append(each)
    return [_drawn(summary, options, lines) for options, lines in found.items()]


def _drawn(summary: Mapping[str, Any], options: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> Drawn:
    from matplotlib.figure import Figure

    arms, reference = summary.get("arms") or {}, summary.get("reference")
    unit = "tokens" if summary.get("tokens_per_example") else "examples"
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    (loss, params), (memory, speed) = figure.subplots(2, 2)
    where = _positions([point["at"] for line in lines for point in line["points"]])
    handles: list[Any] = []
    names: list[str] = []
    for index, line in enumerate(lines):
        shade, shape = colour(index), marker(index)
        points = [(where[_key(point["at"])], figures_of_arm(summary, arms[point["arm"]])) for point in line["points"]]
        for x, each in points:
            if is_bounded(each["loss"]):
                loss.plot([x, x], [each["loss"]["low"], each["loss"]["high"]], color=shade, linewidth=2, alpha=0.6)
        drawn = _line(loss, [(x, (each["loss"] or {}).get("mean")) for x, each in points], shade, shape, "-")
        handles += drawn
        names += [line["name"]] * len(drawn)  # Not of arms that failed on every seed.
        for axes, keys in ((params, ("total_params",)), (memory, ("held",)), (speed, ("predicted", "trained"))):
            for key, dashes in zip(keys, ("-", ":"), strict=False):
                _line(axes, [(x, each[key]) for x, each in points], shade, shape, dashes)
    if reference in arms:
        own = figures_of_arm(summary, arms[reference])
        if is_bounded(own["loss"]):
            loss.axhspan(own["loss"]["low"], own["loss"]["high"], color=_GREY, alpha=0.18, linewidth=0)
        pairs = ((loss, (own["loss"] or {}).get("mean"), "-"), (params, own["total_params"], "-"), (memory, own["held"], "-"),
                 (speed, own["predicted"], "-"), (speed, own["trained"], ":"))  # fmt: skip
        for axes, value, dashes in pairs:
            if value is not None:
                handle = axes.axhline(value, color=_GREY, linewidth=1.5, linestyle=dashes)
                if axes is loss:
                    handles.append(handle)
                    names.append(str(reference))
    titles = ("test loss", "total parameters", "bytes of parameters and optimizer", f"{unit} per second (dotted: training)")
    for axes, title in zip((loss, params, memory, speed), titles, strict=True):
        _finish(axes, where, options, title, log=axes is not loss)
    legend(figure, handles, names, max(1, min(3, len(names))))
    named = " and ".join(options)
    losses = {label: arm.get("loss") for label, arm in arms.items()}
    note = (
        f"Loss: means over seeds with {describe_intervals(summary, losses, sequential=False)}. Memory: what parameters and optimizer "
        f"state hold. Solid {unit} per second: "
        "predictions of all arms in turn, in batches as large as were timed; dotted: training, on a machine that may have been busy."
    )
    return Drawn(
        f"series-{'-'.join(options)}", f"What {named} buys and costs", f"Loss, parameters, memory and speed against {named}", note,
        figure, _table(summary, options, lines, unit), tabled=True,
    )  # fmt: skip


def figures_of_arm(summary: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """What a series shows of an arm: `loss` (an interval), `total_params`, `held` and `peak` (bytes), `predicted` and `trained`
    (tokens per second of text, else examples per second)."""
    memory, tokens = arm.get("memory") or {}, summary.get("tokens_per_example") or 1
    timed = {int(size): seconds for size, seconds in (arm.get("inference") or {}).items() if finite(seconds)}
    drawn = finite(arm.get("examples_per_second"))
    held = [memory[key] for key in ("parameters", "optimizer") if memory.get(key) is not None]
    return {
        "loss": arm.get("loss"),
        "total_params": finite(arm.get("total_params")),
        "held": sum(held) if held else None,
        "peak": finite(memory.get("peak")),
        "predicted": tokens / timed[max(timed)] if timed else None,
        "trained": None if drawn is None else tokens * drawn,
    }


def _table(
    summary: Mapping[str, Any], options: Sequence[str], lines: Sequence[Mapping[str, Any]], unit: str
) -> list[list[Any]]:
    arms, reference = summary.get("arms") or {}, summary.get("reference")
    change_from = f"change_from_{reference or 'reference'}"
    heading = ["arm", *options, "loss", "low", "high", change_from, "change_low", "change_high", "n", "state"]
    heading += ["change_seed_error", "change_unit_error"]
    heading += ["leverage", "leverage_low", "leverage_high", "leverage_bound", "flops_ratio", "active_params", "total_params"]
    heading += ["bytes_held", "bytes_peak", f"{unit}_per_second_predicting", f"{unit}_per_second_training"]
    rows: list[list[Any]] = [heading]
    of_reference = [(reference, [None] * len(options))] if reference in arms else []
    for label, at in [*of_reference, *((point["arm"], point["at"]) for line in lines for point in line["points"])]:
        arm = arms[label]
        own = figures_of_arm(summary, arm)
        change = {part: format_exact_change((arm.get("difference") or {}).get(part)) for part in ("mean", "low", "high")}
        of_loss, of_worth = arm.get("loss") or {}, (arm.get("leverage") or {}).get("own") or {}
        row = [label, *at, *(of_loss.get(part) for part in ("mean", "low", "high")), *change.values()]
        errors = [format_exact_change((arm.get("difference") or {}).get(key)) for key in ("seed_error", "unit_error")]
        row += [arm.get("n"), arm.get("state"), *errors, *(of_worth.get(part) for part in ("mean", "low", "high", "bound"))]
        row += [arm.get("flops_ratio"), arm.get("active_params"), own["total_params"], own["held"], own["peak"]]
        rows.append([*row, own["predicted"], own["trained"]])
    return rows


def _key(at: Sequence[Any]) -> tuple[str, ...]:
    """The values as they are written below the axis."""
    return tuple("null" if value is None else str(value) for value in at)


def _positions(values: Sequence[Sequence[Any]]) -> dict[tuple[str, ...], float]:
    """Where each value of the options stands: at its number, where the first option tells them apart by numbers above 0; else
    one after the other."""
    distinct = {_key(at): at for at in values}
    numbers = [finite(at[0]) if not isinstance(at[0], bool) else None for at in distinct.values()]
    if all(number is not None and number > 0 for number in numbers) and len(set(numbers)) == len(distinct):
        return {key: number for key, number in zip(distinct, numbers, strict=True) if number is not None}
    return {key: float(position) for position, key in enumerate(distinct)}


def _line(axes: Axes, points: Sequence[tuple[float, float | None]], shade: str, shape: str, dashes: str) -> list[Any]:
    there = sorted((x, y) for x, y in points if y is not None)
    if not there:
        return []
    x, y = zip(*there, strict=True)
    return axes.plot(x, y, dashes, marker=shape, color=shade, markersize=6)


def _finish(axes: Axes, where: Mapping[tuple[str, ...], float], options: Sequence[str], title: str, log: bool) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    x = list(where.values())
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.zeros(0)])
    if log and drawn.size:
        log_axis(axes.yaxis, drawn.tolist())
    if max(x) >= _WIDE * min(x) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, ["\n".join(key) for key in where])
    axes.set_xlabel(", ".join(options))
    axes.set_title(title, fontsize=11)
    axes.grid(True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
