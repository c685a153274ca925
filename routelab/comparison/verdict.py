"""Verdicts in words: what a comparison says about each arm, and never a winner without an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.budget_accounting import NEARLY
from routelab.comparison.statistics.exact_tests import smallest_sign_flip_p
from routelab.core.number_format import format_detectable_change, format_level
from routelab.report.arm_labels import marked


def verdict_of(label: str, entry: Mapping[str, Any], reference: str | None) -> str:
    """The sentence for one arm, from its entry in the summary."""
    text = _verdict(label, entry, reference)
    return f"{text}; leaks: an output depends on {entry['leaks']}" if entry.get("leaks") else text


def _verdict(label: str, entry: Mapping[str, Any], reference: str | None) -> str:
    if label == reference:
        return "the reference"
    if entry["n"] == 0:
        return "failed on every seed"
    difference = entry["difference"]
    if reference is None:
        return "no reference to compare with"
    if difference is None:
        return f"shares no seed with {reference}"
    low, mean, high = (math.expm1(difference[part]) * 100 for part in ("low", "mean", "high"))
    if difference["n"] < 2:
        return f"test loss {mean:+.1f}% against {reference}; one seed gives no interval"
    bounds = f"[{low:+.1f}, {high:+.1f}]" if _finite(low, high) else "[no bounds from so few seeds]"
    parts = [f"test loss {mean:+.1f}% {bounds} against {reference}", _price_of_loss(entry)]
    parts += [f"n={difference['n']}", _p_value(entry), _time(entry)]
    text = f"{_STATES[entry['state']]}: {', '.join(part for part in parts if part)}"
    if entry["state"] == "open" and entry.get("seeds_needed"):
        more = entry["seeds_needed"] - difference["n"]
        text += f"; underpowered: about {more} more seed{'' if more == 1 else 's'} would settle a difference as large as this"
    return text


_STATES = {"better": "better", "worse": "worse", "equivalent": "equivalent", "open": "undecided"}


def _price_of_loss(entry: Mapping[str, Any]) -> str:
    """What the arm's loss costs on the dense frontier, if there is one."""
    own = (entry.get("leverage") or {}).get("own")
    if own is None:
        return ""
    if own["bound"] == ">":
        return f"a loss that no dense model of the ladder reaches (leverage above {own['mean']:.2g})"
    if own["bound"] == "<":
        return f"a loss that the cheapest dense model of the ladder undercuts (leverage below {own['mean']:.2g})"
    interval = f" [{own['low']:.2f}, {own['high']:.2f}]" if _finite(own["low"], own["high"]) else ""
    earlier = ", earlier runs' counted" if entry.get("initial_flops") else ""
    return f"which dense models reach with {own['mean']:.2f}x its training FLOPs{earlier}{interval}"


def _p_value(entry: Mapping[str, Any]) -> str:
    if entry.get("sequential"):
        return f"interval valid at every look, level {entry['sequential']:.2g}"
    if entry["state"] == "equivalent":
        return f"equivalence p={entry['p_equivalent']:.2g}"
    return f"Holm p={entry['p_holm']:.2g}"


def _time(entry: Mapping[str, Any]) -> str:
    ratio = entry.get("time_ratio")
    if ratio is None or not _finite(ratio["low"], ratio["high"]):
        return ""
    time = "no difference in time" if ratio["low"] <= 1 <= ratio["high"] else f"{ratio['mean']:.2f}x the time"
    return f"{time} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def sentence_of(arms: Mapping[str, Any], reference: str | None, data: str, level: float, sequential: bool) -> str:
    """What the comparison says, for every arm but the reference."""
    if reference is None:
        return f"On {data}, no arm is the reference (match.reference), so there are no paired differences."
    if not arms[reference]["n"]:
        return f"On {data}, the reference {reference} failed on every seed, so no arm could be compared with it."
    others = {marked(label, arm.get("marks")): arm for label, arm in arms.items() if label != reference}
    if not others:
        return f"On {data}, {reference} was trained alone, so there is nothing to compare it with."
    judged = {state: [name for name, arm in others.items() if arm["state"] == state] for state in _STATES}
    groups = {
        "had a lower test loss than {reference}": judged["better"],
        "had a higher test loss than {reference}": judged["worse"],
        "did as well as {reference}": judged["equivalent"],
        "could not be told apart from {reference}": judged["open"],
        "cannot be judged by one seed": [n for n, arm in others.items() if arm["difference"] and arm["difference"]["n"] == 1],
        "failed on every seed": [n for n, arm in others.items() if not arm["n"]],
        "shared no seed with {reference}": [n for n, arm in others.items() if arm["n"] and not arm["difference"]],
    }
    parts = [f"{_list(names)} {what.format(reference=reference)}" for what, names in groups.items() if names]
    test = ""
    if any(judged.values()):
        name = "sequential paired t-tests over seeds, Bonferroni" if sequential else "paired t-tests over seeds, Holm-adjusted"
        test = f" ({name}, level {format_level(level)})"
    leaking = [label for label, arm in arms.items() if arm["leaks"]]
    warning = f" No fair comparison, as outputs depend on what they must not: {_list(leaking)}." if leaking else ""
    # References outside the loop were matched to nothing.
    known = any(arm.get("flops_ratio") is not None for arm in others.values())
    uncounted = [name for name, arm in others.items() if known and arm["n"] and arm.get("flops_ratio") is None]
    exempt = f" FLOPs are not counted, and so not equal, for {_list(uncounted)}." if uncounted else ""
    return f"On {data}, {_price(others, reference)}: {'; '.join(parts)}{test}.{exempt}{warning}"


def _price(others: Mapping[str, Any], reference: str) -> str:
    """At what cost the arms stood beside the reference: matching may be off, or left with a wide tolerance."""
    ratios = [arm["flops_ratio"] for arm in others.values() if arm.get("flops_ratio") is not None]
    if not ratios:
        return "at a cost in FLOPs that is not known"
    if all(abs(ratio - 1) <= NEARLY for ratio in ratios):
        return "at equal forward FLOPs per example"
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"at {low if low == high else f'{low} to {high}'} times the forward FLOPs per example of {reference}"


def caveat_of(arms: Mapping[str, Any], seeds: int, sequential: bool) -> str:
    """What so many seeds can and cannot show."""
    fixed = "The test split is fixed: intervals cover training randomness only."
    if seeds < 2:
        return f"One seed says nothing about how much seeds differ; with seeds=5 there are intervals. {fixed}"
    if sequential:
        return f"Seeds were added while a verdict was open, up to {seeds}; intervals hold at every look, p-values would not. {fixed}"
    text = (
        f"With {seeds} seeds the smallest possible exact sign-flip p is {smallest_sign_flip_p(seeds):.4g}"
        f"{', so that test can never reach .05' if smallest_sign_flip_p(seeds) > 0.05 else ''}"
    )
    detectable = [arm["detectable"] for arm in arms.values() if arm.get("detectable") and math.isfinite(arm["detectable"])]
    if detectable:
        low, high = format_detectable_change(min(detectable)), format_detectable_change(max(detectable))
        text += (
            f"; before adjustment, a difference in test loss must be about {low if low == high else f'{low} to {high} (by arm)'} "
            "to be found 8 times in 10"
        )
    return f"{text}. {fixed}"


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
