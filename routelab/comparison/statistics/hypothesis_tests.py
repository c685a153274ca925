"""Hypothesis tests of the paired differences of arms: once, or after every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.exact_tests import holm, sign_flip_p
from routelab.comparison.statistics.outlying_seeds import outlying_seeds
from routelab.comparison.statistics.power import detectable_shift
from routelab.comparison.statistics.sequential import analyse_interim, seeds_to_settle
from routelab.comparison.statistics.two_way import Estimate, influence_concentration
from routelab.config.schema import StatisticsOptions
from routelab.core.intervals import Interval, bca_interval

State = Literal["better", "worse", "equivalent", "open", "withheld"]


@dataclass(frozen=True)
class Result:
    """Result of the test of one arm.

    Attributes:
        estimate: Estimate of the difference.
        interval: Interval of the difference, not adjusted for the number of arms, or one that holds at all interim analyses.
        covered: Sources of uncertainty that estimate and interval cover.
        state: Verdict: better, worse, equivalent, open (undecided) or withheld; None if there is no interval.
        withheld: Reason for which the verdict is withheld; None if it is not. "outlying": a claim rests on an outlying seed;
            "diverged": a run diverged; "looks": results were seen with other seeds, which the test does not allow for.
        outlying: Seeds that lie beyond the threshold of `outlying_seeds`.
        p: Two-sided p-value; None with interim analyses.
        p_holm: The same after Holm's adjustment over the arms.
        p_equivalent: p-value of equivalence after Holm's adjustment.
        supported_margin: Smallest margin of equivalence that the data support, with the level divided among the arms.
        level: Level of this arm, with interim analyses; None otherwise.
        limited: Whether no number of further seeds can decide, with interim analyses.
        unit_half: Part of the interval's half width that covers test units, with interim analyses.
    """

    estimate: Estimate
    interval: Interval
    covered: tuple[str, ...]
    state: State | None = None
    withheld: str | None = None
    outlying: list[int] = field(default_factory=list)
    p: float | None = None
    p_holm: float | None = None
    p_equivalent: float | None = None
    supported_margin: float = math.nan
    level: float | None = None
    limited: bool = False
    unit_half: float = 0.0

    @property
    def needs_seeds(self) -> bool:
        """Return whether further seeds can lead to a verdict."""
        return (self.state == "open" and not self.limited) or self.withheld == "outlying"


def seeds_to_decide(contrast: Contrast, result: Result) -> int | None:
    """Return how many seeds a sequential test needs to decide a difference as large as this one, 8 times in 10.

    The part of the interval that covers test units does not shrink with the seeds, so it is taken off the difference.

    Args:
        contrast: Differences so far, of at least two seeds.
        result: Result of an interim analysis of them.

    Returns:
        Number of seeds, None if it is beyond 100,000. If the difference lies within the part that covers units, it is a quarter more
        than the present number, as the next analysis may show that the test set is the limit.
    """
    assert result.level is not None
    mean = result.estimate.mean
    if abs(mean) <= result.unit_half:
        return len(contrast.values_S) + max(1, len(contrast.values_S) // 4)
    level = result.level / 2 if "examples" in result.covered else result.level
    return seeds_to_settle((contrast.values_S - math.copysign(result.unit_half, mean)).tolist(), level)


def judge(
    arms: Mapping[str, dict[str, Any]],
    contrasts: Mapping[str, Contrast],
    options: StatisticsOptions,
    sequential: bool,
    first_look: int | None = None,
    family: int = 0,
) -> None:
    """Fill in the verdict of every arm and the numbers that it rests on.

    Args:
        arms: Label -> entry of the summary, which receives `difference`, `state` and the fields of `Result`.
        contrasts: Label -> differences of the arms that are judged. They are one family of claims.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether seeds were added while verdicts were open, so that intervals must hold at all interim analyses.
        first_look: Smallest number of seeds at which an analysis was made, with sequential; None = `options.min_seeds`.
        family: Number of arms in the family of claims, if it is larger than the number of contrasts.
    """
    results = evaluate_contrasts(contrasts, options, sequential, first_look, family)
    over_seeds: dict[str, Result] = {}
    if not sequential and "examples" in options.uncertainty:
        over_seeds = evaluate_contrasts(contrasts, replace(options, uncertainty=["seeds"]), sequential=False, family=family)
    for label, entry in arms.items():
        entry.update(dict.fromkeys(("difference", "state", "p_sign_flip", "bca", "detectable", "withheld", "supported_margin")))
        entry.update({"covered": [], "warnings": {}, "limited": False, "sequential": None, "over_seeds": None})
        if label not in results:
            continue
        contrast, result = contrasts[label], results[label]
        entry.update(
            {
                "difference": _describe(result),
                "covered": list(result.covered),
                "state": result.state,
                "withheld": result.withheld,
                "p_t": result.p,
                "p_holm": result.p_holm,
                "p_equivalent": result.p_equivalent,
                "supported_margin": result.supported_margin,
                "sequential": result.level,
                "limited": result.limited,
                "pair_diverged": contrast.diverged,
                "warnings": _warnings(contrast, result),
            }
        )
        if not sequential:
            entry["detectable"] = _detectable_difference(result.estimate, options.alpha)
        if not sequential and contrast.depends_on_seed:
            bca = bca_interval(contrast.values_S.tolist(), 1 - options.alpha)
            entry.update({"p_sign_flip": sign_flip_p(contrast.values_S.tolist()), "bca": bca.as_dict() if bca else None})
        if label in over_seeds and "examples" in result.covered and contrast.depends_on_seed:
            entry["over_seeds"] = {
                **over_seeds[label].interval.as_dict(), "p_holm": over_seeds[label].p_holm, "state": over_seeds[label].state
            }  # fmt: skip


def evaluate_contrasts(
    contrasts: Mapping[str, Contrast],
    options: StatisticsOptions,
    sequential: bool,
    first_look: int | None = None,
    family: int = 0,
) -> dict[str, Result]:
    """Test the differences of a family of arms.

    Args:
        contrasts: Label -> differences of an arm.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether the results must hold at all interim analyses.
        first_look: Smallest number of seeds at which an analysis was made; None = `options.min_seeds`.
        family: Number of arms in the family, if it is larger than the number of contrasts: arms without a result, and those that
            were left out after an earlier analysis, count.

    Returns:
        Label -> result. A verdict is withheld if a run diverged, or if a claim rests on differences with an outlying seed.
    """
    results = _test(contrasts, options, sequential, first_look, family)
    return {label: _withhold(contrasts[label], result) for label, result in results.items()}


def describe_contrast(
    contrast: Contrast | None, options: StatisticsOptions, sequential: bool, first_look: int | None = None
) -> dict[str, Any] | None:
    """Return a contrast's interval, not adjusted for other claims, with its standard errors as plain data.

    Args:
        contrast: Differences, or the values of one arm; None gives None.
        options: Level and sources of uncertainty.
        sequential: Whether the interval must hold at all interim analyses.
        first_look: Smallest number of seeds at which an analysis was made; None = `options.min_seeds`.
    """
    if contrast is None:
        return None
    return _describe(_test({"": contrast}, options, sequential, first_look)[""])


def _test(
    contrasts: Mapping[str, Contrast], options: StatisticsOptions, sequential: bool, first_look: int | None, family: int = 0
) -> dict[str, Result]:
    size = max(len(contrasts), family)
    return _test_at_interim(contrasts, options, first_look, size) if sequential else _test_once(contrasts, options, size)


def _test_once(contrasts: Mapping[str, Contrast], options: StatisticsOptions, size: int) -> dict[str, Result]:
    estimates = {label: contrast.estimate(options.uncertainty) for label, contrast in contrasts.items()}
    # The p-value of an arm without a result counts as 1.
    absent = [1.0] * (size - len(contrasts))
    p_values = [estimate.p_value() for estimate in estimates.values()]
    adjusted = holm([*p_values, *absent])[: len(contrasts)]
    equivalent = holm([*(estimate.p_equivalent(options.margin) for estimate in estimates.values()), *absent])[: len(contrasts)]
    results = {}
    for (label, estimate), p, p_holm, p_equivalent in zip(estimates.items(), p_values, adjusted, equivalent, strict=True):
        state: State | None = None
        if p_holm < options.alpha:
            state = "better" if estimate.mean < 0 else "worse"
        elif math.isfinite(estimate.standard_error):
            state = "equivalent" if p_equivalent < options.alpha else "open"
        results[label] = Result(
            estimate,
            estimate.interval(1 - options.alpha),
            contrasts[label].select_sources(options.uncertainty),
            state,
            p=p,
            p_holm=p_holm,
            p_equivalent=p_equivalent,
            supported_margin=estimate.supported_margin(options.alpha / size),
        )
    return results


def _test_at_interim(
    contrasts: Mapping[str, Contrast], options: StatisticsOptions, first_look: int | None, size: int
) -> dict[str, Result]:
    looks = first_look or options.min_seeds
    interim = analyse_interim(contrasts, options.margin, options.alpha, options.uncertainty, looks, size)
    results = {}
    for label, contrast in contrasts.items():
        estimate, analysis = contrast.estimate(options.uncertainty), interim[label]
        sources = contrast.select_sources(options.uncertainty)
        # New seeds are other models: an interval over units alone does not allow for the choice among them.
        is_chosen = sources == ("examples",) and contrast.depends_on_seed
        state: State | None = "withheld" if is_chosen else analysis.state
        bounds = abs(analysis.interval.low), abs(analysis.interval.high)
        results[label] = Result(
            estimate,
            analysis.interval,
            sources,
            state if math.isfinite(estimate.standard_error) else None,
            withheld="looks" if is_chosen else None,
            supported_margin=max(bounds) if all(map(math.isfinite, bounds)) else math.nan,
            level=analysis.level,
            limited=analysis.limited,
            unit_half=analysis.unit_half,
        )
    return results


def _withhold(contrast: Contrast, result: Result) -> Result:
    """Withhold the verdict if a run diverged, or if it is a claim that an outlying seed decides."""
    outlying: list[int] = []
    if contrast.seeds and "seeds" in result.covered:
        outlying = [contrast.seeds[position] for position in outlying_seeds(contrast.values_S.tolist())]
    if contrast.diverged and result.state is not None:
        return replace(result, state="withheld", withheld="diverged", outlying=outlying)
    if contrast.is_selected and result.state is not None:
        return replace(result, state="withheld", withheld="looks", outlying=outlying)
    if outlying and result.state in ("better", "worse", "equivalent"):
        return replace(result, state="withheld", withheld="outlying", outlying=outlying)
    return replace(result, outlying=outlying)


def _warnings(contrast: Contrast, result: Result) -> dict[str, Any]:
    """Return the properties of the data that a reader must know: outlying seeds, and the influence of single test units."""
    table_SU = contrast.table_SU if "examples" in result.covered else None
    return {
        "outlying_seeds": result.outlying,
        "concentration": None if table_SU is None else influence_concentration(table_SU),
        "depends_on_seed": contrast.depends_on_seed,
    }


def _describe(result: Result) -> dict[str, Any]:
    """Return the interval of a difference with its standard errors as plain data."""
    estimate = asdict(result.estimate)
    names = ("standard_error", "degrees_of_freedom", "units", "seed_error", "unit_error", "seed_floor", "unit_floor")
    return {**result.interval.as_dict(), **{name: estimate[name] for name in names}}


def _detectable_difference(estimate: Estimate, alpha: float) -> float:
    """Return the true difference that a test at level alpha with this standard error finds 8 times in 10."""
    if not math.isfinite(estimate.standard_error):
        return math.nan
    if not math.isfinite(estimate.degrees_of_freedom):
        return 0.0
    return estimate.standard_error * detectable_shift(estimate.degrees_of_freedom, alpha=min(alpha, 0.79))
