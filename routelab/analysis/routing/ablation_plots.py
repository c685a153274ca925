"""The figures of an analysis that show what the loss does when experts are taken away, alone, or chosen otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from routelab.analysis.routing.subplots import GREY, TITLES, panels_of, shown_layers
from routelab.report.plots.plot_style import Drawn, colour, legend, marker, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]

_INTERVALS = "95% t-intervals over documents, or over examples where none are known"
_SINGLE = {
    "without": ("Loss without an expert", "The expert's rows go to nothing; weights of the others stay as they are."),
    "only": ("One expert alone", "In this layer one expert does the work of all, with the sum of each token's weights."),
}


def single_experts(found: Found, kind: str) -> Drawn | None:
    """Rise of the loss with one expert off, or alone, for each expert."""
    rows_of = [row for row in found["ablation"] if row["kind"] == kind]
    if not rows_of:
        return None
    places = sorted({row["layer"] for row in rows_of})
    layers = [places[place] for place in shown_layers(len(places))]
    figure, panels = panels_of(layers, 2.5)
    for axes, layer in zip(panels, layers, strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        for row in rows_of:
            if row["layer"] == layer:
                _bar(axes, row["expert"], row["rise"], 0)
        axes.set_xlabel("expert")
    for axes in panels[::2]:
        axes.set_ylabel("rise of the test loss")
    title, note = _SINGLE[kind]
    table: list[list[Any]] = [["layer", "expert", "rise", "low", "high", "units"]]
    table += [[row["layer"], row["expert"], *_numbers(row["rise"])] for row in rows_of]
    return Drawn(
        f"loss-{kind}", title, f"{title}: rise of the test loss for each expert",
        f"{note} Nothing is trained anew. {_INTERVALS}, paired with the whole model.", figure, table,
    )  # fmt: skip


def by_group(found: Found, name: str) -> Drawn | None:
    """Rise of the loss without each expert, for each domain or class."""
    rows_of = [row for row in found["ablation"] if row["kind"] == "without" and row["by"].get(name)]
    if not rows_of:
        return None
    names = [each for each in found["labels"][name]["names"] if any(each in row["by"][name] for row in rows_of)]
    places = sorted({row["layer"] for row in rows_of})
    layers = [places[place] for place in shown_layers(len(places))]
    columns = max(1, min(3, 84 // (max(map(len, names)) + 8)))
    figure, panels = panels_of(layers, 2.7, math.ceil(len(names) / columns))
    handles: list[Any] = []
    for axes, layer in zip(panels, layers, strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        mine, handles = [row for row in rows_of if row["layer"] == layer], []
        for index, group in enumerate(names):
            shift = 0.6 * ((index + 0.5) / len(names) - 0.5)
            for row in mine:
                if group in row["by"][name]:
                    _bar(axes, row["expert"] + shift, row["by"][name][group], index, thin=True)
            handles += axes.plot([], [], marker(index), color=colour(index))
        axes.set_xlabel("expert")
    for axes in panels[::2]:
        axes.set_ylabel("rise of the test loss")
    legend(figure, handles, names, columns)
    table: list[list[Any]] = [["layer", "expert", name, "rise", "low", "high", "units"]]
    table += [
        [row["layer"], row["expert"], group, *_numbers(each)] for row in rows_of for group, each in row["by"][name].items()
    ]
    return Drawn(
        f"loss-without-by-{name}", f"Loss without an expert, by {TITLES[name]}",
        f"Rise of the test loss without each expert, by {TITLES[name]}",
        f"An expert that serves one group hurts that group when it is gone. {_INTERVALS}.", figure, table,
    )  # fmt: skip


_REROUTED = {"random": "random routing", "swapped": "another example's routing", "even": "even weights"}


def rerouting(found: Found) -> Drawn | None:
    """Rise of the loss when experts are drawn, taken from another example, or weighed alike."""
    rows_of = [row for row in found["ablation"] if row["kind"] in _REROUTED]
    if not rows_of:
        return None
    figure, axes, columns = sheet(3, 26, 3.2)
    count = len(found["layers"])
    places = [None, *range(count)] if count > 1 else list(range(count))
    axes.axhline(0, color=GREY, linewidth=1)
    handles = []
    for index, kind in enumerate(_REROUTED):
        for row in rows_of:
            if row["kind"] == kind:
                _bar(axes, places.index(row["layer"]) + 0.18 * (index - 1), row["rise"], index)
        handles += axes.plot([], [], marker(index), color=colour(index))
    axes.set_xticks(range(len(places)), ["all" if place is None else str(place) for place in places])
    axes.set_xlabel("layer")
    axes.set_ylabel("rise of the test loss")
    legend(figure, handles, list(_REROUTED.values()), columns)
    table: list[list[Any]] = [["kind", "layer", "rise", "low", "high", "units"]]
    table += [[row["kind"], "all" if row["layer"] is None else row["layer"], *_numbers(row["rise"])] for row in rows_of]
    return Drawn(
        "rerouting", "Does it matter who does the work?", "Rise of the test loss under random, swapped and even routing",
        "Random: experts drawn evenly, as many and with the same weights. Another example's: the plan of the example before it, position by "
        f"position. Even: the same experts, all with the mean weight. {_INTERVALS}.", figure, table,
    )  # fmt: skip


def _bar(axes: Axes, x: float, rise: Mapping[str, Any], index: int, thin: bool = False) -> None:
    """A mean with its interval."""
    if all(math.isfinite(rise[key]) for key in ("low", "high")):
        axes.plot([x, x], [rise["low"], rise["high"]], color=colour(index), linewidth=1 if thin else 2, alpha=0.7)
    axes.plot([x], [rise["mean"]], marker(index), color=colour(index), markersize=4 if thin else 6)


def _numbers(interval: Mapping[str, Any]) -> list[Any]:
    return [interval[key] for key in ("mean", "low", "high", "n")]
