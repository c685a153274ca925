"""The figures of an analysis, each with the numbers that it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from routelab.analysis.routing.ablation_plots import by_group, rerouting, single_experts
from routelab.analysis.routing.expert_statistics import QUANTILES
from routelab.analysis.routing.subplots import GREY, TITLES, panels_of, shown_layers, whole_numbers
from routelab.report.plots.plot_style import Drawn, colour, dash, legend, log_axis, marker, sheet, style

if TYPE_CHECKING:
    pass

Found = Mapping[str, Any]


def figures_of(found: Found) -> list[Drawn]:
    """Every figure that there are numbers for."""
    import matplotlib

    with matplotlib.rc_context(style()):
        drawn = [
            *(distribution(found, name) for name in found["labels"]),
            told(found),
            repetition(found),
            paths(found),
            confident(found),
            loads(found),
            *maps(found),
            churn(found),
            single_experts(found, "without"),
            single_experts(found, "only"),
            *(by_group(found, name) for name, label in found["labels"].items() if not label["of_tokens"]),
            rerouting(found),
        ]
    return [each for each in drawn if each is not None]


def distribution(found: Found, name: str) -> Drawn | None:
    """Which part of each group's choices each expert gets, as Mixtral's figure 7."""
    label = found["labels"][name]
    if not label["distribution"]:
        return None
    layers = shown_layers(len(label["distribution"]))
    there = [place for place in range(len(label["names"])) if any(mass[place] > 0 for mass in label["mass"])]
    names = [label["names"][place] for place in there]
    columns = max(1, min(3, 84 // (max(map(len, names)) + 8)))
    figure, panels = panels_of(layers, 2.7, math.ceil(len(names) / columns))
    handles: list[Any] = []
    for axes, layer in zip(panels, layers, strict=True):
        table = label["distribution"][layer]
        experts, places = found["layers"][layer]["experts"], range(len(table[0]))
        axes.axhline(1 / experts, color=GREY, linewidth=1, linestyle="--")
        if len(places) > experts:
            # The word is wider than a number: its neighbour goes without one.
            ticks = range(0, max(1, experts - 1), max(1, experts // 8))
            axes.set_xticks([*ticks, experts], [*map(str, ticks), "none"])
        handles = []
        for index, place in enumerate(there):
            # Side by side: at one place, markers would hide each other.
            x = [e + 0.5 * ((index + 0.5) / len(there) - 0.5) for e in places]
            handles += axes.plot(x, table[place], marker(index), color=colour(index), markersize=5, linewidth=0)
        axes.set_xlabel("expert")
    highest = max(share for layer in layers for place in there for share in label["distribution"][layer][place])
    panels[0].set_ylim(-0.02 * highest, 1.06 * highest)
    for axes in panels[::2]:
        axes.set_ylabel("share of the choices")
    legend(figure, handles, names, columns)
    rows: list[list[Any]] = [[name, "layer", "expert", "share", "tokens_or_mass"]]
    for layer, table in enumerate(label["distribution"]):
        for place in there:
            mass = label["mass"][layer][place]
            experts = [*found["layers"][layer]["names"], "none"]
            rows += [
                [label["names"][place], layer, expert, share, mass]
                for expert, share in zip(experts, table[place], strict=False)
            ]
    return Drawn(
        f"experts-by-{name}", f"Experts by {TITLES[name]}", f"Share of the choices that each expert gets, by {TITLES[name]}",
        "As figure 7 of Mixtral (Jiang et al. 2024). Dashed: an even share; none: tokens without an expert. "
        "Whether the groups differ by more than chance is for the "
        "permutation test below to say.", figure, rows,
    )  # fmt: skip


def told(found: Found) -> Drawn | None:
    """Mutual information of labels and experts, less what chance gives."""
    labels = {name: label for name, label in found["labels"].items() if any(label["information"])}
    if not labels:
        return None
    figure, axes, columns = sheet(len(labels), 20, 3.2)
    rows: list[list[Any]] = [["label", "layer", "bits", "chance_mean", "chance_low", "chance_high", "corrected", "p", "label_entropy",
                              "units_permuted", "miller_madow", "beyond_byte", "beyond_p"]]  # fmt: skip
    handles = []
    for index, (name, label) in enumerate(labels.items()):
        points = [(layer, test) for layer, test in enumerate(label["information"]) if test is not None]
        for layer, test in points:
            # What chance gives, less its mean.
            low, high = (test["null"][place] - test["null"][0] for place in (1, 2))
            axes.plot([layer + 0.06 * index] * 2, [low, high], color=GREY, linewidth=6, alpha=0.35, solid_capstyle="butt")
            beyond = (label["beyond"] or {layer: None})[layer] or {}
            rows.append([name, layer, test["bits"], *test["null"], test["corrected"], test["p"], test["most"], test["units"],
                         test["miller_madow"], beyond.get("corrected"), beyond.get("p")])  # fmt: skip
        handles += axes.plot(
            [layer + 0.06 * index for layer, _ in points],
            [test["corrected"] for _, test in points],
            dash(index),
            marker=marker(index),
            color=colour(index),
        )
    axes.axhline(0, color=GREY, linewidth=1)
    whole_numbers(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel("bits about the label")
    legend(figure, handles, [TITLES[name] for name in labels], columns)
    return Drawn(
        "information", "What the choice of an expert tells", "Mutual information of label and expert for each layer",
        "Mutual information in bits, less its mean over 499 permutations of whole sequences (of whole documents, for labels of "
        "examples, where the text says where they end). Grey: 95% of the permutations. The CSV has what is told about a text beyond the "
        "token's own byte.", figure, rows,
    )  # fmt: skip


def repetition(found: Found) -> Drawn | None:
    """Consecutive tokens with an expert in common, beside chance, as Mixtral's Table 5."""
    layers = found["layers"]
    if not any(layer["repetition"]["all"]["first"] for layer in layers):
        return None
    figure, axes, columns = sheet(6, 38, 3.4)
    rows: list[list[Any]] = [["layer", "group", "choice", "share", "low", "high", "within", "chance", "uniform", "units"]]
    handles, names = [], []
    for index, (kind, name) in enumerate((("first", "first choice"), ("either", "first or second choice"))):
        points = []
        for layer, each in enumerate(layers):
            for group, value in each["repetition"].items():
                test = value[kind]
                if test is None:
                    continue
                share = test["share"]
                rows.append([layer, group, kind, *(share[key] for key in ("mean", "low", "high")), test["within"],
                             test["chance"], test["uniform"], share["n"]])  # fmt: skip
                if group == "all":
                    points.append((layer, test))
        if not points:
            continue
        for layer, test in points:
            if math.isfinite(test["share"]["low"]):
                axes.plot(
                    [layer] * 2, [test["share"]["low"], test["share"]["high"]], color=colour(index), linewidth=2, alpha=0.6
                )
        x = [layer for layer, _ in points]
        handles += axes.plot(x, [test["share"]["mean"] for _, test in points], marker="o", color=colour(index))
        handles += axes.plot(x, [test["within"] for _, test in points], ":", marker="+", color=colour(index), alpha=0.7)
        handles += axes.plot(x, [test["chance"] for _, test in points], "--", marker="x", color=colour(index), alpha=0.7)
        names += [name, f"{name}, any two of a text", f"{name}, by chance"]
    whole_numbers(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("share of neighbours")
    legend(figure, handles, names, columns)
    return Drawn(
        "repetition", "Consecutive tokens at the same expert", "Share of neighbouring tokens that have an expert in common",
        "As Table 5 of Mixtral, with 95% t-intervals over documents, or sequences where none are known. Chance: two tokens drawn at random "
        "from all sequences, so that an uneven load is not taken for memory; any two of a text: what is above chance already because "
        "texts differ. The CSV has every domain against its own chance.", figure, rows,
    )  # fmt: skip


def paths(found: Found) -> Drawn | None:
    """How many paths carry how many tokens."""
    each = found["paths"]
    if each is None or len(found["layers"]) < 2:
        return None
    figure, axes, _ = sheet(0, 0, 3.2)
    covered, total = [], 0
    for count in each["counts"]:
        total += count
        covered.append(total / each["tokens"])
    axes.plot(range(1, len(covered) + 1), covered, color=colour(0), linewidth=2, marker="o" if len(covered) == 1 else None)
    log_axis(axes.xaxis, [1.0, float(len(covered))])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("paths, most frequent first")
    axes.set_ylabel("share of the tokens")
    rows: list[list[Any]] = [["rank", "tokens", "path"]]
    names = ["-".join(map(str, path)) for path, _ in each["common"]]
    rows += [[rank + 1, count, names[rank] if rank < len(names) else ""] for rank, count in enumerate(each["counts"])]
    return Drawn(
        "paths", "Paths through the layers", "Share of the tokens on the most frequent paths",
        f"{each['distinct']} different paths of first choices among {each['tokens']} tokens; {each['possible']} are possible "
        f"({each['used']:.2%} used). Entropy {each['entropy']:.2f} bits, and {each['independent']:.2f} for as many tokens if layers chose "
        "independently: the difference is what one layer's choice tells about the others'.", figure, rows,
    )  # fmt: skip


def confident(found: Found) -> Drawn | None:
    """How sure the router is in each layer."""
    figure, axes, columns = sheet(3, 20, 3.0)
    rows: list[list[Any]] = [
        ["layer", *(f"q{round(100 * q)}" for q in QUANTILES), "margin", "entropy_bits", "entropy_of_mean_bits"]
    ]
    handles: list[Any] = []
    for layer, each in enumerate(found["layers"]):
        sure = each["confidence"]
        rows.append([layer, *sure["largest"], sure["margin"], sure["entropy"], sure["spread"]])
        low, lower, middle, upper, high = sure["largest"]
        handles = [
            *axes.plot([layer] * 2, [low, high], color=colour(0), linewidth=1.5),
            *axes.plot([layer] * 2, [lower, upper], color=colour(0), linewidth=7, solid_capstyle="butt"),
            *axes.plot([layer], [middle], "o", color=colour(1)),
        ]
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.6, len(found["layers"]) - 0.4)
    whole_numbers(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel("largest probability")
    legend(figure, handles, ["5% to 95% of tokens", "25% to 75%", "median"], columns)
    return Drawn(
        "confidence", "Confidence of the router", "Quantiles of the largest routing probability of a token",
        "Of the router's probabilities; where it gives none, of its weights divided by their sum.", figure, rows,
    )  # fmt: skip


def loads(found: Found) -> Drawn:
    """Load of every expert on the sample."""
    layers = found["layers"]
    shown = shown_layers(len(layers))
    figure, panels = panels_of(shown, 2.3)
    for axes, layer in zip(panels, shown, strict=True):
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes.bar(range(layers[layer]["experts"]), layers[layer]["load"], color=colour(0))
        axes.set_xlabel("expert")
    for axes in panels[::2]:
        axes.set_ylabel("load (1: even)")
    rows: list[list[Any]] = [["layer", "expert", "load"]]
    rows += [
        [layer, name, load] for layer, each in enumerate(layers) for name, load in zip(each["names"], each["load"], strict=True)
    ]
    dead = [f"layer {layer}: {', '.join(each['dead'])}" for layer, each in enumerate(layers) if each["dead"]]
    return Drawn(
        "load", "Load of the experts", "Load of each expert on the sample, in units of an even load",
        f"Without a token of the sample: {'; '.join(dead) or 'none'}.", figure, rows,
    )  # fmt: skip


_MAPS = {
    "co-selection": ("Experts chosen together", "RdBu_r", 0.0, 2.0,
        "How often one token chooses both, over what their loads give without preference: 1. Where every expert sees every token: "
        "the two of largest weight."),
    "similarity-weights": ("Similarity of the experts' weights", "RdBu_r", -1.0, 1.0,
        "Cosines of all weights of two experts. Experts that started apart stay near 0 even if they do the same."),
    "similarity-outputs": ("Similarity of the experts' outputs", "RdBu_r", -1.0, 1.0,
        "Mean cosine of what two experts make of the same inputs of the layer. Near 1: duplicates."),
}  # fmt: skip


def maps(found: Found) -> Iterator[Drawn]:
    """Pairs of experts: chosen together, alike in weights, alike in outputs."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    for name, (title, palette, low, high, note) in _MAPS.items():
        tables = {layer: table for layer, each in enumerate(found["layers"]) if (table := _pairs(each, name)) is not None}
        if not tables:
            continue
        places = list(tables)
        layers = [places[place] for place in shown_layers(len(places))]
        figure, panels = panels_of(layers, 3.1, square=True)
        norm, colours = Normalize(low, high), colormaps[palette]
        for axes, layer in zip(panels, layers, strict=True):
            # As paths: a page without other files may show no image.
            axes.pcolormesh(tables[layer], norm=norm, cmap=colours, rasterized=False)
            axes.set_aspect("equal")
            count = len(tables[layer])
            ticks = range(0, count, max(1, count // 8))
            axes.set_xticks([tick + 0.5 for tick in ticks], list(map(str, ticks)))
            axes.set_yticks([tick + 0.5 for tick in ticks], list(map(str, ticks)))
            axes.set_xlabel("expert")
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, shrink=0.8)
        # A colour bar is an image otherwise.
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
        rows: list[list[Any]] = [["layer", "expert", "other", "value"]]
        for layer, table in tables.items():
            rows += [[layer, a, b, value] for a, row in enumerate(table) for b, value in enumerate(row) if a != b]
        yield Drawn(name, title, f"{title}, for each pair", note, figure, rows)


def _pairs(layer: Found, name: str) -> Any:
    if name == "co-selection":
        return layer["co_selection"]
    return None if layer["similarity"] is None else layer["similarity"][name.removeprefix("similarity-")]


def churn(found: Found) -> Drawn | None:
    """How many tokens changed their expert between two checks of the training."""
    points = found["churn"]
    if not points:
        return None
    figure, axes, _ = sheet(0, 0, 2.8)
    axes.plot([each["flops"] for each in points], [each["churn"] for each in points], "o-", color=colour(0))
    log_axis(axes.xaxis, [each["flops"] for each in points])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("tokens with another expert")
    rows = [["flops", "churn"], *([each["flops"], each["churn"]] for each in points)]
    return Drawn(
        "churn", "Churn over training", "Share of validation tokens whose first choice changed since the check before",
        "On the validation split, mean over layers, as recorded while it trained.", figure, rows,
    )  # fmt: skip
