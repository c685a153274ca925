"""Simulate how often verdicts are wrong under five laws of the differences between seeds, and how much power they have.

    python docs/statistics/laws.py [--draws N] [--output docs/statistics/laws.csv]

The script writes the CSV file and prints its tables in Markdown. It judges arrays of comparisons at once by the rules of
`routelab.comparison.statistics`; tests/docs/test_statistics_laws.py compares its verdicts with those of the package.

A comparison has `arms` arms and one reference. The difference of an arm in a seed is its own noise minus the reference's. With a
steady reference the reference's noise is 0, and the arms are independent. With a noisy reference its noise has the law of the
arms' and is subtracted from all of them. Differences are scaled to a standard deviation of 1 (units below: sd).

The columns:
    mode: "fixed n" = t-test, Holm over the arms, and TOST on n seeds. "sequential" = an interim analysis after each seed from 5
        to 20; an arm stops at its first verdict.
    false_claims: fraction of comparisons without any difference in which some arm is called better or worse.
    false_equivalence: fraction of comparisons in which some arm is called equivalent although the true difference of every arm is
        the margin; the largest over `MARGINS_SD` and both signs.
    ..._with_withholding: the same if a verdict is withheld while the arm has an outlying seed. In sequential mode the arm goes on.
    ..._with_both: the same if, moreover, every verdict must hold for Hall's statistic too, which allows for skewness
        (`widen_for_skewness`).
    flagged: fraction of arms that have an outlying seed when they end, without any difference.
    withheld: fraction of comparisons without any difference in which some arm ends with a withheld verdict.
    power_1sd, power_2sd: fraction of comparisons in which an arm whose true difference is 1 or 2 sd is called worse, while the
        other arms do not differ. Of the normal law only.
    power_t_...: the same for the t-test with Holm on all seeds, which is the fixed rule itself, or on 20 seeds in sequential mode.
    standard_error: of false_claims; the simulation error of a rate p is sqrt(p (1 - p) / draws).

Axes: R comparisons (draws), A arms, N seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from simulation_files import markdown_table, run_script

from routelab.comparison.statistics.outlying_seeds import outlying_threshold
from routelab.comparison.statistics.sequential import settling_square

Array = NDArray[Any]

OUTPUT = Path(__file__).with_name("laws.csv")
LEVEL = 0.05
MARGINS_SD = (0.5, 0.75, 1.0, 1.5)
"""Margins of equivalence, in sd. Below them nothing is called equivalent. Above them arms at the margin are called worse."""
FIRST_SEEDS, MAX_SEEDS = 5, 20
MODES = ("fixed 3", "fixed 5", "fixed 8", "sequential")
OPEN, BETTER, WORSE, EQUIVALENT = 0, 1, 2, 3
STATES = ("open", "better", "worse", "equivalent")

BAD_SEED_RATE, BAD_SEED_SHIFT = 0.1, 5.0


def _bad_seeds(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw normal noise to which one seed in ten adds 5 of its standard deviations."""
    shift, rate = BAD_SEED_SHIFT, BAD_SEED_RATE
    values = rng.standard_normal(shape) + shift * (rng.random(shape) < rate)
    return (values - shift * rate) / math.sqrt(1 + shift**2 * rate * (1 - rate))


LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
    "exponential": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "lognormal": lambda rng, shape: (np.exp(rng.standard_normal(shape)) - math.exp(0.5)) / math.sqrt(math.e**2 - math.e),
    "bad seeds": _bad_seeds,
}
"""Laws of an arm's noise, with mean 0 and standard deviation 1. Skewed laws have their long tail at high losses."""


def draw_differences(rng: np.random.Generator, law: str, reference: str, draws: int, arms: int, seeds: int) -> Array:
    """Draw the differences (R, A, N) of comparisons without any difference, with standard deviation 1."""
    noise = LAWS[law](rng, (draws, arms, seeds))
    if reference == "steady":
        return noise
    return (noise - LAWS[law](rng, (draws, 1, seeds))) / math.sqrt(2)


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and skewness of the first n differences, and whether one is outlying: (R, A, N), n = 1 to N."""

    mean: Array
    deviation: Array
    skewness: Array
    outlying: Array


def compute_moments(differences_RAN: Array) -> Moments:
    """Summarise the first n differences of every arm, for all n at once."""
    n = np.arange(1, differences_RAN.shape[-1] + 1)
    mean = differences_RAN.cumsum(-1) / n
    raw_square = (differences_RAN * differences_RAN).cumsum(-1) / n
    squares = np.maximum(n * (raw_square - mean * mean), 0.0)
    deviation = np.sqrt(squares / np.maximum(n - 1, 1))
    high, low = np.maximum.accumulate(differences_RAN, -1), np.minimum.accumulate(differences_RAN, -1)
    threshold = np.array([outlying_threshold(int(count)) for count in n])
    # Below 3 seeds the threshold is infinite, and so is the product unless the deviation is 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        outlying = np.maximum(high - mean, mean - low) > threshold * deviation
        raw_cube = (differences_RAN * differences_RAN * differences_RAN).cumsum(-1) / n
        skewness = (raw_cube - 3 * mean * raw_square + 2 * mean * mean * mean) / (squares / n * np.sqrt(squares / n))
    return Moments(mean, deviation, skewness, outlying)


def _reject_by_holm(statistic_RA: Array, critical_A: Array) -> Array:
    """Reject step by step, from the largest statistic down. critical_A: the critical values with A, A - 1, ..., 1 hypotheses left."""
    order = np.argsort(-statistic_RA, axis=-1)
    passed = np.logical_and.accumulate(np.take_along_axis(statistic_RA, order, -1) > critical_A, axis=-1)
    rejected = np.empty_like(passed)
    np.put_along_axis(rejected, order, passed, -1)
    return rejected


def _statistics(moments: Moments, n: int, margin: float, shift: float | Array, skewed: bool) -> tuple[Array, Array]:
    """Return the statistics (R, A) of a difference and of equivalence, to be compared with a quantile of t.

    With `skewed`, each is the smaller one of t and Hall's statistic, so that both have to exceed the quantile.
    """
    mean, deviation, skewness = moments.mean[..., n - 1] + shift, moments.deviation[..., n - 1], moments.skewness[..., n - 1]

    def distance(z: Array, sign: float | Array) -> Array:
        """Return how far sign * z is above 0. z is (mean - theta) / sd."""
        if not skewed:
            return sign * z
        # `hall_transform` without powers, which are slow.
        product = skewness * z
        hall = z * (1 + product / 3 * (1 + product / 9)) + skewness / (6 * n)
        return np.minimum(sign * z, sign * hall)

    difference = distance(mean / deviation, np.where(mean < 0, -1.0, 1.0))
    if margin == 0:
        return math.sqrt(n) * difference, np.full(mean.shape, -math.inf)
    equivalence = np.minimum(distance((mean + margin) / deviation, 1.0), distance((mean - margin) / deviation, -1.0))
    return math.sqrt(n) * difference, math.sqrt(n) * equivalence


def _name_states(moments: Moments, n: int, shift: float | Array, differs: Array, equal: Array) -> Array:
    """Return the states (R, A). A difference goes before an equivalence, as in the package."""
    direction = np.where(moments.mean[..., n - 1] + shift < 0, BETTER, WORSE)
    return np.where(differs, direction, np.where(equal, EQUIVALENT, OPEN))


def judge_fixed(moments: Moments, n: int, margin: float, shift: float | Array = 0.0, skewed: bool = False) -> Array:
    """Return the states (R, A) on the first n seeds: t-tests and TOST, both adjusted by Holm over the arms.

    Args:
        moments: of the differences before `shift` is added.
        n: number of seeds.
        margin: of equivalence, in sd; at 0 nothing is equivalent.
        shift: true difference of every arm, in sd, or of each arm (A,).
        skewed: whether Hall's statistic must exceed the critical value too.
    """
    difference, equivalence = _statistics(moments, n, margin, shift, skewed)
    levels = LEVEL / np.arange(difference.shape[-1], 0, -1)
    differs = _reject_by_holm(difference, stats.t.ppf(1 - levels / 2, n - 1))
    equal = _reject_by_holm(equivalence, stats.t.ppf(1 - levels, n - 1)) if margin > 0 else np.zeros_like(differs)
    return _name_states(moments, n, shift, differs, equal)


def judge_interim(moments: Moments, n: int, margin: float, shift: float | Array = 0.0, skewed: bool = False) -> Array:
    """Return the states (R, A) of the sequential rule at the analysis of the first n seeds. Arguments as in `judge_fixed`."""
    difference, equivalence = _statistics(moments, n, margin, shift, skewed)
    critical = math.sqrt(settling_square(n, LEVEL / difference.shape[-1]))
    return _name_states(moments, n, shift, difference > critical, equivalence > critical)


@dataclass(frozen=True)
class Rule:
    """A way to judge. withhold: no verdict while an arm has an outlying seed. skewed: as in `judge_fixed`."""

    withhold: bool = False
    skewed: bool = False


RULES = {"": Rule(), "_with_withholding": Rule(withhold=True), "_with_both": Rule(withhold=True, skewed=True)}
"""Rules by the suffix of their columns."""


@dataclass(frozen=True)
class Verdicts:
    """States (R, A) at the end, and whether an arm ended with an outlying seed and with a withheld verdict (R, A)."""

    states: Array
    flagged: Array
    withheld: Array


def run_fixed(moments: Moments, n: int, rule: Rule, margin: float = 0.0, shift: float | Array = 0.0) -> Verdicts:
    """Judge once, on n seeds; a withheld verdict becomes open."""
    states, flagged = judge_fixed(moments, n, margin, shift, rule.skewed), moments.outlying[..., n - 1]
    withheld = (states != OPEN) & flagged & rule.withhold
    return Verdicts(np.where(withheld, OPEN, states), flagged, withheld)


def run_sequential(moments: Moments, rule: Rule, margin: float = 0.0, shift: float | Array = 0.0) -> Verdicts:
    """Judge after each seed from 5 to 20. An arm stops at its first verdict that is not withheld."""
    shape = moments.mean.shape[:-1]
    states, flagged, withheld = np.full(shape, OPEN), np.zeros(shape, bool), np.zeros(shape, bool)
    for n in range(FIRST_SEEDS, MAX_SEEDS + 1):
        running = states == OPEN
        now, outlying = judge_interim(moments, n, margin, shift, rule.skewed), moments.outlying[..., n - 1]
        flagged[running] = outlying[running]
        withheld = running & (now != OPEN) & outlying & rule.withhold
        states = np.where(running & ~withheld, now, states)
    return Verdicts(states, flagged, withheld)


def _false_equivalence(run: Callable[..., Verdicts]) -> float:
    """Return the largest rate of comparisons with some arm called equivalent, over the margins and both signs."""
    return max(
        float((run(margin=margin, shift=sign * margin).states == EQUIVALENT).any(-1).mean())
        for margin in MARGINS_SD
        for sign in (-1, 1)
    )


def summarize(moments: Moments, mode: str, with_power: bool) -> dict[str, float | str]:
    """Return the rates of one row of the table. mode: "fixed n" or "sequential"."""

    def bind(rule: Rule) -> Callable[..., Verdicts]:
        if mode == "sequential":
            return lambda **options: run_sequential(moments, rule, **options)
        return lambda **options: run_fixed(moments, int(mode.split()[1]), rule, **options)

    runs = {suffix: bind(rule) for suffix, rule in RULES.items()}
    null = {suffix: run() for suffix, run in runs.items()}
    row: dict[str, float | str] = {
        "flagged": float(null["_with_withholding"].flagged.mean()),
        "withheld": float(null["_with_withholding"].withheld.any(-1).mean()),
    }
    for suffix, verdicts in null.items():
        row[f"false_claims{suffix}"] = float((verdicts.states != OPEN).any(-1).mean())
    for suffix, run in runs.items():
        row[f"false_equivalence{suffix}"] = _false_equivalence(run)
    draws, arms = moments.mean.shape[:2]
    for effect in (1, 2):
        shift = np.where(np.arange(arms) == 0, float(effect), 0.0)
        powered = {f"power_{effect}sd{suffix}": run for suffix, run in runs.items()}
        if mode == "sequential":
            powered[f"power_t_{effect}sd"] = lambda **options: run_fixed(moments, MAX_SEEDS, Rule(), **options)
        for name, run in powered.items():
            row[name] = float((run(shift=shift).states[:, 0] == WORSE).mean()) if with_power else ""
        row.setdefault(f"power_t_{effect}sd", row[f"power_{effect}sd"])
    false_claims = (null[""].states != OPEN).any(-1).mean()
    row["standard_error"] = math.sqrt(false_claims * (1 - false_claims) / draws)
    return row


def simulate(
    draws: int,
    laws: Sequence[str] = tuple(LAWS),
    references: Sequence[str] = ("steady", "noisy"),
    arms: Sequence[int] = (1, 8),
    modes: Sequence[str] = MODES,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table. The same differences serve all modes; every (law, reference, arms) has its own generator."""
    for law in laws:
        for reference in references:
            for count in arms:
                rng = np.random.default_rng([list(LAWS).index(law), len(reference), count])
                moments = compute_moments(draw_differences(rng, law, reference, draws, count, MAX_SEEDS))
                for mode in modes:
                    yield {
                        "law": law,
                        "reference": reference,
                        "arms": count,
                        "mode": mode,
                        "draws": draws,
                        **summarize(moments, mode, law == "normal"),
                    }


def render(rows: Sequence[dict[str, str]]) -> str:
    """Return the Markdown tables, from the rows of the CSV file: wrong verdicts by law, and power under the normal law."""

    def rates(row: dict[str, str], *names: str) -> str:
        return " / ".join(f"{float(row[name]):.3f}" for name in names)

    errors = [
        [
            *(row[name] for name in ("law", "reference", "arms", "mode")),
            *(rates(row, *(name + suffix for suffix in RULES)) for name in ("false_claims", "false_equivalence")),
            rates(row, "flagged"),
            rates(row, "withheld"),
        ]
        for row in rows
    ]
    power = [
        [
            *(row[name] for name in ("reference", "arms", "mode")),
            *(rates(row, f"power_t_{sd}sd", *(f"power_{sd}sd{suffix}" for suffix in RULES)) for sd in (1, 2)),
        ]
        for row in rows
        if row["law"] == "normal"
    ]
    heading = ["law", "reference", "arms", "mode", "false claims", "false equivalence", "flagged", "withheld"]
    return "\n".join(
        [
            "Rates: by the rule / with withholding / with withholding and Hall's statistic.",
            "",
            *markdown_table(heading, errors),
            "",
            "Power under the normal law: by the t-test on all seeds / the rule / with withholding / with both.",
            "",
            *markdown_table(["reference", "arms", "mode", "1 sd", "2 sd"], power),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate the table, write it and print it."""
    run_script(
        "Simulate wrong verdicts and power under five laws.",
        simulate,
        render,
        OUTPUT,
        20_000,
        "comparisons for each row",
        {"standard_error": 5},
        arguments,
    )


if __name__ == "__main__":
    main()
