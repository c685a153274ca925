"""The report of a comparison: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routelab.comparison.summary import marked, marks
from routelab.training.record import finite, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "\u2013"
"""What stands where there is no value."""

_INK = "#010203"
"""The colour of axes and text in a drawn figure, replaced by that of the page: light and dark share one drawing."""

_COLOURS = (
    "#2a7fc1", "#d2691e", "#2e9440", "#d43d3d", "#9a6cd0", "#a0685a", "#d0549f", "#7d838a", "#8f8a1a", "#1391a3",
)  # fmt: skip
"""Lines: each has a contrast of at least 3.6 to the light page and to the dark one."""

_LEGEND_WIDTH = 84
"""Letters that fit beside each other below a drawn figure."""

_DIFF_LIMIT = 100_000


def write_report(path: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], figures: bool = True) -> None:
    """Writes the report of a comparison to `path`; `figures=False` leaves out the drawing, and needs no matplotlib."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    drawing = loss_figure(records) if figures else None
    text = environment.from_string(template).render(
        title=f"Comparison {summary.get('name') or ''}".strip(),
        data=summary.get("data") or NOTHING,
        metric=summary.get("metric") or "metric",
        reference=summary.get("reference"),
        seeds_line=_seeds_line(summary.get("seeds") or []),
        sentence=summary.get("sentence"),
        caveat=summary.get("caveat"),
        arms=[_row(label, arm) for label, arm in (summary.get("arms") or {}).items()],
        yardsticks=[
            (each["name"], f"{each['metric']} {short(each['value'], 4)}", each["note"])
            for each in summary.get("yardsticks") or ()
        ],
        figures=figures,
        # Drawn here, and every text in it escaped by matplotlib.
        figure=None if drawing is None else Markup(_inline_svg(drawing)),
        failures=_failures(records),
        provenance=_provenance(records),
        configs=_configs(records),
        diffs=_distinct(str(diff)[:_DIFF_LIMIT] for diff in _each(records, "git_diff") if diff),
    )
    write_text(path, text)


def loss_figure(records: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Validation loss against cumulative training FLOPs: each arm's mean bold, its seeds faint. None without curves."""
    curves: dict[str, list[tuple[list[float], list[float]]]] = {}
    for record in records:
        points = _loss_points(record)
        if points:
            label = marked(str(record.get("arm")), marks(record))
            curves.setdefault(label, []).append(([x for x, _ in points], [y for _, y in points]))
    if not curves:
        return None

    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    dashes = ("-", "--", ":", "-.")
    with matplotlib.rc_context(_style()):
        # As many columns as the longest label leaves room for.
        columns = max(1, min(3, len(curves), _LEGEND_WIDTH // (max(map(len, curves)) + 8)))
        rows = math.ceil(len(curves) / columns)
        figure = Figure(figsize=(7.5, 4.3 + 0.24 * rows), layout="constrained")
        axes = figure.add_subplot()
        for index, (arm, lines) in enumerate(curves.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            dash = dashes[index // len(_COLOURS) % len(dashes)]
            if len(lines) > 1:
                for x, y in lines:
                    axes.plot(x, y, dash, color=colour, alpha=0.45, linewidth=0.8)
            mean_x, mean_y = _mean_line(lines)
            axes.plot(mean_x, mean_y, dash, color=colour, linewidth=2.0, label=arm, marker="o" if len(mean_x) == 1 else None)
        xs = [x for lines in curves.values() for line, _ in lines for x in line]
        if max(xs) > 10 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(xs) > 1000 * min(xs) else (1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel("cumulative training FLOPs")
        axes.set_ylabel("validation loss")
        axes.grid(True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        # Handles are passed because a label that begins with an underscore is otherwise left out.
        handles = [line for line in axes.get_lines() if line.get_label() in curves]
        figure.legend(
            handles=handles,
            labels=[str(line.get_label()) for line in handles],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )
    return figure


def short(value: object, digits: int = 3) -> str:
    """A number in few characters, `1.2e9` rather than `1.2e+09`; a dash for None and for what is not finite."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        text = f"{number:.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def _style() -> Any:  # The keys are typed one by one from matplotlib 3.11 on, and were text before.
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    return {
        **dict.fromkeys(ink, _INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "routelab",
        "text.parse_math": False,
        "font.size": 11,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


def _inline_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that follows the page's colours and names no address."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_style()):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    return svg.replace("xlink:href", "href").replace(_INK, "currentColor")


def _loss_points(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    if record.get("status") != "ok":
        return []
    points: dict[float, float] = {}
    for point in record.get("curve") or []:
        x, y = finite(point.get("flops")), finite(point.get("val/loss"))
        if x is not None and y is not None and x > 0:
            points[x] = y
    return sorted(points.items())


def _mean_line(lines: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """The mean over seeds where all of them have a value, each seed interpolated between its own points."""
    import numpy as np

    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = sorted({x for line, _ in lines for x in line if low <= x <= high})
    if not grid:
        longest = max(lines, key=lambda line: len(line[0]))
        return longest
    mean = np.mean([np.interp(grid, x, y) for x, y in lines], axis=0)
    return grid, [float(value) for value in mean]


def _row(label: str, arm: Mapping[str, Any]) -> dict[str, Any]:
    causal = arm.get("causal")
    ratio = short(arm.get("flops_ratio"))
    costs = [short(arm.get("flops_per_example")), ratio if ratio == NOTHING else f"{ratio}\u00d7"]
    costs += [short(arm.get(key)) for key in ("active_params", "total_params", "flops_model", "flops_executed", "seconds")]
    costs += [_percent(arm.get("drop_rate")), short(arm.get("load_cv"))]
    costs.append({True: "yes", False: "no", None: NOTHING}.get(causal, str(causal)))
    return {
        "label": label,
        "marks": ", ".join(arm.get("marks") or ()),
        "n": arm.get("n", 0),
        "failed": arm.get("failed") or 0,
        "intervals": [_interval(arm.get("loss")), _interval(arm.get("metric")), _interval(arm.get("difference"), signed=True)],
        "p": short(arm.get("p_sign_flip"), 2),
        "verdict": arm.get("verdict") or NOTHING,
        "costs": costs,
    }


def _interval(interval: Mapping[str, Any] | None, signed: bool = False) -> dict[str, str]:
    mean = finite((interval or {}).get("mean"))
    low, high = finite((interval or {}).get("low")), finite((interval or {}).get("high"))
    if mean is None:
        return {"mean": NOTHING, "bounds": ""}
    # As many decimals as the interval's width deserves, the same for all three numbers.
    width = abs(mean) / 100 if low is None or high is None or high <= low else high - low
    decimals = min(8, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 4
    sign = "+" if signed else ""
    bounds = "" if low is None or high is None else f"[{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"
    return {"mean": f"{mean:{sign}.{decimals}f}", "bounds": bounds}


def _percent(value: object) -> str:
    number = finite(value)
    return NOTHING if number is None else f"{short(100 * number)}%"


def _seeds_line(seeds: Sequence[Any]) -> str:
    if not seeds:
        return "no seeds"
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _failures(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"arm": record.get("arm"), "seed": record.get("seed"), "error": record.get("error") or "no reason was recorded"}
        for record in records
        if record.get("status") != "ok"
    ]


def _each(records: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return [(record.get("provenance") or {}).get(key) for record in records]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name and distinct values: more than one says that the cells were not all made in one place."""
    revisions = [
        f"{revision}{' with uncommitted changes' if diff else ''}"
        for revision, diff in zip(_each(records, "git_revision"), _each(records, "git_diff"), strict=True)
        if revision
    ]
    commands = [
        command if isinstance(command, str) else " ".join(map(str, command)) for command in _each(records, "command") if command
    ]
    versions = [", ".join(f"{k} {v}" for k, v in table.items()) for table in _each(records, "versions") if table]
    rows = [
        ("Command", _distinct(commands)),
        ("Git revision", _distinct(revisions)),
        ("Data digest", _distinct(str(digest) for digest in _each(records, "data_digest") if digest)),
        ("Python", _distinct(str(python) for python in _each(records, "python") if python)),
        ("Versions", _distinct(versions)),
    ]
    return [(name, values or ["not recorded"]) for name, values in rows]


def _configs(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The configuration of each arm, as the first of its seeds had it."""
    import yaml

    found: dict[str, str] = {}
    for record in records:
        arm = str(record.get("arm"))
        if record.get("config") and arm not in found:
            found[arm] = yaml.safe_dump(_plain(record["config"]), sort_keys=False, allow_unicode=True)
    return [{"arm": arm, "text": text} for arm, text in found.items()]


def _plain(value: Any) -> Any:
    """The value in types that YAML knows; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # Subclasses (numpy's floats, enumerations) are unknown to YAML.
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)
