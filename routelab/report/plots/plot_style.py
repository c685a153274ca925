"""How figures look: colours that a light and a dark page share, numbers in few characters, SVG for a page and PNG for a paper."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routelab.core.number_format import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#010203"
"""The colour of axes and text in a drawn figure, replaced by that of the page: light and dark share one drawing."""

_COLOURS = (
    "#2a7fc1", "#d2691e", "#2e9440", "#d43d3d", "#9a6cd0", "#a0685a", "#d0549f", "#7d838a", "#8f8a1a", "#1391a3",
)  # fmt: skip
"""Lines: each has a contrast of at least 3.6 to the light page and to the dark one."""

_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")

_LEGEND_WIDTH = 84
"""Letters that fit beside each other below a drawn figure."""


Record = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A figure of a report. name: of its files. alt: for who does not see it. table: its numbers, a header first. tabled:
    whether they stand below it."""

    name: str
    title: str
    alt: str
    note: str
    figure: Figure
    table: list[list[Any]]
    tabled: bool = False


def colour(index: int) -> str:
    """The colour of the index-th arm."""
    return _COLOURS[index % len(_COLOURS)]


def dash(index: int) -> str:
    """The line of the index-th arm: arms of one colour differ in it."""
    return _DASHES[index // len(_COLOURS) % len(_DASHES)]


def marker(index: int) -> str:
    """The marker of the index-th arm, likewise."""
    return _MARKERS[index // len(_COLOURS) % len(_MARKERS)]


def sheet(labels: int, longest: int, height: float = 4.3) -> tuple[Figure, Axes, int]:
    """A figure with one plot, room for a legend of so many labels below it, and the legend's columns."""
    from matplotlib.figure import Figure

    # As many columns as the longest label leaves room for.
    columns = max(1, min(3, labels, _LEGEND_WIDTH // (longest + 8)))
    figure = Figure(figsize=(7.5, height + 0.24 * math.ceil(labels / columns)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes, columns


def legend(figure: Figure, handles: list[Any], labels: list[str], columns: int) -> None:
    """Below the plot. Handles are passed because a label that begins with an underscore is otherwise left out."""
    figure.legend(handles=handles, labels=labels, loc="outside lower center", ncols=columns, frameon=False)


def log_axis(axis: Any, values: list[float]) -> None:
    """A logarithmic axis where values span more than a factor of 10, with short numbers either way."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if high > 10 * low > 0:
        axis._set_axes_scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def style(name: str = "") -> Any:  # The keys are typed one by one from matplotlib 3.11 on, and were text before.
    """The settings to draw and to save under. name: makes identifiers in an SVG differ from those of other figures."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    return {
        **dict.fromkeys(ink, _INK),
        "svg.fonttype": "none",
        "svg.hashsalt": f"routelab {name}",
        "text.parse_math": False,
        "font.size": 11,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


def inline_svg(figure: Figure, name: str = "") -> str:
    """The figure as an `<svg>` element that follows the page's colours and names no address."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(style(name)):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    return svg.replace("xlink:href", "href").replace(_INK, "currentColor")


def save_png(figure: Figure, path: Path) -> None:
    """The figure on white, at 160 dots per inch."""
    import matplotlib

    with matplotlib.rc_context(style()):
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def places(summary: Mapping[str, Any]) -> dict[str, int]:
    """Where each arm stands: it has the same colour in every figure."""
    return {label: index for index, label in enumerate(summary.get("arms") or ())}
