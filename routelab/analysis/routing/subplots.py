"""Panels of an analysis: one for each layer that is drawn.

At most four layers are drawn, evenly spaced from the first to the last; the CSV files hold them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 4
GREY = "#7d838a"
TITLES = {"domain": "domain", "class": "class", "target": "quarter of the target", "byte": "kind of byte"}


def shown_layers(count: int) -> list[int]:
    """The layers that are drawn of so many."""
    most = min(count, _PANELS)
    return sorted({round(place * (count - 1) / max(1, most - 1)) for place in range(most)})


def panels_of(layers: Sequence[int], height: float, below: int = 0, square: bool = False) -> tuple[Figure, list[Axes]]:
    """A panel for each layer, two beside each other, with `below` lines for a legend."""
    from matplotlib.figure import Figure

    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(7.5, height * rows + 0.24 * below), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=not square)
    for place, axes in enumerate(grid.flat):
        if place >= len(layers):
            axes.set_visible(False)
            continue
        axes.set_title(f"layer {layers[place]}", fontsize=11)
        if not square:
            axes.grid(True, alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
            whole_numbers(axes)
    return figure, list(grid.flat)[: len(layers)]


def whole_numbers(axes: Axes) -> None:
    """Ticks for layers and experts."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
