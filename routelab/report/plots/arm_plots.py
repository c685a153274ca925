"""Figures of how arms differ and how they train: differences, curves, members, experts, tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routelab.core.intervals import mean_interval
from routelab.core.number_format import is_bounded
from routelab.records.derived_values import curve_points
from routelab.report.arm_labels import marked, marks
from routelab.report.interval_labels import intervals_of
from routelab.report.plots import plot_style as drawing
from routelab.report.plots.plot_style import Drawn, Record
from routelab.tracking.load_heatmap import load_figure, load_table


def forest(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Paired differences in log loss with their intervals, and the margin within which arms count as equal."""
    arms = {label: arm for label, arm in (summary.get("arms") or {}).items() if is_bounded(arm.get("difference"))}
    if not arms:
        return None
    figure, axes, _ = drawing.sheet(0, 0, 1.2 + 0.42 * len(arms))
    margin, reference = summary.get("margin"), summary.get("reference")
    if margin:
        axes.axvspan(-margin, margin, color="#7d838a", alpha=0.18, linewidth=0)
    axes.axvline(0, color="#7d838a", linewidth=1)
    table: list[list[Any]] = [["arm", "mean", "low", "high", "n", "state", "seed_error", "unit_error"]]
    place = drawing.places(summary)
    for row, (label, arm) in enumerate(arms.items()):
        each, shade = arm["difference"], drawing.colour(place[label])
        axes.plot([each["low"], each["high"]], [row, row], color=shade, linewidth=2, solid_capstyle="butt")
        axes.plot([each["mean"]], [row], drawing.marker(place[label]), color=shade)
        errors = [each.get(key) for key in ("seed_error", "unit_error")]
        table.append([label, each["mean"], each["low"], each["high"], each["n"], arm.get("state"), *errors])
    axes.set_yticks(range(len(arms)), [marked(label, arm.get("marks")) for label, arm in arms.items()])
    axes.invert_yaxis()
    axes.set_xlabel(f"log test loss minus that of {reference} (left is better)")
    note = f"Paired by seed; lines are {intervals_of(summary)}. "
    if margin:
        note += f"The band is the margin of {margin:g} within which arms count as equal."
    return Drawn("differences", f"Differences from {reference}", "Paired differences in log test loss", note, figure, table)


def loss_curves(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Validation loss against cumulative training FLOPs: each arm's mean with its 95% band, its seeds faint."""
    wanted = set(summary.get("arms") or {record.get("arm") for record in records})
    curves: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    place = drawing.places(summary)
    for record in records:
        points = sorted(dict(curve_points(record)).items()) if record.get("status") == "ok" else []
        if points and record.get("arm") in wanted:
            arm = str(record.get("arm"))
            curves.setdefault((arm, marked(arm, marks(record))), []).append(points)
    if not curves:
        return None
    figure, axes, columns = drawing.sheet(len(curves), max(len(shown) for _, shown in curves))
    table: list[list[Any]] = [["arm", "flops", "mean", "low", "high", "seeds"]]
    handles = []
    for number, ((name, arm), lines) in enumerate(curves.items()):
        index = place.get(name, number)
        means = _mean_line(lines)
        x, mean = [point[0] for point in means], [point[1] for point in means]
        if len(lines) > 1:
            for line in lines:
                axes.plot(*zip(*line, strict=True), drawing.dash(index), color=drawing.colour(index), alpha=0.3, linewidth=0.6)
            low, high = [point[2] for point in means], [point[3] for point in means]
            axes.fill_between(x, low, high, color=drawing.colour(index), alpha=0.12, linewidth=0)
        handles += axes.plot(
            x,
            mean,
            drawing.dash(index),
            color=drawing.colour(index),
            linewidth=2.0,
            marker="o" if len(x) == 1 else None,
            label=arm,
        )
        table += [[arm, *point, len(lines)] for point in means]
    drawing.log_axis(axes.xaxis, [x for lines in curves.values() for line in lines for x, _ in line])
    axes.set_xlabel("cumulative training FLOPs")
    axes.set_ylabel("validation loss")
    drawing.legend(figure, handles, [shown for _, shown in curves], columns)
    return Drawn(
        "loss", "Loss against training FLOPs", "Validation loss against cumulative training FLOPs, one line for each arm",
        "Bold: the mean over an arm's seeds; the band is its 95% t-interval over seeds. Faint: single seeds. Points inside a schedule are for "
        "looking: verdicts are about where runs end.", figure, table,
    )  # fmt: skip


def diversity(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Members beside their ensemble: how much is gained by combining, and how alike their errors are."""
    arms = {
        label: arm
        for label, arm in (summary.get("arms") or {}).items()
        if (arm.get("diversity") or {}).get("error_correlation") is not None and arm.get("loss")
    }
    if not arms:
        return None
    figure, axes, columns = drawing.sheet(len(arms), max(map(len, arms)))
    place, handles = drawing.places(summary), []
    table: list[list[Any]] = [["arm", "error_correlation", "disagreement", "member_loss", "loss"]]
    for label, arm in arms.items():
        found, loss, index = arm["diversity"], arm["loss"]["mean"], place[label]
        x = found["error_correlation"]
        axes.plot([x, x], [found["member_loss"], loss], drawing.dash(index), color=drawing.colour(index), linewidth=1.5)
        axes.plot(
            [x], [found["member_loss"]], drawing.marker(index), color=drawing.colour(index), fillstyle="none", markersize=8
        )
        handles += axes.plot([x], [loss], drawing.marker(index), color=drawing.colour(index), markersize=8)
        table.append([label, x, found.get("disagreement"), found["member_loss"], loss])
    axes.set_xlabel("mean correlation of two members' errors (left is more diverse)")
    axes.set_ylabel("test loss")
    drawing.legend(figure, handles, list(arms), columns)
    return Drawn(
        "diversity", "Members and ensembles", "Test loss of members and of their ensembles against the correlation of errors",
        "Hollow: the mean member; filled: the ensemble. Means over seeds.", figure, table,
    )  # fmt: skip


def tuning_budget(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """What tuning bought: the expected best validation loss against tuning FLOPs (Dodge et al. 2019). None without a sweep."""
    curves = {label: arm["expected_best"] for label, arm in (summary.get("tuning") or {}).items() if arm["expected_best"]}
    if not curves:
        return None
    figure, axes, columns = drawing.sheet(len(curves), max(map(len, curves)))
    place, handles = drawing.places(summary), []
    table: list[list[Any]] = [["arm", "trials", "tuning_flops", "expected_best_validation_loss"]]
    for position, (label, curve) in enumerate(curves.items()):
        index = place.get(label, position)
        x, y = [point["flops"] for point in curve], [point["loss"] for point in curve]
        handles += axes.plot(x, y, drawing.dash(index), marker=drawing.marker(index), markersize=3, color=drawing.colour(index))
        table += [[label, point["trials"], point["flops"], point["loss"]] for point in curve]
    drawing.log_axis(axes.xaxis, [row[2] for row in table[1:]])
    axes.set_xlabel("tuning FLOPs")
    axes.set_ylabel("expected best validation loss")
    drawing.legend(figure, handles, list(curves), columns)
    return Drawn(
        "tuning", "What tuning bought", "Expected best validation loss against tuning FLOPs",
        "The expected lowest loss of so many trials drawn from those that were made (Dodge et al. 2019); the FLOPs of pruned and "
        "failed trials are spread over the complete ones. A sampler that learns makes later trials better than that.",
        figure, table,
    )  # fmt: skip


def load_maps(summary: Mapping[str, Any], records: Sequence[Record]) -> list[Drawn]:
    """Load of the experts over training, of each routed arm's first seed."""
    found = []
    for index, label in enumerate(summary.get("arms") or ()):
        record = next((r for r in records if r.get("arm") == label and r.get("load") and r.get("status") == "ok"), None)
        figure = None if record is None else load_figure(record)
        if record is None or figure is None:
            continue
        # As paths: a page without other files may show no image.
        for panel in figure.axes:
            for mesh in panel.collections:
                mesh.set_rasterized(False)
        table = [line.split(",") for line in (load_table(record) or "").splitlines()]
        found.append(
            Drawn(
                f"load-{index}",
                f"Load of the experts: {label}",
                f"Heat map of the load of {label}'s experts over training",
                f"Seed {record['seed']}, one panel for each mixture layer.",
                figure,
                list(table),
            )
        )
    return found


def _mean_line(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float, float, float]]:
    """(x, mean, low, high) where all seeds have a value, each seed interpolated between its own points."""
    import numpy as np

    low, high = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    grid = sorted({x for line in lines for x, _ in line if low <= x <= high})
    if not grid:
        longest = max(lines, key=len)
        return [(x, y, y, y) for x, y in longest]
    values = np.array([np.interp(grid, [x for x, _ in line], [y for _, y in line]) for line in lines])
    intervals = [mean_interval(column) for column in values.T]
    found = zip(grid, intervals, strict=True)
    return [
        (x, each.mean, each.low, each.high) if len(lines) > 1 else (x, each.mean, each.mean, each.mean) for x, each in found
    ]
