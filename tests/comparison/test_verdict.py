"""Each clause of a verdict is present on one side of its condition and absent on the other."""

import math

import numpy as np
import pytest
from scipy import stats
from studies import (
    ALIKE,
    BETTER,
    CONCENTRATED,
    CONSTANT,
    DECIDED_OUTLIER,
    EVEN,
    SEEDS,
    TWO_OUTLIERS,
    UNDECIDED,
    UNDECIDED_OUTLIER,
    UNITS,
    WORSE,
    Case,
    frontier,
    of_dense,
    of_mine,
    options,
    seconds,
    study,
    table,
    untested_literals,
    values,
)

from routelab.comparison import verdict
from routelab.comparison.statistics.two_way import estimate_two_way
from routelab.core.number_format import format_change_size

VERDICT_CASES = [
    Case(" [no finite bounds] against dense", lambda: of_mine(values(0.0, 300.0)), lambda: of_mine(values(0.0, 0.3))),
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
]  # fmt: skip


@pytest.mark.parametrize("case", VERDICT_CASES, ids=lambda case: case.clause[:60])
def test_a_clause_of_a_verdict_is_printed_on_one_side_of_its_condition_only(case):
    assert case.clause in case.present()
    assert case.clause not in case.absent()


def test_each_literal_of_verdicts_is_part_of_a_tested_clause():
    assert not untested_literals(verdict, VERDICT_CASES)


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
