"""Texts on the estimates of a summary: the sample, the standard errors, and what intervals cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routelab.core.number_format import finite, format_units, join_names, pluralise

SEEDS_ALONE = "Judged over training seeds only: this comparison recorded no test units"
"""Statement of what the verdicts of a comparison by an earlier version cover."""

ERROR_KEYS = {"seeds": "seed_error", "examples": "unit_error"}
"""Source of uncertainty -> key of its standard error in an estimate."""


def is_older(summary: Mapping[str, Any]) -> bool:
    """Return whether a summary is of a version without test units, which judged over training seeds alone.

    Args:
        summary: Summary of a comparison.
    """
    return "unit" not in summary


def unit_of(summary: Mapping[str, Any]) -> str:
    """Return the name of a comparison's test unit, "example" if it recorded none.

    Args:
        summary: Summary of the comparison.
    """
    return str(summary.get("unit") or "example")


def sources_of(estimate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the sources of uncertainty, "seeds" and "examples", that an estimate's standard error covers.

    Args:
        estimate: Estimate of a summary; those of earlier versions have no standard errors.
    """
    return tuple(source for source, key in ERROR_KEYS.items() if finite((estimate or {}).get(key)) is not None)


def larger_error(estimate: Mapping[str, Any] | None) -> str | None:
    """Return the key of an estimate's larger standard error, "seed_error" or "unit_error"; None unless it covers both sources.

    Args:
        estimate: Estimate of a summary.
    """
    if estimate is None or len(sources_of(estimate)) < 2:
        return None
    return "unit_error" if estimate["unit_error"] > estimate["seed_error"] else "seed_error"


def sample_of(estimate: Mapping[str, Any] | None, unit: str) -> str:
    """Return the numbers of seeds and test units that an estimate covers, "" without a standard error.

    Args:
        estimate: Estimate of a summary.
        unit: Name of the test unit.
    """
    sources = sources_of(estimate)
    if estimate is None or not sources:
        return ""
    seeds = f"{estimate['n']} seed{'' if estimate['n'] == 1 else 's'}"
    units = format_units(estimate["units"], unit) if "examples" in sources else ""
    return f"{seeds} \u00d7 {units}" if len(sources) > 1 else units or seeds


_POPULATIONS = {
    ("seeds", "examples"): "training seeds and test {units}",
    ("seeds",): "training seeds on this test split",
    ("examples",): "test {units} for these trained models",
}


def coverage_of(summary: Mapping[str, Any], estimates: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return what the intervals of several estimates cover, with those that cover less than the others by name.

    Args:
        summary: Summary of the comparison.
        estimates: Label -> estimate.
    """
    units = pluralise(unit_of(summary))
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, estimate in estimates.items():
        groups.setdefault(sources_of(estimate), []).append(label)
    groups.pop((), None)
    main = next((sources for sources in _POPULATIONS if sources in groups), _intended(summary))
    texts = {sources: text.format(units=units) for sources, text in _POPULATIONS.items()}
    others = [f"{join_names(labels)}: over {texts[sources]}" for sources, labels in groups.items() if sources != main]
    return texts[main] + (f" ({'; '.join(others)})" if others else "")


def _intended(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sources of uncertainty that a comparison's intervals were to cover, if there is no interval."""
    chosen = summary.get("uncertainty") or ["seeds"]
    return tuple(source for source in ("seeds", "examples") if source in chosen) if summary.get("unit") else ("seeds",)


def describe_intervals(
    summary: Mapping[str, Any], estimates: Mapping[str, Mapping[str, Any] | None], sequential: bool | None = None
) -> str:
    """Return what the intervals of several estimates are, and what they cover.

    Args:
        summary: Summary of the comparison.
        estimates: Label -> estimate.
        sequential: Whether they hold at every interim analysis; None = as the summary says.
    """
    coverage = coverage_of(summary, estimates)
    if summary.get("sequential") if sequential is None else sequential:
        known = [sources for sources in map(sources_of, estimates.values()) if sources] or [_intended(summary)]
        over_seeds = any("seeds" in sources for sources in known)
        return (
            f"intervals over {coverage} that hold at every interim analysis" if over_seeds else f"t-intervals over {coverage}"
        )
    kind = "two-way intervals" if any(len(sources_of(estimate)) > 1 for estimate in estimates.values()) else "t-intervals"
    return f"{100 * (1 - _level(summary)):g}% {kind} over {coverage}"


def intervals_of(summary: Mapping[str, Any], claims: Iterable[tuple[str, Mapping[str, Any]]] | None = None) -> str:
    """Return what the intervals of differences are, and how they relate to the verdicts.

    Args:
        summary: Summary of the comparison.
        claims: Labels and entries that are judged together; None = the arms.
    """
    entries = (summary.get("arms") or {}).items() if claims is None else claims
    text = describe_intervals(summary, {label: entry.get("difference") for label, entry in entries})
    if summary.get("sequential"):
        return f"{text}, their level of {_level(summary):g} divided among those that are judged"
    return f"{text}, not adjusted for how many are judged; Holm's p, which decides, is"


def _level(summary: Mapping[str, Any]) -> float:
    return float(summary.get("level") or 0.05)
