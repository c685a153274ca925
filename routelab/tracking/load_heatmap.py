"""Heat maps of the experts' load over training, from a finished record.

Axes: N checks, L mixture layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from routelab.records.csv_io import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS, _BRIGHTEST = 4, 4.0


def load_table(record: Mapping[str, Any]) -> str | None:
    """CSV with a row for every check, layer and expert: step, flops (training FLOPs so far), layer, expert, share (of the
    layer's load), load (the share times E: 1 is balance). None where nothing was routed."""
    if not record.get("load"):
        return None
    rows = [
        (int(point["step"]), point["flops"], layer, expert, round(load / len(loads), 6), load)
        for point, layers in zip(record["curve"], record["load"], strict=True)
        for layer, loads in enumerate(layers)
        for expert, load in enumerate(loads)
    ]
    return csv_text([("step", "flops", "layer", "expert", "share", "load"), *rows])


def load_figure(record: Mapping[str, Any]) -> Figure | None:
    """One panel per mixture layer: training FLOPs across, experts up, colour the expert's load (its share times E).

    White is balance, blue below it and red above, up to 4 times the mean; an expert that no token chose is black. The colour
    at a check fills the FLOPs since the check before. Where stages of an arm have other layers, those of the last stage are
    shown. None where nothing was routed.
    """
    if not record.get("load"):
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    sizes = [[len(loads) for loads in layers] for layers in record["load"]]
    first = len(sizes) - next((back for back, size in enumerate(reversed(sizes)) if size != sizes[-1]), len(sizes))
    edges = [0.0, *(point["flops"] for point in record["curve"])][first:]
    layers_LEN = [np.array(loads).T for loads in zip(*record["load"][first:], strict=True)]
    columns = min(_COLUMNS, len(layers_LEN))
    rows = -(-len(layers_LEN) // columns)
    # Placed by hand: matplotlib's own layouts take longer than all the rest.
    width, height = 1.9 + 3.2 * columns, 1.1 + 2.4 * rows
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    figure.subplots_adjust(0.7 / width, 0.5 / height, 1 - 1.2 / width, 1 - 0.6 / height, wspace=0.15, hspace=0.45)
    norm, colours = TwoSlopeNorm(1.0, 0.0, _BRIGHTEST), colormaps["RdBu_r"].with_extremes(bad="black")
    for panel in grid.flat[len(layers_LEN) :]:
        panel.set_visible(False)
    for layer, (panel, load_EN) in enumerate(zip(grid.flat, layers_LEN, strict=False)):
        _panel(panel, edges, load_EN, norm, colours)
        panel.set_title(f"layer {layer}, {len(load_EN)} experts", fontsize=9)
    for panel in grid[:, 0]:
        panel.set_ylabel("expert")
    for below in range(columns):
        last = max(row for row in range(rows) if row * columns + below < len(layers_LEN))
        grid[last, below].set_xlabel("training FLOPs")
        grid[last, below].tick_params(labelbottom=True)
    place = figure.add_axes((1 - 1.05 / width, 0.5 / height, 0.15 / width, 1 - 1.1 / height))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=place, extend="max", ticks=[0, 0.5, 1, 2, 3, _BRIGHTEST])
    bar.set_label("share x experts (black: none)", fontsize=9)
    figure.suptitle(f"{record.get('arm')}, seed {record.get('seed')}: load of the experts on the validation split", fontsize=10)
    return figure


def _panel(panel: Any, edges: list[float], load_EN: NDArray[Any], norm: Any, colours: Any) -> None:
    """One layer's map. An expert's row is centred on its number."""
    places = np.arange(len(load_EN) + 1) - 0.5
    panel.pcolormesh(edges, places, np.ma.masked_equal(load_EN, 0.0), norm=norm, cmap=colours, rasterized=True)
    # Masked cells are transparent to pcolormesh in some releases: what lies behind them says the same.
    panel.set_facecolor("black")
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.tick_params(labelsize=8)
