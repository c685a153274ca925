"""The figure and the table of arms that were judged against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from routelab.core.number_format import is_bounded
from routelab.report.interval_labels import intervals_of, is_older
from routelab.report.plots.plot_style import Drawn, Record, colour, places

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDES = {"load_cv": "load CV", "max_violation": "MaxVio", "dead_experts": "dead experts", "drop_rate": "drop rate in training"}


def pairs(summary: Mapping[str, Any], records: Sequence[Record]) -> Drawn | None:
    """Differences in log loss of every pair, and how even the load of its two arms is. None without pairs."""
    from matplotlib.figure import Figure

    judged, arms = summary.get("pairs") or [], summary.get("arms") or {}
    if not judged:
        return None
    of_seeds = [is_older(summary) or pair.get("covered") == ["seeds"] for pair in judged]
    by_signs = any(of_seeds)
    table: list[list[Any]] = [
        ["arm", "against", "difference", "low", "high", "n", "state", "seed_error", "unit_error", "p_holm"]
        + [*(["p_sign_flip"] if by_signs else []), "loss", "against_loss"]
        + [f"{side}{key}" for key in _SIDES for side in ("", "against_")]
    ]
    for pair, has_signs in zip(judged, of_seeds, strict=True):
        both = [arms[pair["arm"]], arms[pair["against"]]]
        gap = pair.get("difference") or {}
        losses = [(each.get("loss") or {}).get("mean") for each in both]
        table.append(
            [pair["arm"], pair["against"], *(gap.get(part) for part in ("mean", "low", "high", "n"))]
            + [pair.get("state"), gap.get("seed_error"), gap.get("unit_error"), pair.get("p_holm")]
            + ([pair.get("p_sign_flip") if has_signs else None] if by_signs else [])
            + [*losses, *(_load(each, key) for key in _SIDES for each in both)]
        )
    shown = [key for key in _SIDES if any(_load(arms[pair["arm"]], key) is not None for pair in judged)]
    figure = Figure(figsize=(7.5, 1.5 + 0.45 * len(judged)), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), sharey=True, squeeze=False, width_ratios=[2.5, *[1] * len(shown)])[0]
    _forest(axes[0], summary, judged)
    place = places(summary)
    for panel, key in zip(axes[1:], shown, strict=True):
        largest = 0.0
        for row, pair in enumerate(judged):
            ends = [_load(arms[pair[side]], key) for side in ("arm", "against")]
            shade = colour(place[pair["arm"]])
            if None not in ends:
                panel.plot(ends, [row, row], color=shade, linewidth=1)
            for end, filled in zip(ends, ("full", "none"), strict=True):
                if end is not None:
                    panel.plot([end], [row], "o", color=shade, fillstyle=filled, markersize=7, clip_on=False)
                    largest = max(largest, end)
        panel.set_xlabel(_SIDES[key].removesuffix(" in training"))
        panel.set_xlim(0, 1.15 * largest or 1.0)
    for panel in axes:
        panel.grid(True, alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    intervals = intervals_of(summary, [(f"{pair['arm']} against {pair['against']}", pair) for pair in judged])
    note = (
        f"Left: log test loss of the first arm minus the second's, paired by seed, with {intervals}; the band is the margin "
        "within which two arms count as equal. Right: filled, the first arm; hollow, the second. Load CV, MaxVio (largest load "
        "over the mean, less 1) and dead experts are of what routers ask for on the test split; the drop rate is that of training."
    )
    return Drawn(
        "pairs", "Arms in pairs", "Paired differences of arms judged against each other", note, figure, table, tabled=True
    )


def _forest(axes: Axes, summary: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> None:
    place, margin = places(summary), summary.get("margin")
    if margin:
        axes.axvspan(-margin, margin, color="#7d838a", alpha=0.18, linewidth=0)
    axes.axvline(0, color="#7d838a", linewidth=1)
    for row, pair in enumerate(judged):
        gap, shade = pair.get("difference"), colour(place[pair["arm"]])
        if gap is None:
            continue
        if is_bounded(gap):
            axes.plot([gap["low"], gap["high"]], [row, row], color=shade, linewidth=2, solid_capstyle="butt")
        axes.plot([gap["mean"]], [row], "o", color=shade)
    axes.set_yticks(range(len(judged)), [f"{pair['arm']}\n\u2212 {pair['against']}" for pair in judged], fontsize=9)
    axes.set_ylim(len(judged) - 0.5, -0.5)
    axes.set_xlabel("log test loss, difference")


def _load(arm: Mapping[str, Any], key: str) -> Any:
    """The drop rate is of training; the rest is of the test split."""
    return arm.get(key) if key == "drop_rate" else (arm.get("telemetry") or {}).get(key)
