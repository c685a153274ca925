"""The page of an analysis: one HTML file that needs no network, no script and no other file, with PNG and CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routelab.analysis.routing.analyze import sentences
from routelab.analysis.routing.colored_text import COLOURS, LINES, NO_EXPERT, example_texts
from routelab.analysis.routing.routing_plots import TITLES, figures_of, shown_layers
from routelab.analysis.trained_run import TrainedRun
from routelab.core.number_format import NO_VALUE, format_number, format_percent
from routelab.records.json_io import write_json, write_text
from routelab.report.html_page import rendered
from routelab.report.plots.plot_style import inline_svg
from routelab.report.plots.report_plots import save_figures

PAGE, NUMBERS, FIGURES = "analysis.html", "analysis.json", "figures"


def write_analysis(folder: Path, run: TrainedRun, found: Mapping[str, Any]) -> list[Path]:
    """Writes the page, the numbers, and every figure as PNG and CSV into `folder`; the paths of the first two and the figures'
    folder."""
    from markupsafe import Markup

    drawn = figures_of(found)
    layers = found["layers"]
    text = rendered(
        Path(__file__).with_name("analysis.html"),
        title=f"Experts of {run.name}",
        sample=sample_line(found),
        loss=found["loss"],
        sentences=sentences(dict(found)),
        headings=["Layer", "Plan", "Experts", "Dead", "Nearly dead", "Tokens without", "Duplicates", "Median confidence", "Same first expert",
                  "by chance", *(f"Bits: {TITLES[name]}" for name in found["labels"])],
        layers=[_row(place, layer, found) for place, layer in enumerate(layers)],
        drawn=[(each.title, each.alt, each.note, Markup(inline_svg(each.figure, each.name))) for each in drawn],
        texts=texts_by_expert(run, found),
        colours=list(enumerate(COLOURS)),
        lines=list(enumerate(LINES)),
        nothing=NO_EXPERT,
        provenance=_provenance(found, run),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAGE, text)
    write_json(folder / NUMBERS, {name: value for name, value in found.items() if name != "first"})
    save_figures(drawn, folder / FIGURES)
    return [folder / PAGE, folder / NUMBERS, folder / FIGURES]


def sample_line(found: Mapping[str, Any]) -> str:
    """What was looked at."""
    sample = found["sample"]
    told = f"{sample['examples']} of {sample['of']} examples of the test split"
    told += " (drawn at random, always the same)" if sample["examples"] < sample["of"] else ""
    told += f", {sample['positions']} positions each" if sample["positions"] > 1 else ""
    return told + (f", of {sample['documents']} documents" if sample["documents"] else "")


def _row(place: int, layer: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, list[str]]:
    repeats = layer["repetition"]["all"]["first"]
    cells = [layer["plan"], str(layer["experts"]), str(len(layer["dead"])), str(len(layer["nearly_dead"]))]
    cells.append(format_percent(layer["unrouted"]))
    cells.append(NO_VALUE if layer["similarity"] is None else str(len(layer["similarity"]["duplicates"])))
    cells.append(format_number(layer["confidence"]["largest"][2]))
    cells += (
        [NO_VALUE] * 2 if repeats is None else [format_percent(repeats["share"]["mean"]), format_percent(repeats["chance"])]
    )
    for label in found["labels"].values():
        test = label["information"][place] if place < len(label["information"]) else None
        cells.append(NO_VALUE if test is None else f"{test['corrected']:.3f} (p={format_number(test['p'], 2)})")
    return str(place), cells


def texts_by_expert(run: TrainedRun, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of text, for each drawn layer, windows cut into runs of one expert, and what the colours mean."""
    task = run.data.task
    if task.inputs.kind != "text" or task.inputs.vocab_size != 256:
        return []
    shown = []
    for layer in shown_layers(len(found["layers"])):
        if found["first"][layer].shape == tuple(run.sample.inputs.shape):
            texts = example_texts(run.sample, found["first"][layer], run.data.domain_names)
            shown.append({"layer": layer, "experts": found["layers"][layer]["names"], "texts": texts})
    return shown


def _provenance(found: Mapping[str, Any], run: TrainedRun) -> list[tuple[str, str]]:
    origin = run.record.get("provenance") or {}
    rows = [
        ("Run", str(found["run"]["folder"])),
        ("Cell", str(origin.get("cell") or "not recorded")),
        ("MLflow", str(run.run_id or "asked for by folder or cell")),
        ("Data digest", str(origin.get("data_digest") or "not recorded")),
        ("Git revision of the run", str(origin.get("git_revision") or "not recorded")),
    ]
    return rows
