"""The figures and the table of a clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from routelab.analysis.latency.dense_counterparts import MIXTURE
from routelab.analysis.latency.measure import TOKEN, WHOLE
from routelab.analysis.latency.profiler import PARTS
from routelab.core.number_format import is_bounded
from routelab.report.plots.plot_style import Drawn, colour, legend, log_axis, marker, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
_TITLES = {WHOLE: "whole examples", TOKEN: "token by token"}


def figures_of(found: Found) -> list[Drawn]:
    """The ratios of latency, and the shares of the time, each against the batch."""
    import matplotlib

    with matplotlib.rc_context(style()):
        return [ratios(found), shares(found)]


def ratios(found: Found) -> Drawn:
    """The mixture's time over that of each dense model; beside it what each gets done in a second."""
    modes = _modes(found)
    rivals = [name for name in found["arms"] if name != MIXTURE]
    figure, panels = _panels(len(modes), 2)
    handles: list[Any] = []
    for mode, (above, below) in zip(modes, panels, strict=True):
        above.axhline(1, color="#7d838a", linewidth=1)
        values = [1.0]
        for index, name in enumerate([MIXTURE, *rivals]):
            rows = [row for row in found["rows"] if (row["mode"], row["arm"]) == (mode, name)]
            x = [row["batch"] for row in rows]
            look: dict[str, Any] = {"marker": marker(index), "color": colour(index)}
            handle = below.plot(x, [row["per_second"] for row in rows], **look)
            handles += handle if mode == modes[0] else []
            if name == MIXTURE:
                continue
            above.plot(x, [row["ratio"]["mean"] for row in rows], **look)
            values += [row["ratio"]["mean"] for row in rows]
            for row in rows:
                if is_bounded(row["ratio"]):
                    above.plot([row["batch"]] * 2, [row["ratio"]["low"], row["ratio"]["high"]], color=colour(index), alpha=0.6)
            flops = found["arms"][MIXTURE]["flops_per_example"] / found["arms"][name]["flops_per_example"]
            above.axhline(flops, color=colour(index), linewidth=1, linestyle=":")
            values.append(flops)
        log_axis(above.yaxis, values)
        log_axis(below.yaxis, [row["per_second"] for row in found["rows"] if row["mode"] == mode] or [1.0])
        above.set_title(_TITLES[mode], fontsize=11)
        for axes in (above, below):
            _batches(axes, found, mode)
    unit = "tokens" if found["positions"] else "examples"
    panels[0][0].set_ylabel("mixture's time over dense's")
    panels[0][1].set_ylabel(f"{unit} per second")
    legend(figure, handles, [MIXTURE, *rivals], 3)
    return Drawn(
        "latency", "Latency of the mixture over that of dense models", "Ratio of latencies, and throughput, against the batch",
        "Above 1 the mixture is slower. Medians over rounds in which all models take turns, with 95% intervals; dotted, in the same "
        f"colours: the ratio of FLOPs. {machine(found)}", figure, table(found),
    )  # fmt: skip


def shares(found: Found) -> Drawn:
    """Where the time goes, stacked to 1, against the batch, of every model."""
    modes, names = _modes(found), list(found["arms"])
    figure, panels = _panels(len(modes), len(names))
    handles: list[Any] = []
    rows: list[list[Any]] = [["mode", "batch", "arm", *PARTS]]
    for mode, column in zip(modes, panels, strict=True):
        for name, axes in zip(names, column, strict=True):
            mine = [row for row in found["rows"] if (row["mode"], row["arm"]) == (mode, name)]
            rows += [[mode, row["batch"], name, *(row["parts"][part] for part in PARTS)] for row in mine]
            base = [0.0] * len(mine)
            drawn = []
            for index, part in enumerate(PARTS):
                values = [row["parts"][part] for row in mine]
                drawn.append(axes.bar(range(len(mine)), values, bottom=base, color=colour(index), width=0.8))
                base = [low + value for low, value in zip(base, values, strict=True)]
            handles = drawn
            axes.set_xticks(range(len(mine)), [str(row["batch"]) for row in mine])
            axes.set_ylim(0, 1)
            axes.set_title(f"{name}, {_TITLES[mode]}" if len(modes) > 1 else name, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        column[-1].set_xlabel("batch")
    for axes in panels[0]:
        axes.set_ylabel("share of the time")
    legend(figure, handles, list(PARTS), 3)
    return Drawn(
        "parts", "Where the time goes", "Shares of the time by part, against the batch",
        "Passes of their own, taken apart by a clock that charges every moment to the innermost part; on a GPU it waits for the "
        "device at every part, which makes those passes longer. Dispatch: what a mixture layer does besides the router's and the "
        "experts' products.", figure, rows,
    )  # fmt: skip


def table(found: Found) -> list[list[Any]]:
    """Every row, flat."""
    heading = [
        "mode",
        "batch",
        "arm",
        "seconds",
        "low",
        "high",
        "per_second",
        "ratio",
        "ratio_low",
        "ratio_high",
        "rounds",
        "bytes",
    ]
    rows: list[list[Any]] = [[*heading, *PARTS]]
    for row in found["rows"]:
        seconds, ratio = row["seconds"], row["ratio"] or {}
        rows.append(
            [row["mode"], row["batch"], row["arm"], seconds["mean"], seconds["low"], seconds["high"], row["per_second"]]
            + [ratio.get(part) for part in ("mean", "low", "high")]
            + [seconds["n"], row["bytes"], *(row["parts"][part] for part in PARTS)]
        )
    return rows


def machine(found: Found) -> str:
    """Where it was measured."""
    on = found["machine"]
    threads = "" if on["device"].startswith("cuda") else f", {on['threads']} thread{'' if on['threads'] == 1 else 's'}"
    return f"On {on['name']}{threads}, {on['precision']}, torch {on['torch']}; {on['clock']} in inference mode, after two warm passes."


def _modes(found: Found) -> list[str]:
    return list(dict.fromkeys(row["mode"] for row in found["rows"])) or [WHOLE]


def _panels(columns: int, rows: int) -> tuple[Any, list[list[Axes]]]:
    """A figure, and its panels column by column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(column) for column in grid.T]


def _batches(axes: Axes, found: Found, mode: str) -> None:
    """The batch axis: a tick for every size."""
    from matplotlib.ticker import NullFormatter, NullLocator

    sizes = sorted({row["batch"] for row in found["rows"] if row["mode"] == mode}) or [1]
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.set_xlabel("batch")
    axes.grid(True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
