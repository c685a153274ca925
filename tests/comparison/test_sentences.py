"""Every clause that a comparison prints is present on one side of its condition and absent on the other.

Axes: S seeds, U test units.
"""

import ast
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from routelab.cli.compare_command import announcement, pair_lines
from routelab.comparison import budget_accounting, compare, estimate, interim_looks, verdict
from routelab.comparison.interim_looks import earlier_looks, withdrawal_text
from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.pairwise import judged_pairs
from routelab.comparison.statistics.two_way import estimate_two_way
from routelab.comparison.summary import summarise
from routelab.config.schema import StatisticsOptions
from routelab.core.number_format import format_change_size
from routelab.data.unit_table import UnitTable
from routelab.report import interval_labels
from routelab.report.interval_labels import intervals_of

SEEDS, UNITS = ["seeds"], ["examples"]


def standardised(values):
    return (values - values.mean()) / values.std(ddof=1)


def table(n=5, m=100, shift=0.0, seeds=0.0, units=0.0, error=0.0, many=0.0):
    """Losses (S, U) with a mean of exp(shift), and effects of exactly these standard deviations.

    The effects of seeds are evenly spaced, those of units are normal quantiles. `many` is the effect of the first ten units alone.
    """
    table_SU = np.ones((n, m))
    if n > 1:
        table_SU += seeds * standardised(np.arange(n))[:, None]
    if m > 1:
        table_SU += units * standardised(stats.norm.ppf((np.arange(m) + 0.5) / m))
        table_SU[:, :10] += many * np.array([1.0, -1.0] * 5)[:m]
    if error:
        error_SU = np.random.default_rng(0).normal(size=(n, m))
        error_SU -= error_SU.mean(0) + error_SU.mean(1, keepdims=True) - error_SU.mean()
        table_SU += error * error_SU / error_SU.std()
    return math.exp(shift) * table_SU


def values(*log_losses):
    """Losses (S,) of an arm whose runs recorded no test units."""
    return np.exp(np.array(log_losses))


def study(arms=None, *, dense=None, without=(), unit="example", changes=None, failures=None, reference="dense", **more):
    """Return the summary of a comparison.

    Args:
        arms: Label -> losses by seed and unit (S, U), or by seed (S,) without test units.
        dense: Losses of the reference; None = 1 for every seed and unit of the first arm.
        without: Labels of arms without a record.
        unit: Name of the test unit.
        changes: Label -> entries of its records that differ from the default, or a function from the seed to them.
        failures: (label, seed) -> "failed" or "diverged".
        reference: Label of the reference.
        more: Arguments of `summarise`.
    """
    records, tables = records_of(arms, dense, without, unit, changes, failures)
    labels = list(dict.fromkeys(record["arm"] for record in records))
    more = {"options": StatisticsOptions(), **more}
    return summarise("study", records, labels, reference, tables=MetricTables(records, tables), **more)


def records_of(arms=None, dense=None, without=(), unit="example", changes=None, failures=None):
    arms = arms or {}
    dense = np.ones_like(next(iter(arms.values()))) if dense is None else dense
    arms = {label: losses for label, losses in {"dense": dense, **arms}.items() if label not in without}
    records, tables = [], {}
    for label, losses in arms.items():
        for seed, row in enumerate(losses):
            failure = (failures or {}).get((label, seed))
            change = (changes or {}).get(label, {})
            record = {
                "arm": label, "seed": seed, "data": "digits", "metric": "accuracy", "flops_per_example": 1e6,
                "status": "failed" if failure else "ok", "diverged": failure == "diverged",
                "test": {} if failure else {"loss": float(np.mean(row)), "accuracy": 0.5},
            } | (change(seed) if callable(change) else change)  # fmt: skip
            if np.ndim(row):
                record["units"] = {"unit": unit, "number": len(row), "pooled": False}
                sums = {"loss": np.array(row), "count": np.ones(len(row)), "correct": np.full(len(row), 0.5)}
                tables[label, seed] = UnitTable(np.arange(len(row)), None, sums)
            records.append(record)
    return records, lambda record: tables.get((record["arm"], record["seed"]))


def options(*uncertainty, **more):
    return StatisticsOptions(uncertainty=list(uncertainty or ("seeds", "examples")), **more)


def of_mine(losses, **more):
    """Return the verdict on one arm."""
    return study({"mine": losses}, **more)["arms"]["mine"]["verdict"]


def of_dense(losses, **more):
    return study({"mine": losses}, **more)["arms"]["dense"]["verdict"]


def sentence(arms, **more):
    return study(arms, **more)["sentence"]


def caveat(arms, **more):
    return study(arms, **more)["caveat"]


def note(arms, **more):
    return study(arms, **more)["split_note"] or ""


def seconds(*mine):
    """Return the change that gives an arm's runs these training times, by seed."""
    return {"dense": {"seconds": 1.0}, "mine": lambda seed: {"seconds": mine[seed]}}


def frontier(bound, low=math.nan, high=math.nan, covered=("seeds", "examples")):
    at_own_loss = {"loss": 1.0, "bound": bound, "mean": 1.25, "low": low, "high": high, "n": 5, "covered": list(covered)}
    return {"arms": {"mine": {"own": at_own_loss}}}


# Six seeds, the last of which lies far from the others; more than one of twenty.
UNDECIDED_OUTLIER = values(0.0, 0.001, -0.001, 0.0005, -0.0005, 0.1)
DECIDED_OUTLIER = values(-1.0, -1.01, -0.99, -1.0, -0.5)
TWO_OUTLIERS = values(*(-1 + 0.01 * math.sin(seed) for seed in range(18)), -0.5, -1.5)

BETTER, WORSE = table(shift=-0.5, seeds=0.01, units=0.05), table(shift=0.5, seeds=0.01, units=0.05)
ALIKE = table(shift=0.0, seeds=0.001, units=0.001)
UNDECIDED = table(shift=0.02, seeds=0.05, units=0.4)
CONSTANT = table(shift=0.2, units=0.1)
BY_UNITS = table(seeds=0.002, units=0.5, error=0.01)
BY_SEEDS = table(seeds=0.2, units=0.05, error=0.01)
BY_BOTH = table(seeds=0.05, units=0.2, error=0.01)
CONCENTRATED, EVEN = table(seeds=0.01, units=0.1, many=0.5), table(seeds=0.01, units=0.1)
ONLY_SEEDS = table(n=3, shift=-0.1, seeds=0.001, units=0.7)
EQUAL_OVER_SEEDS = table(n=3, seeds=0.001, units=0.7)
# Over 3 seeds the t distribution has 2 degrees of freedom, over both it has more.
ONLY_BOTH = table(n=3, shift=0.18, seeds=0.063, units=0.5)
OUTLYING_OVER_SEEDS = np.exp([[0.1], [0.101], [0.099], [0.1], [0.12]]) * table(units=0.7)
TWO = {"mine": BETTER, "other": WORSE}


@dataclass(frozen=True)
class Case:
    """A clause, and texts of summaries on both sides of its condition."""

    clause: str
    present: Callable[[], str]
    absent: Callable[[], str]


CASES = [
    # Verdicts.
    Case("better: test loss -39.3% [", lambda: of_mine(BETTER), lambda: of_mine(UNDECIDED)),
    Case("worse: test loss +64.9% [", lambda: of_mine(WORSE), lambda: of_mine(BETTER)),
    Case("equivalent: test loss ", lambda: of_mine(ALIKE), lambda: of_mine(UNDECIDED)),
    Case("undecided: test loss ", lambda: of_mine(UNDECIDED), lambda: of_mine(ALIKE)),
    Case(
        "undecided, limited by the test set: test loss ",
        lambda: of_mine(table(n=8, shift=0.001, seeds=0.002, units=0.5), sequential=True),
        lambda: of_mine(table(n=8, shift=0.001, seeds=0.5, units=0.5), sequential=True),
    ),
    Case("the reference; 1 of 5 seeds diverged", lambda: of_dense(BETTER, failures={("dense", 1): "diverged"}),
         lambda: of_dense(BETTER, failures={("dense", 1): "failed"})),
    Case("diverged on every seed", lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "diverged", ("mine", 1): "diverged"}),
         lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "diverged", ("mine", 1): "failed"})),
    Case("failed on every seed", lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "diverged", ("mine", 1): "failed"}),
         lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "failed"})),
    Case("no reference to compare with", lambda: of_mine(BETTER, without=["dense"], reference=None), lambda: of_mine(BETTER)),
    Case("shares no finished seed with dense",
         lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "failed", ("dense", 1): "failed"}),
         lambda: of_mine(values(0.0, 0.1), failures={("mine", 0): "failed"})),
    Case("test loss +22.1% against dense; one seed gives no interval", lambda: of_mine(table(n=1, shift=0.2)),
         lambda: of_mine(table(n=2, shift=0.2, seeds=0.1))),
    Case("one seed gives no interval; 1 of 2 seeds diverged",
         lambda: of_mine(table(n=2, shift=0.2, seeds=0.1), failures={("dense", 1): "diverged"}),
         lambda: of_mine(table(n=2, shift=0.2, seeds=0.1), failures={("dense", 1): "failed"})),
    Case("; the results of neither arm differ between seeds, and no test units were recorded", lambda: of_mine(values(0.2, 0.2)),
         lambda: of_mine(CONSTANT)),
    Case("; one test example gives no interval over examples", lambda: of_mine(table(m=1, shift=0.2, seeds=0.1)),
         lambda: of_mine(table(m=2, shift=0.2, seeds=0.1))),
    Case("the differences are not finite", lambda: of_mine(values(0.0, math.inf)), lambda: of_mine(values(0.0, 9.0))),
    Case(" [no bounds below 6 seeds] against dense", lambda: of_mine(table(n=2, seeds=0.1), sequential=True),
         lambda: of_mine(table(n=8, seeds=0.1), sequential=True)),
    Case("no verdict, as results were seen with other seeds; over 5 seeds: test loss ",
         lambda: of_mine(table(seeds=0.1), sequential=True, options=options(*UNITS)),
         lambda: of_mine(table(seeds=0.1), options=options(*UNITS))),
    Case("; with 2 seeds a 95% interval covers 88% to 97% (simulated)", lambda: of_mine(table(n=2, seeds=0.1)),
         lambda: of_mine(table(n=3, seeds=0.1))),
    Case("no verdict, as 1 of 5 seeds diverged; over 4 seeds with results of both arms: test loss ",
         lambda: of_mine(BETTER, failures={("mine", 3): "diverged"}), lambda: of_mine(BETTER, failures={("mine", 3): "failed"})),
    Case("no verdict, as 2 of 5 seeds diverged; over 3 seeds with results of both arms: test loss ",
         lambda: of_mine(BETTER, failures={("mine", 3): "diverged", ("dense", 0): "diverged"}),
         lambda: of_mine(BETTER, failures={("mine", 3): "diverged", ("dense", 3): "diverged"})),
    Case("no verdict, as one seed of 5 is an outlier (seed 4): test loss ", lambda: of_mine(DECIDED_OUTLIER),
         lambda: of_mine(UNDECIDED_OUTLIER)),
    Case("no verdict, as 2 seeds of 20 are outliers (seeds 18 and 19): test loss ", lambda: of_mine(TWO_OUTLIERS),
         lambda: of_mine(TWO_OUTLIERS[:-1])),
    Case("; seed 5 is an outlier", lambda: of_mine(UNDECIDED_OUTLIER), lambda: of_mine(UNDECIDED_OUTLIER[:-1])),
    Case("; seed 4 is an outlier", lambda: of_mine(np.append(DECIDED_OUTLIER, 1), failures={("mine", 5): "diverged"}),
         lambda: of_mine(DECIDED_OUTLIER)),
    Case("; seeds 18 and 19 are outliers", lambda: of_mine(np.append(TWO_OUTLIERS, 1), failures={("mine", 20): "diverged"}),
         lambda: of_mine(TWO_OUTLIERS)),
    Case(", 5 seeds x 100 examples, ", lambda: of_mine(BETTER), lambda: of_mine(BETTER, options=options(*SEEDS))),
    Case(", 5 seeds, on this test split, ", lambda: of_mine(BETTER, options=options(*SEEDS)), lambda: of_mine(BETTER)),
    Case(", 100 examples alone, as the results of neither arm differ between seeds, ", lambda: of_mine(CONSTANT),
         lambda: of_mine(BETTER)),
    Case(", 100 examples, for the models of these 5 seeds, ", lambda: of_mine(BETTER, options=options(*UNITS)),
         lambda: of_mine(BETTER)),
    Case(", 100 examples, for the models of this seed, ", lambda: of_mine(BETTER[:1], options=options(*UNITS)),
         lambda: of_mine(BETTER, options=options(*UNITS))),
    Case(", standard error 5% over examples and 0.089% over seeds, ", lambda: of_mine(table(seeds=0.002, units=0.49)),
         lambda: of_mine(table(seeds=0.3, units=0.01))),
    Case(", standard error 15% over seeds and 0.11% over examples, ", lambda: of_mine(table(seeds=0.3, units=0.01)),
         lambda: of_mine(table(seeds=0.3, units=0.01), options=options(*SEEDS))),
    Case("; the smallest margin of equivalence that these data support is ", lambda: of_mine(UNDECIDED), lambda: of_mine(ALIKE)),
    Case("; with only 29 examples, the interval assumes that their effects are normally distributed",
         lambda: of_mine(table(m=29, units=0.1, seeds=0.1)), lambda: of_mine(table(m=30, units=0.1, seeds=0.1))),
    Case("; 10 of 100 examples carry 81% of the squared influence on the difference", lambda: of_mine(CONCENTRATED),
         lambda: of_mine(EVEN)),
    Case(", Holm p=", lambda: of_mine(BETTER), lambda: of_mine(ALIKE)),
    Case(", equivalence p=", lambda: of_mine(ALIKE), lambda: of_mine(BETTER)),
    Case(", interval valid at every interim analysis, level 0.05", lambda: of_mine(BETTER, sequential=True),
         lambda: of_mine(CONSTANT, sequential=True)),
    Case("between seeds, level 0.05", lambda: of_mine(CONSTANT, sequential=True), lambda: of_mine(BETTER, sequential=True)),
    Case(", equal training time within 5% [", lambda: of_mine(BETTER, changes=seconds(1.01, 1.02, 1.03, 1.02, 1.02)),
         lambda: of_mine(BETTER, changes=seconds(1.04, 1.06, 1.05, 1.05, 1.05))),
    Case(", 1.05x the training time [", lambda: of_mine(BETTER, changes=seconds(1.04, 1.06, 1.05, 1.05, 1.05)),
         lambda: of_mine(BETTER, changes=seconds(1.01, 1.02, 1.03, 1.02, 1.02))),
    Case(", difference in training time undecided [", lambda: of_mine(BETTER, changes=seconds(0.5, 1.0, 2.0, 0.9, 1.0)),
         lambda: of_mine(BETTER, changes=seconds(2.0, 2.1, 2.0, 2.2, 2.0))),
    Case(", a loss that no dense model of the ladder reaches (leverage above 1.2), ",
         lambda: of_mine(BETTER, frontier=frontier(">")), lambda: of_mine(BETTER, frontier=frontier("="))),
    Case(", a loss that the cheapest dense model of the ladder undercuts (leverage below 1.2), ",
         lambda: of_mine(BETTER, frontier=frontier("<")), lambda: of_mine(BETTER, frontier=frontier(">"))),
    Case(", which dense models reach with 1.25x its training FLOPs [1.10, 1.40], ",
         lambda: of_mine(BETTER, frontier=frontier("=", 1.1, 1.4)), lambda: of_mine(BETTER, frontier=frontier("="))),
    Case("1.25x its training FLOPs [1.10, 1.40] over seeds alone, ",
         lambda: of_mine(BETTER, frontier=frontier("=", 1.1, 1.4, ["seeds"])),
         lambda: of_mine(BETTER, frontier=frontier("=", 1.1, 1.4))),
    Case("1.25x its training FLOPs (earlier runs' FLOPs included), 5 seeds",
         lambda: of_mine(BETTER, frontier=frontier("="), changes={"mine": {"initial_flops": 1e9, "flops_model": 1e9}}),
         lambda: of_mine(BETTER, frontier=frontier("="))),
    Case("; leaks: an output depends on later tokens", lambda: of_mine(BETTER, changes={"mine": {"leaks": "later tokens"}}),
         lambda: of_mine(BETTER)),
    # The same clauses without their numbers, which must not be printed with other numbers either.
    Case("; with only ", lambda: of_mine(table(m=29, units=0.1, seeds=0.1)), lambda: of_mine(table(m=30, units=0.1, seeds=0.1))),
    Case(" of the squared influence on the difference", lambda: of_mine(CONCENTRATED), lambda: of_mine(EVEN)),
    Case(" of the squared influence on the difference", lambda: of_mine(table(m=30, units=0.1, seeds=0.1)),
         lambda: of_mine(table(m=29, units=0.1, seeds=0.1))),
    Case("outlier", lambda: of_mine(UNDECIDED_OUTLIER), lambda: of_mine(UNDECIDED_OUTLIER[:-1])),
    Case("no verdict", lambda: of_mine(DECIDED_OUTLIER), lambda: of_mine(UNDECIDED_OUTLIER)),
    Case("diverged", lambda: of_mine(BETTER, failures={("dense", 3): "diverged"}),
         lambda: of_mine(BETTER, failures={("dense", 3): "failed"})),
    Case("x the training time [", lambda: of_mine(BETTER, changes=seconds(1.04, 1.06, 1.05, 1.05, 1.05)),
         lambda: of_mine(BETTER, changes=seconds(0.5, 1.0, 2.0, 0.9, 1.0))),
    Case("training time", lambda: of_mine(BETTER[:2], changes=seconds(1.0, 1.1)),
         lambda: of_mine(BETTER[:1], changes=seconds(1.0), options=options(*UNITS))),
    Case("standard error", lambda: of_mine(BETTER), lambda: of_mine(BETTER, options=options(*UNITS))),
    # Summary.
    Case("On digits, no arm is the reference (match.reference), so there are no paired differences.",
         lambda: sentence(TWO, without=["dense"], reference=None), lambda: sentence(TWO)),
    Case("On digits, the reference dense failed on every seed, so no arm could be compared with it.",
         lambda: sentence(TWO, failures={("dense", seed): "failed" for seed in range(5)}),
         lambda: sentence(TWO, failures={("dense", seed): "failed" for seed in range(4)})),
    Case("On digits, the reference dense diverged on every seed, so no arm could be compared with it.",
         lambda: sentence(TWO, failures={("dense", seed): "diverged" for seed in range(5)}),
         lambda: sentence(TWO, failures={("dense", seed): "failed" for seed in range(5)})),
    Case("On digits, dense was trained alone, so there is nothing to compare it with.", lambda: sentence({}, dense=BETTER),
         lambda: sentence(TWO)),
    Case(": mine had a lower test loss than dense; other had a higher test loss than dense (paired t-tests",
         lambda: sentence(TWO), lambda: sentence({"mine": UNDECIDED, "other": UNDECIDED})),
    Case(": mine had a test loss within 1% of dense's (", lambda: sentence({"mine": ALIKE}), lambda: sentence({"mine": UNDECIDED})),
    Case(": mine had a test loss within 20% of dense's (", lambda: sentence({"mine": ALIKE}, options=options(margin=math.log(1.2))),
         lambda: sentence({"mine": ALIKE})),
    Case("mine and other could not be told apart from dense (", lambda: sentence({"mine": UNDECIDED, "other": UNDECIDED}),
         lambda: sentence(TWO)),
    Case("mine got no verdict against dense (", lambda: sentence({"mine": DECIDED_OUTLIER}),
         lambda: sentence({"mine": UNDECIDED_OUTLIER})),
    Case("mine cannot be judged by one seed", lambda: sentence({"mine": BETTER[:1]}),
         lambda: sentence({"mine": BETTER[:1]}, options=options(*UNITS))),
    Case("mine cannot be judged by these data", lambda: sentence({"mine": values(0.2, 0.2)}), lambda: sentence({"mine": CONSTANT})),
    Case("mine failed on every seed", lambda: sentence(TWO, failures={("mine", seed): "failed" for seed in range(5)}),
         lambda: sentence(TWO, failures={("mine", seed): "failed" for seed in range(4)})),
    Case("mine diverged on every seed", lambda: sentence(TWO, failures={("mine", seed): "diverged" for seed in range(5)}),
         lambda: sentence(TWO, failures={("mine", 0): "failed"} | {("mine", seed): "diverged" for seed in range(1, 5)})),
    Case("mine shared no finished seed with dense",
         lambda: sentence({"mine": BETTER[:2]}, failures={("mine", 0): "failed", ("dense", 1): "failed"}),
         lambda: sentence({"mine": BETTER[:2]}, failures={("mine", 0): "failed"})),
    Case("(paired t-tests over seeds and test examples, Holm-adjusted, level .05).", lambda: sentence(TWO),
         lambda: sentence(TWO, options=options(*SEEDS))),
    Case("(paired t-tests over seeds, Holm-adjusted, level .01).", lambda: sentence(TWO, options=options(*SEEDS, alpha=0.01)),
         lambda: sentence(TWO, options=options(*SEEDS))),
    Case("(sequential paired t-tests over seeds and test examples", lambda: sentence(TWO, sequential=True),
         lambda: sentence(TWO, sequential=True, options=options(*UNITS))),
    Case("(paired t-tests over test examples, Bonferroni, level .05).",
         lambda: sentence(TWO, sequential=True, options=options(*UNITS)), lambda: sentence(TWO, options=options(*UNITS))),
    Case("(sequential paired t-tests over seeds and test licence families, Bonferroni, level .05).",
         lambda: sentence(TWO, sequential=True, unit="licence family"), lambda: sentence(TWO, unit="licence family")),
    Case("On digits, at equal forward FLOPs per example: ",
         lambda: sentence(TWO, changes={"mine": {"flops_per_example": 1.024e6}, "other": {"flops_per_example": 0.976e6}}),
         lambda: sentence(TWO, changes={"mine": {"flops_per_example": 1.026e6}})),
    Case("On digits, at 0.50 to 2.00 times the forward FLOPs per example of dense: ",
         lambda: sentence(TWO, changes={"mine": {"flops_per_example": 0.5e6}, "other": {"flops_per_example": 2e6}}),
         lambda: sentence(TWO)),
    Case("On digits, at a cost in FLOPs that is not known: ", lambda: sentence(TWO, changes={"dense": {"flops_per_example": None}}),
         lambda: sentence(TWO)),
    Case(" The FLOPs of other are not counted, so they may differ.",
         lambda: sentence(TWO, changes={"other": {"flops_per_example": None}}),
         lambda: sentence(TWO, changes={"dense": {"flops_per_example": None}})),
    Case(" The comparison is not fair: outputs of mine depend on what they must not.",
         lambda: sentence(TWO, changes={"mine": {"leaks": "later tokens"}}), lambda: sentence(TWO)),
    # Caveat.
    Case("One seed says nothing about how much seeds differ, so there are no intervals. seeds=auto adds seeds while they can lead to a "
         "verdict, up to statistics.max_seeds.",
         lambda: caveat({"mine": BETTER[:1]}), lambda: caveat({"mine": BETTER[:1]}, options=options(*UNITS))),
    Case("One seed says nothing about how much seeds differ. Intervals cover test examples only: claims are about these trained "
         "models.",
         lambda: caveat({"mine": BETTER[:1]}, options=options(*UNITS)),
         lambda: caveat({"mine": BETTER[:2]}, options=options(*UNITS))),
    Case(" [no finite bounds] against dense", lambda: of_mine(values(0.0, 300.0)), lambda: of_mine(values(0.0, 0.3))),
    Case("Results were seen before the number of seeds (5) was final. Intervals of differences in test loss and metric "
         "hold at every interim analysis and are widened for skewness. Those of leverage, time and single arms do not.",
         lambda: caveat(TWO, sequential=True), lambda: caveat(TWO)),
    Case("Results were seen before the number of seeds (5) was final: these intervals do not allow for that.",
         lambda: caveat(TWO, sequential=True, options=options(*UNITS)), lambda: caveat(TWO, sequential=True)),
    Case("With 5 seeds the smallest possible exact sign-flip p is 0.0625, so that test can never reach .05.",
         lambda: caveat(TWO, options=options(*SEEDS)), lambda: caveat(TWO)),
    Case("With 6 seeds the smallest possible exact sign-flip p is 0.03125. ",
         lambda: caveat({"mine": table(n=6, seeds=0.1)}, options=options(*SEEDS)), lambda: caveat({"mine": table(n=6, seeds=0.1)})),
    Case("Before adjustment, tests at level .05 find a true difference in test loss of more than 1000% 8 times in 10.",
         lambda: caveat({"mine": values(0.0, 3.0)}), lambda: caveat({"mine": values(0.0, 0.1)})),
    Case("Before adjustment, tests at level .05 find a true difference in test loss of about 7.2% 8 times in 10.",
         lambda: caveat({"mine": values(0.1, 0.0, 0.05, 0.02, 0.08)}), lambda: caveat({"mine": values(0.1, 0.1)})),
    Case(" (by arm) 8 times in 10.", lambda: caveat({"mine": BETTER, "other": UNDECIDED}),
         lambda: caveat({"mine": BETTER})),
    Case("No test units were recorded, so intervals cover training seeds only, and claims are about this test split.",
         lambda: caveat({"mine": values(0.0, 0.1)}), lambda: caveat(TWO)),
    Case("Intervals cover training seeds only: claims are about this test split.", lambda: caveat(TWO, options=options(*SEEDS)),
         lambda: caveat(TWO)),
    Case("Intervals cover test examples only: claims are about these trained models.",
         lambda: caveat(TWO, options=options(*UNITS)), lambda: caveat({"mine": CONSTANT})),
    Case("Intervals cover test examples only, as no arm's results differ between seeds.", lambda: caveat({"mine": CONSTANT}),
         lambda: caveat({"mine": CONSTANT, "other": BETTER})),
    Case("Intervals cover training seeds and test examples.", lambda: caveat(TWO), lambda: caveat({"mine": CONSTANT})),
    Case("Intervals cover training seeds and test examples for mine; test examples only for other.",
         lambda: caveat({"mine": BETTER, "other": CONSTANT}), lambda: caveat(TWO)),
    Case("Intervals cover training seeds and test examples for mine; training seeds only for other.",
         lambda: caveat({"mine": BETTER, "other": values(0.1, 0.2, 0.1, 0.3, 0.2)}), lambda: caveat(TWO)),
    Case("The larger standard error is that over test examples for every arm.", lambda: caveat({"a": BY_UNITS, "b": BY_UNITS}),
         lambda: caveat({"a": BY_UNITS, "b": BY_UNITS, "c": CONSTANT})),
    Case("The larger standard error is that over ", lambda: caveat({"a": BY_SEEDS}, failures={("a", 0): "failed"}),
         lambda: caveat({"a": BY_SEEDS}, failures={("a", 0): "diverged"})),
    Case("The larger standard error is that over test examples for a and over seeds for b.",
         lambda: caveat({"a": BY_UNITS, "b": BY_SEEDS}), lambda: caveat({"a": BY_UNITS, "b": BY_UNITS})),
    Case("More seeds would hardly help: the test examples are the limit for a. With any number of seeds, at least 99% of the standard "
         "error would stay (95% confidence).",
         lambda: caveat({"a": BY_UNITS, "b": BY_SEEDS}), lambda: caveat({"a": BY_BOTH, "b": BY_SEEDS})),
    Case("The seeds are the limit for b: seeds=auto adds seeds without raising the error rate. With any number of test examples, at "
         "least 99% of the standard error would stay (95% confidence).",
         lambda: caveat({"a": BY_UNITS, "b": BY_SEEDS}), lambda: caveat({"a": BY_UNITS, "b": BY_BOTH})),
    Case("It is not clear what the limit is for b: more seeds (seeds=auto) or more test examples may shrink the standard error.",
         lambda: caveat({"a": BY_UNITS, "b": BY_BOTH}), lambda: caveat({"a": BY_UNITS, "b": BY_SEEDS})),
    Case("It is not clear what the limit is for b: ", lambda: caveat({"b": table(m=29, seeds=0.2, units=0.01)}),
         lambda: caveat({"b": table(m=100, seeds=0.2, units=0.01)})),
    Case("It is not clear what the limit is for c: ", lambda: caveat({"c": table(seeds=0.2, units=0.01, many=0.1)}),
         lambda: caveat({"c": table(seeds=0.2, units=0.01)})),
    Case("sign-flip", lambda: caveat(TWO, options=options(*SEEDS)), lambda: caveat(TWO, options=options(*SEEDS), sequential=True)),
    Case(", so that test can never reach .05.", lambda: caveat({"mine": table(n=5, seeds=0.1)}, options=options(*SEEDS)),
         lambda: caveat({"mine": table(n=6, seeds=0.1)}, options=options(*SEEDS))),
    Case("8 times in 10", lambda: caveat(TWO), lambda: caveat(TWO, sequential=True)),
    # The bounds are 84% and 74%, of which 80% is asked.
    Case("More seeds would hardly help", lambda: caveat({"a": table(seeds=0.0119, units=0.2)}),
         lambda: caveat({"a": table(seeds=0.0168, units=0.2)})),
    Case("The seeds are the limit", lambda: caveat({"a": table(seeds=0.1, units=0.18)}),
         lambda: caveat({"a": table(seeds=0.1, units=0.255)})),
    Case("standard error", lambda: caveat({"a": BY_SEEDS}), lambda: caveat({"a": BY_SEEDS}, options=options(*SEEDS))),
    # Why verdicts over seeds alone differ.
    Case("squared influence", lambda: note({"mine": table(shift=0.03, seeds=0.01, units=0.1, many=0.5)}),
         lambda: note({"mine": table(shift=0.1, seeds=0.01, units=0.7)})),
    Case("With statistics.uncertainty=[seeds], mine would be judged worse, as if these 100 examples were the whole test population. "
         "The verdicts here also cover other samples of examples.",
         lambda: note({"mine": table(shift=0.1, seeds=0.01, units=0.7)}),
         lambda: note({"mine": table(shift=0.5, seeds=0.01, units=0.7)})),
    Case("mine would be judged better and third would be judged equivalent and other would be undecided, as",
         lambda: note({"mine": ONLY_SEEDS, "other": ONLY_BOTH, "third": EQUAL_OVER_SEEDS}), lambda: note(TWO)),
    Case("With statistics.uncertainty=[seeds]", lambda: note({"mine": table(shift=0.1, seeds=0.01, units=0.7)}),
         lambda: note({"mine": table(shift=0.1, seeds=0.01, units=0.7)}, options=options(*UNITS))),
    Case("mine would be left without a verdict, as if", lambda: note({"mine": OUTLYING_OVER_SEEDS}), lambda: note(TWO)),
    Case("The verdicts here also cover other samples of examples: 10 of 100 examples carry 81% of the squared influence on a "
         "difference from dense.",
         lambda: note({"mine": table(shift=0.03, seeds=0.01, units=0.1, many=0.5)}), lambda: note(TWO)),
    Case("On digits, at 3.00 times the forward FLOPs per example of dense: ",
         lambda: sentence(TWO, changes={"mine": {"flops_per_example": 3e6}, "other": {"flops_per_example": None}}),
         lambda: sentence(TWO, changes={"mine": {"flops_per_example": 3e6}})),
]  # fmt: skip


def withdrawal(before=5, now=8, arms=None, seeds_now=None, **more):
    """Return the sentences on earlier verdicts of the same arms, at `before` seeds, if there are now `now` seeds."""
    first = study(arms or TWO, **more) | {"seeds": list(range(before)), "cells": [["dense", 0, "k0"], ["mine", 0, "k1"]]}
    earlier = earlier_looks(first, {"k0", "k1"}, ["dense", "mine", "other"], "dense")
    return (
        withdrawal_text(earlier.withdrawn if earlier.is_sequential(seeds_now or range(now)) else None, earlier.seed_counts(now))
        or ""
    )


def readings(mine, other, earlier=1e9):
    """Return the summary's sentences for training FLOPs of two arms, the first of which builds on a run of so many FLOPs."""
    changes = {
        "dense": {"flops_model": 1e9},
        "mine": {"flops_model": mine, "initial_flops": earlier},
        "other": {"flops_model": other},
    }
    return sentence(TWO, changes=changes)


def announced(seeds="3", rows=2, uncertainty=("seeds", "examples"), before=None, **ahead):
    """Return the announcement of two arms for a cost estimate with these fields."""
    fields = {"runs": 6, "uncounted": 0, "flops": 1.5e9, "seconds": 600.0, "effect": 2.0} | ahead
    config = SimpleNamespace(
        seeds=seeds, statistics=options(*uncertainty), data={"name": "digits"}
    )  # fmt: skip
    count = 5 if seeds == "auto" else int(seeds)
    jobs = [SimpleNamespace(spec=SimpleNamespace(seed=seed)) for seed in range(count) for _ in range(2)]
    prepared = SimpleNamespace(resolved=SimpleNamespace(config=config), labels=["dense", "mine"], rows=[None] * rows, jobs=jobs)
    looks = (
        interim_looks.EarlierLooks((before,), False, {"seeds": before, "states": {}})
        if before
        else interim_looks.EarlierLooks()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "outlook", lambda _: estimate.Outlook(**fields))
        patch.setattr(compare, "find_earlier_looks", lambda _: looks)
        return announcement(prepared)


def paired(arms, pair=("mine", "other"), sequential=False, chosen=None, dense=None):
    """Return the lines on one pair of arms."""
    chosen = chosen or options()
    records, read = records_of(arms, dense)
    pairs = judged_pairs([pair], records, "accuracy", chosen, sequential, MetricTables(records, read))
    summary = study(arms, dense=dense, options=chosen, sequential=sequential)
    return "\n".join(pair_lines(summary | {"pairs": pairs}))


OTHER_CASES = [
    Case("This comparison was judged with 5 and 8 seeds. It is therefore judged sequentially. The verdicts at 5 seeds are withdrawn "
         "(mine better; other worse).", lambda: withdrawal(5, 8), lambda: withdrawal(5, 5)),
    Case("The verdicts at 5 seeds are withdrawn (mine equivalent).", lambda: withdrawal(arms={"mine": ALIKE}), withdrawal),
    Case("The verdicts at 5 seeds are withdrawn.", lambda: withdrawal(arms={"mine": UNDECIDED}), withdrawal),
    Case("This comparison was judged with 5 and 8 seeds.", withdrawal, lambda: withdrawal(sequential=True)),
    Case("This comparison was judged with other seeds.", lambda: withdrawal(seeds_now=[0, 1, 2, 3, 7], now=5), withdrawal),
    Case(" Beside dense, at equal additional training FLOPs (what earlier runs took is sunk): mine (better), other (worse); at equal "
         "total training FLOPs (earlier runs' counted): other (worse).",
         lambda: readings(1.024e9, 0.976e9), lambda: readings(1.026e9, 0.976e9)),
    Case("(earlier runs' counted): no arm; at neither: mine (2.00x additional, 3.00x total), other (3.00x additional, 3.00x total).",
         lambda: readings(2e9, 3e9), lambda: readings(2e9, 1e9)),
    Case("is sunk): no arm; at equal total", lambda: readings(2e9, 3e9), lambda: readings(2e9, 1e9)),
    Case("Beside dense, ", lambda: readings(1e9, 1e9), lambda: readings(1e9, 1e9, earlier=None)),
    Case("2 arms x 3 seeds on digits; 6 runs to train, 1.5GFLOPs, about 10 min if nothing else runs here", announced,
         lambda: announced(seconds=60.0)),
    Case("2 arms x 5 to 20 seeds on digits; ", lambda: announced("auto"), announced),
    Case(", and 3 rows of the dense ladder or of other budgets; ", lambda: announced(rows=5), announced),
    Case("2 arms x 3 seeds on digits; judged before with 2 seeds, whose verdicts will be withdrawn; 6 runs",
         lambda: announced(before=2), lambda: announced(before=3)),
    Case("2 arms x 1 seed on digits", lambda: announced(seeds="1"), announced),
    Case("2 arms x 3 seeds on digits; every run is there already", lambda: announced(runs=0), announced),
    Case(", 2 of them not counted in FLOPs, ", lambda: announced(uncounted=2), announced),
    Case("1.5GFLOPs, less than 2 min", lambda: announced(seconds=80.0), lambda: announced(seconds=100.0)),
    Case("; over seeds alone, differences of 2.0 standard deviations between seeds would be found 8 times in 10", announced,
         lambda: announced("auto")),
    Case("; over seeds alone, ", announced, lambda: announced(uncertainty=UNITS)),
    Case("; over seeds alone, ", announced, lambda: announced("1", effect=None)),
    Case("In pairs, which are a family of claims of their own (paired t-tests over seeds and test examples, Holm-adjusted, level "
         ".05):\n  mine: better: test loss ", lambda: paired(TWO), lambda: paired(TWO, chosen=options(*SEEDS))),
    Case("(sequential paired t-tests over seeds, Bonferroni, level .05):",
         lambda: paired(TWO, sequential=True, chosen=options(*SEEDS)), lambda: paired(TWO, chosen=options(*SEEDS))),
    Case("of their own:\n  mine: test loss ", lambda: paired({"mine": BETTER[:1], "other": WORSE[:1]}), lambda: paired(TWO)),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *OTHER_CASES], ids=lambda case: case.clause[:60])
def test_a_clause_is_printed_on_one_side_of_its_condition_only(case):
    assert case.clause in case.present()
    assert case.clause not in case.absent()


def labelled(uncertainty=("seeds", "examples"), sequential=False, arms=None):
    """Return what the report says of the intervals of a study."""
    return intervals_of(study(arms or {"mine": UNDECIDED}, options=options(*uncertainty), sequential=sequential))


LABEL_CASES = [
    Case("95% two-way intervals over training seeds and test examples, not adjusted for how many are judged; Holm's p, which decides, is",
         labelled, lambda: labelled(SEEDS)),
    Case("95% t-intervals over training seeds on this test split, not adjusted", lambda: labelled(SEEDS), labelled),
    Case("95% t-intervals over test examples for these trained models, not adjusted", lambda: labelled(UNITS), labelled),
    Case("intervals over training seeds and test examples that hold at every interim analysis, their level of 0.05 divided among those "
         "that are judged", lambda: labelled(sequential=True), lambda: labelled(UNITS, sequential=True)),
    Case(" (other: over test examples for these trained models)",
         lambda: labelled(arms={"mine": UNDECIDED, "other": CONSTANT}), lambda: labelled(arms={"mine": UNDECIDED, "other": ALIKE})),
]  # fmt: skip


@pytest.mark.parametrize("case", LABEL_CASES, ids=lambda case: case.clause[:60])
def test_a_label_is_printed_on_one_side_of_its_condition_only(case):
    assert case.clause in case.present()
    assert case.clause not in case.absent()


def literals(path):
    """Return the pieces, of at least three words, of the string literals of a module that are not docstrings."""
    tree = ast.parse(Path(path).read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements
    ]
    pieces = itertools.chain.from_iterable(re.split(r"\{[^}]*\}", text) for text in strings)
    return {piece for piece in pieces if len(piece.split()) >= 3}


@pytest.mark.parametrize(
    ("module", "cases"),
    [(verdict, CASES), (budget_accounting, OTHER_CASES), (interim_looks, OTHER_CASES), (interval_labels, LABEL_CASES)],
)
def test_each_literal_is_part_of_a_tested_clause(module, cases):
    # That of an earlier version's summary is tested in tests/report/test_uncertainty_columns.py.
    pieces = literals(module.__file__) - {interval_labels.SEEDS_ALONE}
    assert pieces
    assert not {piece for piece in pieces if not any(piece.strip() in case.clause for case in cases)}


GRID = {
    "better": TWO,
    "undecided": {"mine": UNDECIDED, "other": ALIKE},
    "outliers": {"mine": UNDECIDED_OUTLIER, "other": UNDECIDED_OUTLIER[::-1]},
    "withheld": {"mine": DECIDED_OUTLIER, "other": values(0.0, 0.1, 0.0, 0.1, 0.2)},
    "one seed": {"mine": BETTER[:1], "other": UNDECIDED[:1]},
    "two seeds": {"mine": BETTER[:2], "other": UNDECIDED[:2]},
    "limits": {"mine": BY_UNITS, "other": BY_SEEDS},
    "no limit": {"mine": BY_BOTH, "other": CONCENTRATED},
    "constant": {"mine": CONSTANT, "other": BETTER},
    "few units": {"mine": table(m=12, seeds=0.1, units=0.2), "other": table(m=12, seeds=0.01, units=0.3)},
    "only over seeds": {"mine": ONLY_SEEDS, "other": ONLY_BOTH},
    "outlying over seeds": {"mine": OUTLYING_OVER_SEEDS, "other": BY_UNITS},
}
"""Name -> arms: data in which every state, limit and warning occurs."""


def texts(summary):
    return [arm["verdict"] for arm in summary["arms"].values()] + [
        summary[key] for key in ("sentence", "caveat", "split_note") if summary[key]
    ]


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("uncertainty", [("seeds", "examples"), SEEDS, UNITS])
@pytest.mark.parametrize("failures", [None, {("mine", 0): "diverged"}], ids=["ok", "diverged"])
def test_no_text_advises_a_number_of_seeds_or_is_too_long(name, uncertainty, failures):
    for sequential in (False, True):
        summary = study(GRID[name], options=options(*uncertainty), sequential=sequential, failures=failures)
        for text in texts(summary):
            assert not re.search(r"seeds=\d|more seeds would settle|\d+ more|underpowered", text)
            assert "nan" not in text
        for text in (summary["caveat"], summary["split_note"] or ""):
            assert max(len(part.split()) for part in re.split(r"(?<=\.) ", text)) <= 25
        if "seeds=auto" in summary["caveat"]:
            assert "seeds" in uncertainty


@pytest.mark.parametrize("name", GRID)
def test_the_explanation_has_two_sentences_exactly_if_a_verdict_differs(name):
    summary = study(GRID[name])
    arms = {label: arm for label, arm in summary["arms"].items() if arm["over_seeds"] and arm["state"]}
    changed = [label for label, arm in arms.items() if arm["over_seeds"]["state"] != arm["state"]]
    assert bool(changed) == (summary["split_note"] is not None)
    if changed:
        assert len(re.findall(r"\.(?: |$)", summary["split_note"])) == 2
        judged = summary["split_note"].split(", as if ")[0]
        assert [label for label in GRID[name] if label in judged] == changed
    for more in ({"options": options(*SEEDS)}, {"options": options(*UNITS)}, {"sequential": True}):
        assert more.get("options") == options(*UNITS) or study(GRID[name], **more)["split_note"] is None


def test_a_verdict_as_a_whole():
    """Every number is computed again from the losses."""
    losses_SU = table(n=4, shift=0.1, seeds=0.02, units=0.2, error=0.05)
    logs_S = np.log(losses_SU.mean(1))
    rows_SU = logs_S[:, None] + losses_SU / losses_SU.mean(1, keepdims=True) - 1
    result = estimate_two_way(rows_SU)
    t = result.mean / result.standard_error
    p = 2 * stats.t.sf(abs(t), result.degrees_of_freedom)
    low, high = (result.mean + sign * stats.t.ppf(0.975, result.degrees_of_freedom) * result.standard_error for sign in (-1, 1))
    percent = [100 * math.expm1(log) for log in (result.mean, low, high)]
    ratios = np.log([1.5, 1.6, 1.5, 1.7])
    time = [math.exp(ratios.mean() + sign * stats.t.ppf(0.975, 3) * ratios.std(ddof=1) / 2) for sign in (0, -1, 1)]
    assert of_mine(losses_SU, changes=seconds(1.5, 1.6, 1.5, 1.7)) == (
        "worse: test loss {:+.1f}% [{:+.1f}, {:+.1f}] against dense, 4 seeds x 100 examples, ".format(*percent)
        + f"standard error {format_change_size(result.unit_error)} over examples and {format_change_size(result.seed_error)} over seeds, "
        + f"Holm p={p:.2g}, " + "{:.2f}x the training time [{:.2f}, {:.2f}]".format(*time)
    )  # fmt: skip


@pytest.mark.parametrize("losses", [UNDECIDED, values(0.0, 0.05, 0.02, -0.03)], ids=["both", "seeds"])
def test_the_supported_margin_is_the_smallest_at_which_two_one_sided_tests_reject(losses):
    """By scipy, for the level that each of two arms has; at the margin that is printed the arm is equivalent."""
    arms = {"mine": losses, "other": table(shift=2.0, seeds=0.01)[: len(losses)] if losses.ndim > 1 else losses + 9}
    entry = study(arms)["arms"]["mine"]
    difference, margin = entry["difference"], entry["supported_margin"]
    assert entry["state"] == "open"
    assert f"that these data support is {format_change_size(margin)}" in entry["verdict"]
    if losses.ndim == 1:
        one_sided = [
            stats.ttest_1samp(np.log(losses), bound, alternative=side).pvalue
            for bound, side in ((-margin, "greater"), (margin, "less"))
        ]
    else:
        one_sided = [
            stats.t.sf((margin + sign * difference["mean"]) / difference["standard_error"], difference["degrees_of_freedom"])
            for sign in (-1, 1)
        ]
    assert max(one_sided) == pytest.approx(0.05 / 2)
    assert study(arms, options=options(margin=margin * 1.001))["arms"]["mine"]["state"] == "equivalent"
    assert margin >= 0.01  # Otherwise the arm would be equivalent at the configured margin.


def test_the_supported_margin_with_interim_analyses_holds_the_interval():
    entry = study({"mine": table(n=8, shift=0.02, seeds=0.05, units=0.4)}, sequential=True)["arms"]["mine"]
    farthest = max(abs(entry["difference"]["low"]), abs(entry["difference"]["high"]))
    assert entry["state"] == "open"
    assert f"that these data support is {format_change_size(farthest)}" in entry["verdict"]


def test_a_seed_that_an_arm_never_tried_is_no_part_of_its_result():
    """With seeds=auto the reference goes on to seeds that a decided arm does not have."""
    dense, mine = np.ones((10, 100)), table(n=8, shift=-0.5, seeds=0.01, units=0.05)
    decided = study({"mine": mine}, dense=dense, failures={("dense", 9): "diverged"}, sequential=True)["arms"]
    assert decided["mine"]["verdict"].startswith("better")
    assert decided["dense"]["verdict"] == "the reference; 1 of 10 seeds diverged"
    assert of_mine(mine, dense=dense, failures={("dense", 4): "diverged"}).startswith("no verdict, as 1 of 8 seeds diverged")


def test_a_change_beyond_the_range_of_a_float_is_printed():
    """math.expm1 raises an OverflowError above 709."""
    from routelab.core.number_format import format_change_in_table

    losses_S = values(0.0, 300.0)
    assert "[no finite bounds]" in of_mine(losses_S)
    assert "+inf]" in format_change_in_table(study({"mine": losses_S})["arms"]["mine"]["difference"])


@pytest.mark.parametrize(("n", "part"), [(3, 0.5), (3, 0.8), (5, 0.5), (5, 0.2), (5, 0.05), (5, 0.95)])
def test_a_limit_is_rarely_overstated(n, part):
    """Normal effects of known variance: the bound that is printed exceeds the part that would stay in about 5% of tables at most.

    part: of the variance of the mean, that of the units; the errors have 5% of it. Three standard errors of 300 draws are .038.
    """
    m, draws = 60, 300
    unit_variance, seed_variance, error_variance = 0.95 * part * m, 0.95 * (1 - part) * n, 0.05 * n * m
    limits = math.sqrt(0.95 * part), math.sqrt(0.95 * (1 - part))
    random = np.random.default_rng(0)
    wrong = [0, 0]
    for _ in range(draws):
        seeds_S, units_U, errors_SU = random.normal(size=(n, 1)), random.normal(size=m), random.normal(size=(n, m))
        rows_SU = (
            math.sqrt(seed_variance) * seeds_S + math.sqrt(unit_variance) * units_U + math.sqrt(error_variance) * errors_SU
        )
        fractions = verdict._remaining({**vars(estimate_two_way(rows_SU)), "n": n})
        for source in (0, 1):
            wrong[source] += fractions[source] >= verdict.MOSTLY and math.floor(100 * fractions[source]) / 100 > limits[source]
    assert max(wrong) / draws <= 0.05 + 0.038
