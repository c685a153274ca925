"""What `routelab serve-cost` leaves: numbers, tables, figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from routelab.core.number_format import format_bytes, format_interval, format_number, format_percent, is_bounded
from routelab.records.csv_io import write_csv
from routelab.records.json_io import plain, write_json
from routelab.report.plots.plot_style import Drawn, colour, dash, legend, marker, style
from routelab.report.plots.report_plots import save_figures

Found = Mapping[str, Any]
NUMBERS, TABLE, FIGURES = "serve_cost.json", "serve_cost.csv", "figures"
SHARES = (0.0, 0.25, 0.5, 1.0)
"""Parts of the experts that tables show in memory, as nearly as there are rows from below; 0 is the fewest."""
_PANEL = 2.5
_PERCENT = (0, 25, 50, 75, 100)


def write_serving(folder: Path, found: Sequence[Found]) -> list[Path]:
    """Writes the numbers, the table of all rows, and every figure as PNG and CSV into `folder`; gives back their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NUMBERS, plain({"runs": list(found)}))
    write_csv(folder / TABLE, csv_rows(found))
    save_figures(figures_of(found), folder / FIGURES)
    return [folder / NUMBERS, folder / TABLE, folder / FIGURES]


def names_of(found: Sequence[Found]) -> list[str]:
    """A name for each run: its arm, with its seed, data and folder as far as others need them to be told apart."""
    parts = [
        [str(each["run"]["arm"]), f"s{each['run']['seed']}", str(each["run"]["data"]), each["run"]["folder"]] for each in found
    ]
    for much in range(1, 5):
        names = [" ".join(part[:much]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def csv_rows(found: Sequence[Found]) -> list[list[Any]]:
    """A header, then a row for each run, batch size and number of slots."""
    intervals = ("bytes_per_token", "bytes_per_example", "hit_rate", "ratio", "work_ratio")
    plain_keys = ("chance", "within", "optimum", "milliseconds", "milliseconds_p95", "in_memory_milliseconds", "ratio_p95", "prompt_milliseconds",
                  "storage_bytes_per_token", "outputs_equal", "outputs_apart", "steps")  # fmt: skip
    head = ["run", "seed", "unit", "unit_bytes", "mode", "prompt", "batch", "slots", "units", "per_layer", "cold", "resident_bytes",
            "resident_share"]  # fmt: skip
    header = [*head, *(f"{name}{part}" for name in intervals for part in ("", "_low", "_high")), *plain_keys]
    rows: list[list[Any]] = [header]
    for name, each in zip(names_of(found), found, strict=True):
        for row in each["rows"]:
            told = {**each, **row, "run": name, "seed": each["run"]["seed"]}
            spread = [(row.get(key) or {}).get(part) for key in intervals for part in ("mean", "low", "high")]
            rows.append([*(told[key] for key in head), *spread, *(row.get(key) for key in plain_keys)])
    return rows


def row_at(found: Found, batch: int, share: float) -> Found:
    """The row with at most this share of the experts in memory, or the fewest that there are."""
    rows = [row for row in found["rows"] if row["batch"] == batch]
    below = [row for row in rows if row["resident_share"] <= share + 1e-9]
    return max(below, key=lambda row: row["resident_share"]) if below else rows[0]


def batches_of(found: Sequence[Found]) -> list[int]:
    """Batch sizes that every run has."""
    return sorted(set.intersection(*({row["batch"] for row in each["rows"]} for each in found)))


ABOUT = ("run", "read at once", "bytes", "of them", "in use", "the rest", "served", "loss")
"""Columns of `about_rows`."""


def about_rows(found: Sequence[Found]) -> list[list[str]]:
    """What each run is: the unit that is read, its bytes, how many there are, how many equally loaded experts of a layer its load
    amounts to, the bytes that are always in memory, how it is served, and its loss when it is."""
    rows = []
    for name, each in zip(names_of(found), found, strict=True):
        served = "whole examples" if each["mode"] == "pass" else f"decoded after {each['prompt']}"
        if each["per_text"]:
            served += ", which choose"
        unit = each["unit"] if each["unit"] == "expert" else "an expert of all layers"
        used = f"{format_number(each['in_use'])} of {each['experts']}"
        rows.append([
            name, unit, format_bytes(each["unit_bytes"]), str(each["units"]), used, format_bytes(each["other_bytes"]), served,
            format_interval(each["loss"], partial(format_number, digits=4)),
        ])  # fmt: skip
    return rows


COLUMNS = ("run", "in memory", "bytes/token", "hit rate", "chance", "best", "ms", "p95", "over in-memory", "CPU likewise")
"""Columns of `batch_rows`."""


def batch_rows(found: Sequence[Found], batch: int) -> list[list[str]]:
    """A row for each run and share in memory, and one only where several shares are the same row."""
    rows, shown = [], set()
    for share in SHARES:
        for name, each in zip(names_of(found), found, strict=True):
            row = row_at(each, batch, share)
            if (name, row["slots"]) in shown:
                continue
            shown.add((name, row["slots"]))
            rows.append([
                name, f"{row['resident']} of {each['units']}, {format_bytes(row['resident_bytes'])}",
                format_interval(row["bytes_per_token"], format_bytes), format_interval(row["hit_rate"], format_percent),
                format_percent(row["chance"]), format_percent(row["optimum"]),
                format_number(row.get("milliseconds")), format_number(row.get("milliseconds_p95")), format_interval(row.get("ratio")),
                format_interval(row.get("work_ratio")),
            ])  # fmt: skip
    return rows


def sentences(found: Sequence[Found], share: float = 0.25) -> list[str]:
    """What the numbers say, each with its interval."""
    said, names, sizes = [], names_of(found), batches_of(found)
    if sizes:
        for name, each in zip(names, found, strict=True):
            said.append(_stability(name, each, row_at(each, sizes[0], share)))
            if each["unit"] == "adapter":
                row = row_at(each, sizes[0], share)
                said.append(
                    f"{name}: a text has one choice for all {each['layers']} layers; with {row['resident']} of {each['units']} in memory it "
                    f"costs {format_interval(row['bytes_per_example'], format_bytes)} to read, its prompt included."
                )
        if len(found) > 1:
            said.append(_fewest(names, found, sizes[0], share))
    timed = [row for each in found for row in each["rows"] if "outputs_equal" in row]
    if timed and all(row["outputs_equal"] for row in timed):
        apart = max(row["outputs_apart"] for row in timed)
        exact = "to the bit" if all(each["device"] == "cpu" for each in found) else "up to the rounding of a GPU's sums"
        said.append(
            f"Outputs with experts on disk equal, {exact}, those with all of them in memory one by one; the kernels that the model "
            f"itself takes round otherwise, by up to {format_number(apart, 2)}."
        )
    elif timed:
        wrong = sorted(
            {
                name
                for name, each in zip(names, found, strict=True)
                for row in each["rows"]
                if not row.get("outputs_equal", True)
            }
        )
        said.append(f"Outputs with experts on disk differ from those in memory, which must not be: {', '.join(wrong)}.")
    if any(each["cold"] for each in found):
        said.append("The kernel was told to drop the file's pages before every read, so that reads come from storage.")
    else:
        said.append(
            "Bytes read are bytes copied from the mapped file; the kernel may have held its pages in memory, so that latencies are "
            "those of a warm page cache (--cold drops them)."
        )
    return said


def _stability(name: str, each: Found, row: Found) -> str:
    where = f"with {row['resident']} of {each['units']} in memory"
    if each["needs_all"]:
        return (
            f"{name}: every token needs every expert of a layer, whatever it is, so there is no choice to be stable; {where} "
            f"{format_percent(row['hit_rate']['mean'])} of the requests find their expert there."
        )
    hit, chance, within = row["hit_rate"], row["chance"], row["within"]
    verdict = "no difference from chance is shown"
    if is_bounded(hit) and hit["low"] > max(chance, within):
        verdict = "more than either: its choices last"
    elif is_bounded(hit) and hit["low"] > chance:
        verdict = "more than by chance, as texts keep to experts of their own; in what order is not shown to matter"
    elif is_bounded(hit) and hit["high"] < chance:
        verdict = "less than by chance: its choices alternate"
    return (
        f"{name}: {where} {format_interval(hit, format_percent)} of the requests for an expert find it there, "
        f"{format_percent(chance)} by chance under the same load, {format_percent(within)} with each text's tokens in any order, "
        f"{format_percent(row['optimum'])} at best; {verdict}."
    )


def _fewest(names: Sequence[str], found: Sequence[Found], batch: int, share: float) -> str:
    rows = sorted(
        ((row_at(each, batch, share)["bytes_per_token"], name) for name, each in zip(names, found, strict=True)),
        key=lambda pair: pair[0]["mean"],
    )
    intervals = "; ".join(f"{name} {format_interval(value, format_bytes)}" for value, name in rows)
    return f"Bytes read per token with {share:.0%} of the experts in memory, fewest first: {intervals}."


def figures_of(found: Sequence[Found]) -> list[Drawn]:
    """Bytes and latency against memory for each batch size, and for the smallest the hit rate beside chance and the best."""
    import matplotlib

    sizes = batches_of(found)
    with matplotlib.rc_context(style()):
        return [*(cost_figure(found, size) for size in sizes), *([choices_figure(found, sizes[0])] if sizes else [])]


def cost_figure(found: Sequence[Found], batch: int) -> Drawn:
    """Bytes read per token, and the time of a step over that with all experts in memory."""
    from matplotlib.figure import Figure

    names = names_of(found)
    timed = any("ratio" in row for each in found for row in each["rows"])
    columns = max(1, min(3, 84 // (max(map(len, names)) + 8)))
    figure = Figure(figsize=(7.5, 3.9 + 0.24 * math.ceil(len(names) / columns)), layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    handles: list[Any] = []
    table: list[list[Any]] = [["run", "resident_share", "bytes_per_token", "low", "high", "ratio", "ratio_low", "ratio_high"]]
    for index, (name, each) in enumerate(zip(names, found, strict=True)):
        rows = [row for row in each["rows"] if row["batch"] == batch]
        for axes, key, scale in zip(panels, ("bytes_per_token", "ratio"), (1e-3, 1.0), strict=False):
            shown = [row for row in rows if key in row]
            x = [100 * row["resident_share"] for row in shown]
            low, mid, high = ([scale * row[key][part] for row in shown] for part in ("low", "mean", "high"))
            drawn = axes.plot(x, mid, dash(index), marker=marker(index), markersize=4, color=colour(index))
            axes.fill_between(x, low, high, color=colour(index), alpha=0.2, linewidth=0)
            handles += drawn if axes is panels[0] else []
        for row in rows:
            told = [row["bytes_per_token"], row.get("ratio") or {}]
            table.append(
                [name, row["resident_share"], *(value.get(part) for value in told for part in ("mean", "low", "high"))]
            )
    titles = ("kB read per token", "time of a step / all in memory")
    for axes, title in zip(panels, titles, strict=False):
        axes.grid(True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("experts in memory, %")
        axes.set_xticks(_PERCENT)
        axes.set_title(title, fontsize=11)
        # What is 0 would lie under the axis.
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    if timed:
        panels[1].axhline(1, color="#7d838a", linewidth=1, linestyle="--")
        # Of a busy machine some bands are so wide that the medians would be one flat line.
        most = max(row["ratio"]["mean"] for each in found for row in each["rows"] if row["batch"] == batch and "ratio" in row)
        panels[1].set_ylim(0, max(2.0, 1.5 * most))
    legend(figure, handles, names, columns)
    return Drawn(
        f"cost-batch-{batch}", f"Cost of little memory, {batch} at a time", f"Bytes read per token and time of a step, {batch} at a time",
        "Bands: 95% intervals, of bytes over texts, of times over steps.", figure, table,
    )  # fmt: skip


def choices_figure(found: Sequence[Found], batch: int) -> Drawn:
    """Hit rates of each run, beside those of its own choices in random order and of the best policy."""
    from matplotlib.figure import Figure

    names, columns = names_of(found), min(3, len(found))
    lines = math.ceil(len(found) / columns)
    figure = Figure(figsize=(7.5, _PANEL * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    handles: list[Any] = []
    table: list[list[Any]] = [["run", "resident_share", "hit_rate", "low", "high", "chance", "optimum"]]
    labels = ("least recently used", "by chance, same load", "best policy (Belady)")
    for place, axes in enumerate(grid.flat):
        if place >= len(found):
            axes.set_visible(False)
            continue
        rows = [row for row in found[place]["rows"] if row["batch"] == batch]
        x = [100 * row["resident_share"] for row in rows]
        lines_drawn = []
        for index, (key, mark) in enumerate((("hit_rate", "o"), ("chance", "s"), ("optimum", "^"))):
            y = [100 * (row[key]["mean"] if key == "hit_rate" else row[key]) for row in rows]
            lines_drawn += axes.plot(x, y, ("-", ":", "--")[index], marker=mark, markersize=3, color=colour(index))
        handles = lines_drawn
        axes.set_title(names[place], fontsize=11)
        axes.grid(True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        table += [[names[place], row["resident_share"], *(row["hit_rate"][part] for part in ("mean", "low", "high")), row["chance"],
                   row["optimum"]] for row in rows]  # fmt: skip
    for axes in grid[:, 0]:
        axes.set_ylabel("hit rate, %")
    for axes in grid.flat[max(0, len(found) - columns) : len(found)]:
        axes.set_xlabel("experts in memory, %")
        axes.tick_params(labelbottom=True)  # Hidden above a panel that is not there.
        axes.set_xticks(_PERCENT)
    legend(figure, handles, list(labels), 3)
    return Drawn(
        f"choices-batch-{batch}", f"Are choices stable? {batch} at a time", "Hit rates of each router beside chance and the best policy",
        "Chance: the same choices in random order.", figure, table,
    )  # fmt: skip
