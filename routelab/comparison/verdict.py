"""Sentences of a comparison: verdicts, the summary, and what its intervals cover and are limited by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from routelab.comparison.budget_accounting import NEARLY
from routelab.comparison.statistics.exact_tests import smallest_sign_flip_p
from routelab.comparison.statistics.sequential import fewest_seeds
from routelab.comparison.statistics.two_way import CONCENTRATED_UNITS, FEW_UNITS
from routelab.config.schema import StatisticsOptions
from routelab.core.number_format import (
    change_decimals,
    format_change_size,
    format_level,
    format_units,
    join_names,
    pluralise,
    to_percent,
)
from routelab.report.arm_labels import marked

EQUAL_TIME = 1.05
"""Ratio of training times within which two arms count as equally fast, if their whole interval lies within it."""

MOSTLY = 0.8
"""Smallest fraction of a standard error that stays, at confidence `_CONFIDENCE`, if a source of uncertainty is the limit."""

_CONFIDENCE = 0.95
"""Confidence of the lower bound of the fraction of a standard error that stays."""

_CONCENTRATED = 0.5
"""Fraction of the squared influence beyond which the few test units that carry it are reported."""


def verdict_of(label: str, entry: Mapping[str, Any], reference: str | None, unit: str | None = None) -> str:
    """Return the sentence on one arm.

    Args:
        label: Label of the arm.
        entry: Entry of the arm in the summary.
        reference: Label of the arm that it is judged against, None if there is none.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    text = _verdict(label, _complete(entry), reference, unit or "example")
    return f"{text}; leaks: an output depends on {entry['leaks']}" if entry.get("leaks") else text


_OF_SEEDS_ALONE: Mapping[str, Any] = {
    "covered": ["seeds"], "withheld": None, "limited": False, "supported_margin": None,
    "warnings": {"outlying_seeds": [], "concentration": None, "depends_on_seed": True},
}  # fmt: skip
"""What is missing in an entry of an earlier version, which judged over seeds alone."""


def _complete(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry with what later versions added."""
    if "covered" in entry:
        return entry
    difference = entry.get("difference")
    return {**_OF_SEEDS_ALONE, **entry, "difference": difference and {"units": None, **difference}}


def _verdict(label: str, entry: Mapping[str, Any], reference: str | None, unit: str) -> str:
    if label == reference:
        return _reference_text(entry)
    if entry["n"] == 0:
        return f"{_failure(entry)} on every seed"
    difference = entry["difference"]
    if reference is None:
        return "no reference to compare with"
    if difference is None:
        return f"shares no finished seed with {reference}"
    # A bound that is not finite is null in summary.json.
    bounds = (math.nan if difference[key] is None else difference[key] for key in ("low", "mean", "high"))
    low, mean, high = map(to_percent, bounds)
    if entry["state"] is None:
        diverged = f"; {_diverged(entry, entry['pair_diverged'])}" if entry.get("pair_diverged") else ""
        return f"test loss {mean:+.1f}% against {reference}; {_no_interval(entry, unit)}{diverged}"
    decimals = change_decimals(low, high)
    interval = f"[{low:+.{decimals}f}, {high:+.{decimals}f}]" if _finite(low, high) else _without_bounds(entry)
    phrases = [f"test loss {mean:+.{decimals}f}% {interval} against {reference}", _price_of_loss(entry), _sample(entry, unit)]
    phrases += [_standard_errors(entry, unit), _p_value(entry), _time(entry)]
    text = f"{_opening(entry)}: {', '.join(phrase for phrase in phrases if phrase)}"
    return "; ".join([text, *_qualifications(entry, unit)])


_STATES = {
    "better": "better", "worse": "worse", "equivalent": "equivalent", "open": "undecided", "withheld": "no verdict",
}  # fmt: skip


def _without_bounds(entry: Mapping[str, Any]) -> str:
    """Return the text in place of infinite bounds: those of few seeds in a sequential analysis, or beyond the range of a float."""
    if entry.get("sequential"):
        fewest = fewest_seeds(entry["sequential"] / (2 if "examples" in entry["covered"] else 1))
        if entry["difference"]["n"] < fewest:
            return f"[no bounds below {fewest} seeds]"
    return "[no finite bounds]"


def _failure(entry: Mapping[str, Any]) -> str:
    """Return what happened to an arm without any result: "diverged" if nothing else did, otherwise "failed"."""
    return "diverged" if entry.get("diverged") and entry["failed"] <= entry["diverged"] else "failed"


def _diverged(entry: Mapping[str, Any], number: int) -> str:
    """Return the clause on the seeds that diverged, of all seeds on which the arm was trained."""
    return f"{number} of {_seeds(entry['n'] + entry['failed'])} diverged"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _reference_text(entry: Mapping[str, Any]) -> str:
    return f"the reference; {_diverged(entry, entry['diverged'])}" if entry.get("diverged") else "the reference"


def _opening(entry: Mapping[str, Any]) -> str:
    if entry["state"] != "withheld":
        limited = entry["state"] == "open" and entry.get("limited")
        return f"{_STATES[entry['state']]}, limited by the test set" if limited else _STATES[entry["state"]]
    seeds = entry["difference"]["n"]
    if entry["withheld"] == "diverged":
        return f"no verdict, as {_diverged(entry, entry['pair_diverged'])}; over {_seeds(seeds)} with results of both arms"
    if entry["withheld"] == "looks":
        return f"no verdict, as results were seen with other seeds; over {_seeds(seeds)}"
    outlying = entry["warnings"]["outlying_seeds"]
    if len(outlying) == 1:
        return f"no verdict, as one seed of {seeds} is an outlier (seed {outlying[0]})"
    return f"no verdict, as {len(outlying)} seeds of {seeds} are outliers (seeds {join_names([*map(str, outlying)])})"


_SAME_RESULTS = "the results of neither arm differ between seeds"


def _no_interval(entry: Mapping[str, Any], unit: str) -> str:
    """Return the reason for which there is no interval."""
    if not entry["covered"]:
        return f"{_SAME_RESULTS}, and no test units were recorded"
    if "seeds" in entry["covered"] and entry["difference"]["n"] < 2:
        return "one seed gives no interval"
    if entry["difference"]["units"] == 1:
        return f"one test {unit} gives no interval over {pluralise(unit)}"
    return "the differences are not finite"


def _sample(entry: Mapping[str, Any], unit: str) -> str:
    """Return the numbers of seeds and test units that the interval covers."""
    difference, covered = entry["difference"], entry["covered"]
    seeds = _seeds(difference["n"])
    if covered == ["seeds", "examples"]:
        return f"{seeds} x {format_units(difference['units'], unit)}"
    if covered == ["seeds"]:
        return f"{seeds}, on this test split"
    if not entry["warnings"]["depends_on_seed"]:
        return f"{format_units(difference['units'], unit)} alone, as {_SAME_RESULTS}"
    models = "the models of this seed" if difference["n"] == 1 else f"the models of these {seeds}"
    return f"{format_units(difference['units'], unit)}, for {models}"


def _standard_errors(entry: Mapping[str, Any], unit: str) -> str:
    """Return both standard errors, the larger one first; "" unless the interval covers both."""
    difference = entry["difference"]
    if entry["covered"] != ["seeds", "examples"]:
        return ""
    errors = sorted([(difference["unit_error"], pluralise(unit)), (difference["seed_error"], "seeds")], reverse=True)
    texts = [f"{format_change_size(error)} over {name}" for error, name in errors]
    return f"standard error {texts[0]} and {texts[1]}"


def _qualifications(entry: Mapping[str, Any], unit: str) -> list[str]:
    """Return the clauses that a reader needs in order to trust the verdict or not."""
    difference, warnings, clauses = entry["difference"], entry["warnings"], []
    if entry["state"] == "open" and _finite(entry["supported_margin"]):
        margin = format_change_size(entry["supported_margin"])
        clauses.append(f"the smallest margin of equivalence that these data support is {margin}")
    if warnings["outlying_seeds"] and entry["withheld"] != "outlying":
        clauses.append(_outliers(warnings["outlying_seeds"]))
    if entry["covered"] == ["seeds", "examples"] and difference["n"] == 2 and not entry.get("sequential"):
        clauses.append("with 2 seeds a 95% interval covers 88% to 97% (simulated)")
    if difference["units"] is not None and difference["units"] < FEW_UNITS:
        units = format_units(difference["units"], unit)
        clauses.append(f"with only {units}, the interval assumes that their effects are normally distributed")
    elif is_concentrated(entry):
        clauses.append(f"{_concentration(entry, unit)} of the squared influence on the difference")
    return clauses


def _outliers(seeds: Sequence[int]) -> str:
    names = join_names([str(seed) for seed in seeds])
    return f"seed {names} is an outlier" if len(seeds) == 1 else f"seeds {names} are outliers"


def notes_of(entry: Mapping[str, Any], unit: str | None) -> list[str]:
    """Return short warnings that must stand beside an arm's difference.

    Args:
        entry: Entry of the arm, or of a pair, in the summary.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    difference, warnings, notes = entry.get("difference"), entry.get("warnings") or {}, []
    if entry.get("pair_diverged"):
        seeds = (difference or {}).get("n", 0) + entry["pair_diverged"]
        notes.append(f"{entry['pair_diverged']} of {seeds} seeds diverged")
    if warnings.get("outlying_seeds"):
        notes.append(_outliers(warnings["outlying_seeds"]))
    units = (difference or {}).get("units")
    if units is not None and units < FEW_UNITS:
        notes.append(f"only {format_units(units, unit or 'example')}")
    elif is_concentrated(entry):
        notes.append(f"{_concentration(entry, unit or 'example')} of the squared influence on the difference")
    return notes


def is_concentrated(entry: Mapping[str, Any]) -> bool:
    """Return whether a few of many test units carry most of the squared influence on an arm's difference.

    Args:
        entry: Entry of the arm, or of a pair, in the summary.
    """
    fraction, units = (entry.get("warnings") or {}).get("concentration"), (entry.get("difference") or {}).get("units")
    return fraction is not None and units is not None and units >= FEW_UNITS and fraction > _CONCENTRATED


def _concentration(entry: Mapping[str, Any], unit: str) -> str:
    units, fraction = entry["difference"]["units"], entry["warnings"]["concentration"]
    return f"{CONCENTRATED_UNITS} of {format_units(units, unit)} carry {100 * fraction:.0f}%"


def _price_of_loss(entry: Mapping[str, Any]) -> str:
    """Return the cost of the arm's loss on the dense frontier; "" if there is no frontier."""
    own = (entry.get("leverage") or {}).get("own")
    if own is None:
        return ""
    if own["bound"] == ">":
        return f"a loss that no dense model of the ladder reaches (leverage above {own['mean']:.2g})"
    if own["bound"] == "<":
        return f"a loss that the cheapest dense model of the ladder undercuts (leverage below {own['mean']:.2g})"
    interval = f" [{own['low']:.2f}, {own['high']:.2f}]" if _finite(own["low"], own["high"]) else ""
    earlier = " (earlier runs' FLOPs included)" if entry.get("initial_flops") else ""
    # A ladder of earlier runs may lack test units.
    seeds_alone = " over seeds alone" if interval and own.get("covered") == ["seeds"] and "examples" in entry["covered"] else ""
    return f"which dense models reach with {own['mean']:.2f}x its training FLOPs{earlier}{interval}{seeds_alone}"


def _p_value(entry: Mapping[str, Any]) -> str:
    if entry.get("sequential"):
        if "seeds" not in entry["covered"]:
            return f"level {entry['sequential']:.2g}"
        return f"interval valid at every interim analysis, level {entry['sequential']:.2g}"
    if entry["state"] == "equivalent":
        return f"equivalence p={entry['p_equivalent']:.2g}"
    return f"Holm p={entry['p_holm']:.2g}"


def _time(entry: Mapping[str, Any]) -> str:
    ratio = entry.get("time_ratio")
    if ratio is None or not _finite(ratio["low"], ratio["high"]):
        return ""
    if ratio["low"] > 1 / EQUAL_TIME and ratio["high"] < EQUAL_TIME:
        time = f"equal training time within {100 * (EQUAL_TIME - 1):.0f}%"
    elif ratio["low"] <= 1 <= ratio["high"]:
        time = "difference in training time undecided"
    else:
        time = f"{ratio['mean']:.2f}x the training time"
    return f"{time} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def sentence_of(
    arms: Mapping[str, Any],
    reference: str | None,
    data: str,
    options: StatisticsOptions,
    sequential: bool,
    unit: str | None = None,
) -> str:
    """Return what the comparison says on every arm but the reference.

    Args:
        arms: Label -> entry of the summary.
        reference: Label of the reference, None if there is none.
        data: Name of the data.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether seeds were added while verdicts were open.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    if reference is None:
        return f"On {data}, no arm is the reference (match.reference), so there are no paired differences."
    if not arms[reference]["n"]:
        failed = _failure(arms[reference])
        return f"On {data}, the reference {reference} {failed} on every seed, so no arm could be compared with it."
    others = {marked(label, arm.get("marks")): arm for label, arm in arms.items() if label != reference}
    if not others:
        return f"On {data}, {reference} was trained alone, so there is nothing to compare it with."
    judged = {state: [name for name, arm in others.items() if arm["state"] == state] for state in _STATES}
    margin = format_change_size(options.margin)
    groups = {
        "had a lower test loss than {reference}": judged["better"],
        "had a higher test loss than {reference}": judged["worse"],
        f"had a test loss within {margin} of {{reference}}'s": judged["equivalent"],
        "could not be told apart from {reference}": judged["open"],
        "got no verdict against {reference}": judged["withheld"],
        "cannot be judged by one seed": _without_interval(others, one_seed=True),
        "cannot be judged by these data": _without_interval(others, one_seed=False),
        "failed on every seed": [n for n, arm in others.items() if not arm["n"] and _failure(arm) == "failed"],
        "diverged on every seed": [n for n, arm in others.items() if not arm["n"] and _failure(arm) == "diverged"],
        "shared no finished seed with {reference}": [n for n, arm in others.items() if arm["n"] and not arm["difference"]],
    }
    clauses = [f"{join_names(names)} {what.format(reference=reference)}" for what, names in groups.items() if names]
    test = f" ({name_tests(others, sequential, unit)}, level {format_level(options.alpha)})" if any(judged.values()) else ""
    leaking = [label for label, arm in arms.items() if arm["leaks"]]
    warning = f" The comparison is not fair: outputs of {join_names(leaking)} depend on what they must not." if leaking else ""
    # References outside the loop were matched to nothing.
    known = any(arm.get("flops_ratio") is not None for arm in others.values())
    uncounted = [name for name, arm in others.items() if known and arm["n"] and arm.get("flops_ratio") is None]
    exempt = f" The FLOPs of {join_names(uncounted)} are not counted, so they may differ." if uncounted else ""
    return f"On {data}, {_price(others, reference)}: {'; '.join(clauses)}{test}.{exempt}{warning}"


def _without_interval(arms: Mapping[str, Any], one_seed: bool) -> list[str]:
    """Return the arms that have a difference without an interval, because of a single seed or for another reason."""
    return [
        name
        for name, arm in arms.items()
        if arm["difference"] and arm["state"] is None and ("seeds" in arm["covered"] and arm["difference"]["n"] < 2) == one_seed
    ]


def name_tests(arms: Mapping[str, Any], sequential: bool, unit: str | None) -> str:
    """Return the name of the tests: what they cover, and how they are adjusted for the number of claims.

    Args:
        arms: Label -> entry of the summary, of arms or of pairs.
        sequential: Whether seeds were added while verdicts were open.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    covered = {source for arm in arms.values() for source in arm["covered"]}
    samples = [
        name for source, name in (("seeds", "seeds"), ("examples", f"test {pluralise(unit or 'example')}")) if source in covered
    ]
    kind = "sequential paired t-tests" if sequential and "seeds" in covered else "paired t-tests"
    return f"{kind} over {' and '.join(samples)}, {'Bonferroni' if sequential else 'Holm-adjusted'}"


def _price(others: Mapping[str, Any], reference: str) -> str:
    """Return the cost at which the arms were compared with the reference; matching may be off, or have a wide tolerance."""
    ratios = [arm["flops_ratio"] for arm in others.values() if arm.get("flops_ratio") is not None]
    if not ratios:
        return "at a cost in FLOPs that is not known"
    if all(abs(ratio - 1) <= NEARLY for ratio in ratios):
        return "at equal forward FLOPs per example"
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"at {low if low == high else f'{low} to {high}'} times the forward FLOPs per example of {reference}"


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
    """Return lower bounds of the fractions of a standard error that would stay with any number of seeds, and of test units.

    Let S, U and E be the expected mean squares of seeds, units and errors. With infinitely many seeds, the fraction f of the
    standard error stays, and 1 - f^2 = S / (S + U - E). S / U is bounded by the F distribution. U - E and S - E are taken as
    estimated, so the confidence is approximate: simulated with normal effects, a printed bound is too high in at most 7%.
    If a few units have most of the influence, the units vary more than the estimate shows. The second bound is therefore for
    `_has_many_units` only.
    """
    degrees = difference["n"] - 1, difference["units"] - 1
    bounds = []
    for floor, error, of_error, of_floor in (
        (difference["unit_floor"], difference["seed_error"], *degrees),
        (difference["seed_floor"], difference["unit_error"], *degrees[::-1]),
    ):
        quantile = float(stats.f.ppf(1 - _CONFIDENCE, of_error, of_floor))
        bounds.append(math.sqrt(floor**2 / (floor**2 + error**2 / quantile)) if floor else 0.0)
    return bounds[0], bounds[1]


def _arms(labels: Sequence[str], arms: Mapping[str, Any]) -> str:
    """Return the labels of arms as a list, "every arm" if they are several and all but the reference."""
    return "every arm" if len(labels) == len(arms) - 1 > 1 else join_names(labels)


def _covers_both(arm: Mapping[str, Any]) -> bool:
    error = (arm.get("difference") or {}).get("standard_error")
    return arm.get("covered") == ["seeds", "examples"] and _finite(error) and bool(error)


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
        influence = f": {_concentration(extreme, unit)} of the squared influence on a difference from {reference}"
    return (
        f"With statistics.uncertainty=[seeds], {judged}, as if these {format_units(units, unit)} were the whole test population. "
        f"The verdicts here also cover other samples of {pluralise(unit)}{influence}."
    )


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
