"""Sentences on one arm: its verdict, and the warnings beside its difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.statistics.sequential import fewest_seeds
from routelab.comparison.statistics.two_way import CONCENTRATED_UNITS, FEW_UNITS
from routelab.core.number_format import (
    are_finite,
    change_decimals,
    format_change_size,
    format_units,
    join_names,
    pluralise,
    to_percent,
)

EQUAL_TIME = 1.05
"""Ratio of training times within which two arms count as equally fast, if their whole interval lies within it."""

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
"""Fields that an entry of an earlier version lacks, which judged over seeds alone, and their values."""


def _complete(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry with all fields of `_OF_SEEDS_ALONE`."""
    if "covered" in entry:
        return entry
    difference = entry.get("difference")
    return {**_OF_SEEDS_ALONE, **entry, "difference": difference and {"units": None, **difference}}


def _verdict(label: str, entry: Mapping[str, Any], reference: str | None, unit: str) -> str:
    if label == reference:
        return _reference_text(entry)
    if entry["n"] == 0:
        return f"{failure_of(entry)} on every seed"
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
    interval = f"[{low:+.{decimals}f}, {high:+.{decimals}f}]" if are_finite(low, high) else _without_bounds(entry)
    phrases = [f"test loss {mean:+.{decimals}f}% {interval} against {reference}", _price_of_loss(entry), _sample(entry, unit)]
    phrases += [_standard_errors(entry, unit), _p_value(entry), _time(entry)]
    text = f"{_opening(entry)}: {', '.join(phrase for phrase in phrases if phrase)}"
    return "; ".join([text, *_qualifications(entry, unit)])


STATES = {
    "better": "better", "worse": "worse", "equivalent": "equivalent", "open": "undecided", "withheld": "no verdict",
}  # fmt: skip


def _without_bounds(entry: Mapping[str, Any]) -> str:
    """Return the text in place of infinite bounds: those of few seeds in a sequential analysis, or beyond the range of a float."""
    if entry.get("sequential"):
        fewest = fewest_seeds(entry["sequential"] / (2 if "examples" in entry["covered"] else 1))
        if entry["difference"]["n"] < fewest:
            return f"[no bounds below {fewest} seeds]"
    return "[no finite bounds]"


def failure_of(entry: Mapping[str, Any]) -> str:
    """Return what happened to an arm without any result: "diverged" if nothing else did, otherwise "failed".

    Args:
        entry: Entry of the arm in the summary.
    """
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
        return f"{STATES[entry['state']]}, limited by the test set" if limited else STATES[entry["state"]]
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
    if entry["state"] == "open" and are_finite(entry["supported_margin"]):
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
        clauses.append(f"{concentration_text(entry, unit)} of the squared influence on the difference")
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
        notes.append(f"{concentration_text(entry, unit or 'example')} of the squared influence on the difference")
    return notes


def is_concentrated(entry: Mapping[str, Any]) -> bool:
    """Return whether a few of many test units carry most of the squared influence on an arm's difference.

    Args:
        entry: Entry of the arm, or of a pair, in the summary.
    """
    fraction, units = (entry.get("warnings") or {}).get("concentration"), (entry.get("difference") or {}).get("units")
    return fraction is not None and units is not None and units >= FEW_UNITS and fraction > _CONCENTRATED


def concentration_text(entry: Mapping[str, Any], unit: str) -> str:
    """Return how much of the squared influence on a difference the most influential test units carry, without its object.

    Args:
        entry: Entry of the arm, or of a pair, in the summary.
        unit: Name of the test unit.
    """
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
    interval = f" [{own['low']:.2f}, {own['high']:.2f}]" if are_finite(own["low"], own["high"]) else ""
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
    if ratio is None or not are_finite(ratio["low"], ratio["high"]):
        return ""
    if ratio["low"] > 1 / EQUAL_TIME and ratio["high"] < EQUAL_TIME:
        time = f"equal training time within {100 * (EQUAL_TIME - 1):.0f}%"
    elif ratio["low"] <= 1 <= ratio["high"]:
        time = "difference in training time undecided"
    else:
        time = f"{ratio['mean']:.2f}x the training time"
    return f"{time} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
