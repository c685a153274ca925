"""Everything that `routelab analyze` finds out about a run, as plain data.

Axes: N examples, S positions, E experts, L mixture layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.analysis.routing.ablation import ablations
from routelab.analysis.routing.consecutive_tokens import either_repetition, first_repetition
from routelab.analysis.routing.expert_paths import paths_through
from routelab.analysis.routing.expert_statistics import (
    alike,
    co_selection,
    confidence,
    load,
    output_similarity,
    weight_similarity,
)
from routelab.analysis.routing.mutual_information import (
    Information,
    by_block,
    information,
    information_beyond,
    joint,
    miller_madow,
    most_telling,
)
from routelab.analysis.routing.routing_capture import Observed, observe, outputs, own_weights
from routelab.analysis.routing.token_labels import Label, bytes_of, labels_of
from routelab.analysis.trained_run import TrainedRun
from routelab.core.intervals import grouped_interval
from routelab.core.number_format import finite, format_interval, format_percent
from routelab.experts.moe_layer import MixtureLayer

Array = NDArray[Any]

DUPLICATE = 0.99
"""Experts whose outputs on the same rows have at least this cosine, on average, are named as duplicates."""

FAINT = 0.01
"""Experts with less than this part of an even load are named as nearly dead."""


def analyze(run: TrainedRun, watch: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """All measures of one run on its sample. watch: told the share of the ablations that is done."""
    seen = observe(run.arm, run.batches())
    labels = labels_of(run.data, run.sample)
    block_N, of_documents = run.blocks()
    domain = next((label for label in labels if label.name == "domain"), None)
    layers = [_layer(layer, mixture, domain, block_N) for layer, mixture in zip(seen.layers, run.arm.mixtures, strict=True)]
    found: dict[str, Any] = {
        "run": {key: run.record.get(key) for key in ("arm", "seed", "data", "metric")}
        | {"cell": (run.record.get("provenance") or {}).get("cell"), "folder": str(run.folder), "mlflow": run.run_id},
        "sample": {
            "examples": len(run.sample),
            "of": len(run.data.test),
            "positions": int(seen.layers[0].share.shape[1]),
            "documents": len(np.unique(block_N)) if of_documents else None,
        },
        "loss": grouped_interval(seen.loss, block_N).as_dict(),
        "layers": layers,
        "labels": {label.name: _label(label, seen.layers, block_N, bytes_of(run.data, run.sample)) for label in labels},
        "paths": _paths(seen.layers),
        "churn": [
            {"flops": point["flops"], "churn": point["router/churn"]}
            for point in run.record.get("curve") or ()
            if finite(point.get("router/churn")) is not None
        ],
    }
    found["ablation"] = [
        each.row(seen.loss, labels, block_N) for each in ablations(run, [layer.experts for layer in seen.layers], watch)
    ]
    # What the page's texts are coloured by; too long for the JSON.
    found["first"] = [layer.first for layer in seen.layers]
    return found


def _layer(seen: Observed, mixture: MixtureLayer, domain: Label | None, block_N: Array) -> dict[str, Any]:
    flat = seen.share.reshape(-1, seen.experts)
    loads = load(flat)
    named = _expert_names(mixture, seen.experts)
    found: dict[str, Any] = {
        "plan": seen.plan,
        "experts": seen.experts,
        "names": named,
        "load": loads.tolist(),
        "dead": [named[e] for e in range(seen.experts) if loads[e] == 0],
        "nearly_dead": [named[e] for e in range(seen.experts) if 0 < loads[e] < FAINT],
        "unrouted": float((seen.first[seen.real] < 0).mean()),
        "confidence": confidence(seen.prob.reshape(-1, seen.experts)),
        "repetition": {"all": _repetition(seen, np.ones(len(seen.first), dtype=bool), block_N)},
        "co_selection": None,
        "similarity": None,
    }
    if domain is not None:
        found["repetition"] |= {
            name: _repetition(seen, domain.value == number, block_N)
            for number, name in enumerate(domain.names)
            if (domain.value == number).any()
        }
    if seen.chosen.sum(-1).max(initial=0) > 1:
        found["co_selection"] = co_selection(seen.chosen.reshape(-1, seen.experts)).tolist()
    if mixture.experts.num_experts > 1:
        weights = weight_similarity(own_weights(mixture))
        made = output_similarity(outputs(mixture, seen.inputs).float().cpu().numpy())
        found["similarity"] = {
            "weights": weights.tolist(),
            "outputs": made.tolist(),
            "duplicates": alike(made, DUPLICATE),
            "rows": len(seen.inputs),
        }
    return found


def _expert_names(mixture: MixtureLayer, experts: int) -> list[str]:
    """Numbers; zero-compute experts with their kinds."""
    kinds = () if mixture.zero_compute is None else mixture.zero_compute.kinds
    real = experts - len(kinds)
    return [*map(str, range(real)), *(f"{real + place} ({kind})" for place, kind in enumerate(kinds))]


def _repetition(seen: Observed, which: Array, block_N: Array) -> dict[str, Any]:
    first = first_repetition(seen.first[which], seen.experts, block_N[which])
    either = either_repetition(seen.first[which], seen.second[which], seen.experts, block_N[which])
    return {"first": None if first is None else first.as_dict(), "either": None if either is None else either.as_dict()}


def _label(label: Label, layers: Sequence[Observed], block_N: Array, bytes_NS: Array | None) -> dict[str, Any]:
    """For each layer the distribution of experts in each class, the mutual information and its test; of whole texts, also what is
    told beyond the token's own byte. Where some tokens have no expert, the last column is theirs."""
    tables, tests, beyond = [], list[Information | None](), list[Information | None]()
    for layer in layers:
        taken = layer.taken
        if label.of_tokens:
            if label.value.shape != taken.shape[:2]:
                continue
            tables.append(joint(label.value, taken, len(label.names)))
            test = information(label.value, taken, len(label.names))
        else:
            tables.append(joint(label.value[:, None], taken.sum(1, keepdims=True), len(label.names)))
            mass_C, classes = tables[-1].sum(1), len(label.names)
            test = information(*by_block(label.value, taken, block_N), classes, mass_C=mass_C)
            if bytes_NS is not None and bytes_NS.shape == taken.shape[:2]:
                known = by_block(label.value, taken, block_N, bytes_NS)
                told = partial(_beyond, experts=taken.shape[-1])
                beyond.append(information(*known, classes, mass_C=mass_C, told=told))
        tests.append(test)
    return {
        "names": list(label.names),
        "of_tokens": label.of_tokens,
        "distribution": [(table / np.maximum(table.sum(1, keepdims=True), 1e-12)).tolist() for table in tables],
        "mass": [table.sum(1).tolist() for table in tables],
        "information": [
            None if test is None else {**test.as_dict(), "miller_madow": miller_madow(table)}
            for test, table in zip(tests, tables, strict=True)
        ],
        "best": most_telling(tests),
        "beyond": [None if test is None else test.as_dict() for test in beyond],
        "best_beyond": most_telling(beyond),
    }


def _beyond(table_CX: Array, experts: int) -> float:
    return information_beyond(table_CX.reshape(len(table_CX), -1, experts))


def _paths(layers: Sequence[Observed]) -> dict[str, Any] | None:
    """Paths through all layers; None where layers see different tokens."""
    if len({layer.first.shape for layer in layers}) > 1:
        return None
    found = paths_through(np.stack([layer.first.reshape(-1) for layer in layers]), [layer.experts for layer in layers])
    return None if found is None else asdict(found)


def sentences(found: dict[str, Any]) -> list[str]:
    """What the numbers say, in a few sentences that each carry their chance level or interval."""
    said = []
    for name, label in found["labels"].items():
        best = label["best"]
        if best is None:
            continue
        test, p = label["information"][best["layer"]], best["p"]
        tested = f" for the most of {best['tested']} layers" if best["tested"] > 1 else ""
        told = f"{max(0.0, test['corrected']):.3f} bits of {test['most']:.2f} (layer {best['layer']}, p={p:.2g}{tested})"
        said.append(
            f"The choice of an expert tells {_unit(name)}: {told}."
            if p < 0.05
            else f"Nothing is shown about {_unit(name)} beyond chance: {told}."
        )
        best = label["best_beyond"]
        if best is not None:
            bits = max(0.0, label["beyond"][best["layer"]]["corrected"])
            told = f"{bits:.3f} bits (layer {best['layer']}, p={best['p']:.2g}{tested})"
            said.append(
                f"About {_unit(name)} it tells, beyond the token's own byte, {told}."
                if best["p"] < 0.05
                else f"Nothing is shown about {_unit(name)} beyond the token's own byte: {told}."
            )
    repeats = [
        (layer, each["repetition"]["all"]["first"])
        for layer, each in enumerate(found["layers"])
        if each["repetition"]["all"]["first"]
    ]
    if repeats:
        layer, most = max(repeats, key=lambda pair: pair[1]["share"]["mean"] - pair[1]["chance"])
        share = format_interval(most["share"], format_percent)
        said.append(
            f"Consecutive tokens share their first expert in {share} of cases in layer {layer}; any two of a text in "
            f"{most['within']:.1%}, any two in {most['chance']:.1%} (chance under its load), {most['uniform']:.1%} with even loads."
        )
    whole = found["paths"]
    if whole is not None and len(found["layers"]) > 1:
        said.append(
            f"{whole['distinct']} of {whole['possible']} paths through the layers are used by {whole['tokens']} tokens, "
            f"as many as {whole['effective']:.1f} equally frequent ones ({2 ** whole['independent']:.1f} if layers chose independently)."
        )
    single = [row for row in found["ablation"] if row["kind"] == "without"]
    if single:
        worst = max(single, key=lambda row: row["rise"]["mean"])
        none = sum(not row["rise"]["low"] > 0 for row in single)
        said.append(
            f"Without expert {worst['expert']} of layer {worst['layer']} the loss rises most, by {_rise(worst['rise'])}; "
            f"{none} of {len(single)} experts can go without a rise that this sample shows."
        )
    whole_random = [row for row in found["ablation"] if row["kind"] == "random"]
    if whole_random:
        where = " in all layers" if len(found["layers"]) > 1 else ""
        said.append(f"Random routing{where} costs {_rise(whole_random[-1]['rise'])}.")
    dead = sum(len(each["dead"]) for each in found["layers"])
    if dead:
        said.append(f"{dead} of {sum(each['experts'] for each in found['layers'])} experts got no token of the sample.")
    return said


def _unit(name: str) -> str:
    return {"domain": "the domain", "class": "the class", "target": "the quarter of the target", "byte": "the kind of byte"}[
        name
    ]


def _rise(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"
