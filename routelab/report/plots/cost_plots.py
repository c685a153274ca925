"""Figures of what quality costs: in FLOPs, in size, in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.core.number_format import is_bounded, pluralise
from routelab.records.derived_values import spent
from routelab.report.arm_labels import marked
from routelab.report.interval_labels import unit_of
from routelab.report.plots import plot_style as drawing
from routelab.report.plots.plot_style import Drawn, Record


def quality_per_flop(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Where runs end: test loss against training FLOPs, seeds as clouds, and the dense frontier."""
    frontier, rows, place = summary.get("frontier") or {}, summary.get("rows") or {}, drawing.places(summary)
    # arm -> row -> ends of its runs: the reference's other rows are the ladder, an arm's are its sizes and budgets.
    ends: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        loss, label = (record.get("test") or {}).get("loss"), str(record.get("arm"))
        if record.get("status") == "ok" and loss is not None and record.get("flops_model"):
            arm = rows.get(label, {}).get("arm", label)
            ends.setdefault(arm, {}).setdefault(label, []).append((spent(record), float(loss)))
    if not ends:
        return None
    figure, axes, columns = drawing.sheet(len(ends) + 1, max(map(len, ends)))
    table: list[list[Any]] = [["arm", "row", "flops", "test_loss"]]
    handles, labels = [], []
    for arm, of_rows in ends.items():
        index, means = place.get(arm, len(place)), []
        for label, points in of_rows.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, drawing.marker(index), color=drawing.colour(index), alpha=0.35, markersize=4, linewidth=0)
            means.append((math.exp(sum(map(math.log, x)) / len(x)), sum(y) / len(y)))
            table += [[arm, label, *point] for point in points]
        means.sort()
        # Sizes of one budget would make a zigzag of a line: only budgets of one size are joined.
        joined = len({rows.get(label, {}).get("size", 1.0) for label in of_rows}) == 1
        line = drawing.dash(index) if joined else ""
        handles += axes.plot(
            *zip(*means, strict=True), line, marker=drawing.marker(index), color=drawing.colour(index), markersize=8
        )
        labels.append(marked(arm, (summary.get("arms") or {}).get(arm, {}).get("marks")))
    if frontier.get("front"):
        handles += axes.plot(*zip(*frontier["front"], strict=True), "-", color="#7d838a", linewidth=1.5)
        labels.append("dense frontier")
        table += [["dense frontier", None, *point] for point in frontier["front"]]
    drawing.log_axis(axes.xaxis, [row[2] for row in table[1:]])
    axes.set_xlabel("training FLOPs of the whole run")
    axes.set_ylabel("test loss")
    drawing.legend(figure, handles, labels, columns)
    below = "; below the line, an arm does better than dense models of the same cost" if frontier.get("front") else ""
    return Drawn(
        "quality", "Quality per FLOP", "Test loss against training FLOPs at the ends of runs",
        f"Large: means; small: single seeds. Below and left is better{below}. FLOPs of earlier runs that an arm builds on are "
        "counted.", figure, table,
    )  # fmt: skip


def leverage_by_target(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Efficiency leverage over the dense frontier, at the loss that an arm ends with and at others that it reaches."""
    arms = {label: arm["leverage"] for label, arm in (summary.get("arms") or {}).items() if arm.get("leverage")}
    if not arms:
        return None
    figure, axes, columns = drawing.sheet(len(arms), max(map(len, arms)))
    table: list[list[Any]] = [["arm", "loss", "leverage", "low", "high", "bound"]]
    handles = []
    axes.axhline(1, color="#7d838a", linewidth=1)
    place = drawing.places(summary)
    for label, each in arms.items():
        own, index = each["own"], place[label]
        points = sorted([{**point, "bound": "="} for point in each["at"]] + [own], key=lambda point: point["loss"])
        shape = {">": "^", "<": "v"}.get(own["bound"], drawing.marker(index))
        handles += axes.plot([own["loss"]], [own["mean"]], shape, color=drawing.colour(index), markersize=8)
        if each["at"]:
            axes.plot(
                [p["loss"] for p in points], [p["mean"] for p in points], drawing.dash(index), color=drawing.colour(index)
            )
        for point in points:
            if is_bounded(point):
                axes.plot(
                    [point["loss"]] * 2, [point["low"], point["high"]], color=drawing.colour(index), linewidth=2, alpha=0.6
                )
            table.append([label, point["loss"], point["mean"], point["low"], point["high"], point["bound"]])
    drawing.log_axis(axes.yaxis, [*(row[2] for row in table[1:]), 1.0])
    axes.invert_xaxis()
    axes.set_xlabel("target: test loss (right is better)")
    axes.set_ylabel("efficiency leverage")
    names = {"seeds": "seeds", "examples": f"groups of test {pluralise(unit_of(summary))}"}
    covered = [set(arm["leverage"].get("covered") or ["seeds"]) for arm in summary["arms"].values() if arm.get("leverage")]
    samples = " and ".join(name for source, name in names.items() if all(source in sources for sources in covered))
    drawing.legend(figure, handles, [marked(label, summary["arms"][label].get("marks")) for label in arms], columns)
    return Drawn(
        "leverage", "Efficiency leverage", "FLOPs that the dense frontier needs for a loss, over those of each arm",
        f"FLOPs that dense models need for the same loss, over the arm's: above 1, the arm needs fewer. Bars: 95% jackknife "
        f"intervals over {samples}. Triangles: the ladder does not reach that loss, so the leverage is above (up) or below (down) the mark.",
        figure, table,
    )  # fmt: skip


def isoflop(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Loss against size at fixed training FLOPs: one line for each arm and budget. None unless arms have several sizes."""
    rows, place = summary.get("rows") or {}, drawing.places(summary)
    if not any(row["size"] != 1.0 for row in rows.values() if row["arm"] != summary.get("reference")):
        return None
    ends: dict[tuple[str, float], dict[float, list[tuple[float, float]]]] = {}
    for record in records:
        row, loss = rows.get(str(record.get("arm"))), (record.get("test") or {}).get("loss")
        if row and record.get("status") == "ok" and loss is not None and record.get("flops_per_example"):
            of_arm = ends.setdefault((row["arm"], row["budget"]), {})
            of_arm.setdefault(row["size"], []).append((float(record["flops_per_example"]), float(loss)))
    if not ends:
        return None
    arms = list(dict.fromkeys(arm for arm, _ in ends))
    figure, axes, columns = drawing.sheet(len(arms), max(map(len, arms)))
    table: list[list[Any]] = [["arm", "budget", "size", "flops_per_example", "test_loss", "seeds"]]
    handles = {}
    widest = max(budget for _, budget in ends)
    for (arm, budget), of_arm in ends.items():
        index = place.get(arm, len(place))
        points = sorted((sum(x for x, _ in runs) / len(runs), sum(y for _, y in runs) / len(runs)) for runs in of_arm.values())
        (line,) = axes.plot(
            *zip(*points, strict=True),
            drawing.dash(index),
            marker=drawing.marker(index),
            color=drawing.colour(index),
            linewidth=0.6 + 1.8 * budget / widest,
        )
        handles[arm] = line
        for size, runs in sorted(of_arm.items()):
            mean = [sum(values) / len(runs) for values in zip(*runs, strict=True)]
            table.append([arm, budget, size, *mean, len(runs)])
    drawing.log_axis(axes.xaxis, [row[3] for row in table[1:]])
    axes.set_xlabel("forward FLOPs per example")
    axes.set_ylabel("test loss")
    drawing.legend(figure, list(handles.values()), list(handles), columns)
    return Drawn(
        "isoflop", "IsoFLOP curves", "Test loss against size at fixed training FLOPs",
        "Along a line all runs spent the same training FLOPs: larger models saw fewer examples. The thicker, the larger the budget. "
        "Means over seeds.", figure, table,
    )  # fmt: skip


def time_against_flops(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Seconds against training FLOPs: what the FLOPs cost on this machine."""
    wanted = set(summary.get("arms") or ())
    ends: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record.get("status") == "ok" and record.get("arm") in wanted and record.get("seconds") and record.get("flops_model"):
            ends.setdefault(str(record["arm"]), []).append((float(record["flops_model"]), float(record["seconds"])))
    if not ends:
        return None
    figure, axes, columns = drawing.sheet(len(ends), max(map(len, ends)))
    table: list[list[Any]] = [["arm", "flops", "seconds"]]
    handles, place = [], drawing.places(summary)
    for arm, points in ends.items():
        index, (x, y) = place[arm], zip(*points, strict=True)
        axes.plot(x, y, drawing.marker(index), color=drawing.colour(index), alpha=0.35, markersize=4, linewidth=0)
        handles += axes.plot(
            [sum(x) / len(x)], [sum(y) / len(y)], drawing.marker(index), color=drawing.colour(index), markersize=8
        )
        table += [[arm, *point] for point in points]
    drawing.log_axis(axes.xaxis, [row[1] for row in table[1:]])
    drawing.log_axis(axes.yaxis, [row[2] for row in table[1:]])
    axes.set_xlabel("training FLOPs of the whole run")
    axes.set_ylabel("seconds")
    drawing.legend(figure, handles, list(ends), columns)
    return Drawn(
        "time", "Time against FLOPs", "Training time against training FLOPs",
        "Large: means; small: single seeds. An arm can win on FLOPs and lose on the clock. Times are those of this machine, whose "
        "load may have varied.", figure, table,
    )  # fmt: skip
