"""Sentences on the intervals of a comparison: what they cover and can show, what limits them, and what seeds alone would say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.statistics.exact_tests import smallest_sign_flip_p
from routelab.comparison.statistics.two_way import FEW_UNITS, bound_remaining_error
from routelab.comparison.verdict import concentration_text, is_concentrated
from routelab.core.number_format import are_finite, format_change_size, format_level, format_units, join_names, pluralise

MOSTLY = 0.8
"""Smallest fraction of a standard error that stays, at confidence `_CONFIDENCE`, if a source of uncertainty is the limit."""

_CONFIDENCE = 0.95
"""Confidence of the lower bound of the fraction of a standard error that stays."""


def caveat_of(
    arms: Mapping[str, Any],
    seeds: int,
    sequential: bool,
    uncertainty: Sequence[str],
    unit: str | None = None,
    alpha: float = 0.05,
) -> str:
    """Return what the intervals cover, the effect that they can show, and what limits them.

    Args:
        arms: Label -> entry of the summary.
        seeds: Number of seeds.
        sequential: Whether seeds were added while verdicts were open.
        uncertainty: Sources of uncertainty that intervals were to cover.
        unit: Name of the test unit, None if the runs recorded no test units.
        alpha: Level of a test.
    """
    texts = []
    if seeds < 2:
        texts.append(_one_seed_text(uncertainty))
    elif sequential and list(uncertainty) == ["examples"]:
        texts.append(
            f"Results were seen before the number of seeds ({seeds}) was final: these intervals do not allow for that."
        )
    elif sequential:
        texts.append(
            f"Results were seen before the number of seeds ({seeds}) was final. Intervals of differences in test loss and metric "
            "hold at every interim analysis and are widened for skewness. Those of leverage, time and single arms do not."
        )
    else:
        texts += _power_text(arms, seeds, uncertainty, alpha)
    if seeds > 1 or list(uncertainty) == ["examples"]:
        texts.append(_coverage_text(arms, uncertainty, unit))
    return " ".join([*texts, *_limits(arms, unit or "example", sequential)])


def _one_seed_text(uncertainty: Sequence[str]) -> str:
    if list(uncertainty) == ["examples"]:
        return "One seed says nothing about how much seeds differ."
    return (
        "One seed says nothing about how much seeds differ, so there are no intervals. seeds=auto adds seeds while they can lead to "
        "a verdict, up to statistics.max_seeds."
    )


def _power_text(arms: Mapping[str, Any], seeds: int, uncertainty: Sequence[str], alpha: float) -> list[str]:
    texts = []
    if list(uncertainty) == ["seeds"]:
        smallest = smallest_sign_flip_p(seeds)
        never = ", so that test can never reach .05" if smallest > 0.05 else ""
        texts.append(f"With {seeds} seeds the smallest possible exact sign-flip p is {smallest:.4g}{never}.")
    detectable = [arm["detectable"] for arm in arms.values() if arm.get("detectable") and math.isfinite(arm["detectable"])]
    if detectable:
        low, high = format_change_size(min(detectable)), format_change_size(max(detectable))
        # "more than 1000%" needs no "about".
        size = f"{'about ' if low[0].isdigit() else ''}{low if low == high else f'{low} to {high} (by arm)'}"
        texts.append(
            f"Before adjustment, tests at level {format_level(alpha)} find a true difference in test loss of {size} 8 times in 10."
        )
    return texts


def _coverage_text(arms: Mapping[str, Any], uncertainty: Sequence[str], unit: str | None) -> str:
    """Return what the intervals cover; arms whose intervals cover something else than most are named."""
    by_cover: dict[tuple[str, ...], list[str]] = {}
    for label, arm in arms.items():
        if arm.get("covered"):
            by_cover.setdefault(tuple(arm["covered"]), []).append(label)
    if "examples" in uncertainty and unit is None:
        return "No test units were recorded, so intervals cover training seeds only, and claims are about this test split."
    if not by_cover:
        by_cover = {tuple(source for source in ("seeds", "examples") if source in uncertainty): []}
    name = pluralise(unit or "example")
    if len(by_cover) == 1:
        (covered,) = by_cover
        return f"Intervals cover {_sources(covered, name)}{_population(arms, covered)}."
    phrases = [f"{_sources(covered, name)} for {join_names(labels)}" for covered, labels in by_cover.items()]
    return f"Intervals cover {'; '.join(phrases)}."


def _sources(covered: Sequence[str], units: str) -> str:
    names = [name for source, name in (("seeds", "training seeds"), ("examples", f"test {units}")) if source in covered]
    return " and ".join(names) if len(names) > 1 else f"{names[0]} only"


def _population(arms: Mapping[str, Any], covered: Sequence[str]) -> str:
    """Return what claims are about if intervals cover one source of uncertainty."""
    if "examples" not in covered:
        return ": claims are about this test split"
    if "seeds" in covered:
        return ""
    depends = [arm["warnings"]["depends_on_seed"] for arm in arms.values() if arm.get("covered")]
    return (
        ": claims are about these trained models"
        if any(depends) or not depends
        else ", as no arm's results differ between seeds"
    )


def _limits(arms: Mapping[str, Any], unit: str, sequential: bool) -> list[str]:
    """Return which standard error is the larger one for which arms, and what would shrink them.

    In a sequential comparison the verdict of an arm says whether the test set is its limit, and seeds are added otherwise.
    """
    # seeds=auto adds no seeds for an arm that diverged.
    both = {label: arm["difference"] for label, arm in arms.items() if _covers_both(arm) and arm["withheld"] != "diverged"}
    if not both:
        return []
    units = pluralise(unit)
    larger = {
        f"test {units}": [label for label, estimate in both.items() if estimate["unit_error"] > estimate["seed_error"]],
        "seeds": [label for label, estimate in both.items() if estimate["unit_error"] <= estimate["seed_error"]],
    }
    clauses = [f"over {source} for {_arms(labels, arms)}" for source, labels in larger.items() if labels]
    texts = [f"The larger standard error is that {' and '.join(clauses)}."]
    if sequential:
        return texts
    remaining = {label: _remaining(estimate) for label, estimate in both.items()}
    by_units = [label for label, (without_seeds, _) in remaining.items() if without_seeds >= MOSTLY]
    by_seeds = [
        label for label, (_, without_units) in remaining.items() if without_units >= MOSTLY and _has_many_units(arms[label])
    ]
    neither = [label for label in both if label not in by_units and label not in by_seeds]
    confidence = f"({100 * _CONFIDENCE:.0f}% confidence)"
    if by_units:
        low = math.floor(100 * min(remaining[label][0] for label in by_units))
        texts.append(
            f"More seeds would hardly help: the test {units} are the limit for {_arms(by_units, arms)}. With any number of seeds, at "
            f"least {low}% of the standard error would stay {confidence}."
        )
    if by_seeds:
        low = math.floor(100 * min(remaining[label][1] for label in by_seeds))
        texts.append(
            f"The seeds are the limit for {_arms(by_seeds, arms)}: seeds=auto adds seeds without raising the error rate. With any "
            f"number of test {units}, at least {low}% of the standard error would stay {confidence}."
        )
    if neither:
        texts.append(
            f"It is not clear what the limit is for {_arms(neither, arms)}: more seeds (seeds=auto) or more test {units} may shrink "
            "the standard error."
        )
    return texts


def _has_many_units(arm: Mapping[str, Any]) -> bool:
    """Return whether the units are so many, and so even in influence, that their variance is known well."""
    return bool(arm["difference"]["units"] >= FEW_UNITS) and not is_concentrated(arm)


def _remaining(difference: Mapping[str, Any]) -> tuple[float, float]:
    """Return lower bounds of the fractions of a standard error that would stay with any number of seeds, and of test units."""
    names = ("seed_error", "unit_error", "seed_floor", "unit_floor")
    return bound_remaining_error(
        difference["n"], difference["units"], **{name: difference[name] for name in names}, confidence=_CONFIDENCE
    )


def _arms(labels: Sequence[str], arms: Mapping[str, Any]) -> str:
    """Return the labels of arms as a list, "every arm" if they are several and all but the reference."""
    return "every arm" if len(labels) == len(arms) - 1 > 1 else join_names(labels)


def _covers_both(arm: Mapping[str, Any]) -> bool:
    error = (arm.get("difference") or {}).get("standard_error")
    return arm.get("covered") == ["seeds", "examples"] and are_finite(error) and bool(error)


def explain_uncertainty(arms: Mapping[str, Any], reference: str | None, unit: str | None) -> str | None:
    """Explain in two sentences why verdicts over seeds alone differ from those over seeds and test units.

    Args:
        arms: Label -> entry of the summary.
        reference: Label of the reference.
        unit: Name of the test unit.

    Returns:
        The explanation; None if no verdict over both differs.
    """
    changed = {
        label: arm
        for label, arm in arms.items()
        if arm.get("over_seeds")
        and arm.get("covered") == ["seeds", "examples"]
        and arm["state"]
        and arm["over_seeds"]["state"] not in (arm["state"], None)
    }
    if not changed or unit is None:
        return None
    phrases = {
        "better": "judged better",
        "worse": "judged worse",
        "equivalent": "judged equivalent",
        "open": "undecided",
        "withheld": "left without a verdict",
    }
    states = {
        phrase: labels
        for state, phrase in phrases.items()
        if (labels := [label for label, arm in changed.items() if arm["over_seeds"]["state"] == state])
    }
    judged = " and ".join(f"{join_names(labels)} would be {phrase}" for phrase, labels in states.items())
    units = max(arm["difference"]["units"] for arm in changed.values())
    concentrated = [arm for arm in changed.values() if is_concentrated(arm)]
    influence = ""
    if concentrated:
        extreme = max(concentrated, key=lambda arm: arm["warnings"]["concentration"])
        influence = f": {concentration_text(extreme, unit)} of the squared influence on a difference from {reference}"
    return (
        f"With statistics.uncertainty=[seeds], {judged}, as if these {format_units(units, unit)} were the whole test population. "
        f"The verdicts here also cover other samples of {pluralise(unit)}{influence}."
    )
