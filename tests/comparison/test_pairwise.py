"""Arms judged against each other: paired by seed, adjusted among the pairs alone, shown in a figure and a table."""

import math

import pytest
from scipy import stats

from routelab.comparison.pairwise import judged_pairs, pairs_of
from routelab.comparison.summary import summarise
from routelab.config.resolve import resolve
from routelab.config.schema import StatisticsOptions
from routelab.core.errors import UsageError
from routelab.report.plots.pairwise_plots import pairs as drawn_pairs

LOSSES = {
    "dense": [1.0, 1.02, 0.98, 1.01],
    "with": [0.90, 0.92, 0.89, 0.91],
    "without": [0.95, 0.96, 0.95, 0.97],
    "like": [0.951, 0.959, 0.95, 0.97],
}
LOADS = {"with": 0.1, "without": 1.5, "like": 0.2}
PAIRS = [("with", "without"), ("like", "without")]


def records():
    found = []
    for arm, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            telemetry = {"load_cv": LOADS[arm], "max_violation": 2.0, "dead_experts": 3.0} if arm in LOADS else {}
            found.append({"arm": arm, "seed": seed, "data": "digits", "metric": "accuracy", "status": "ok", "seconds": 2.0,
                          "flops_per_example": 1e6, "telemetry": telemetry, "drop_rate": 0.25 if arm in LOADS else None,
                          "test": {"loss": loss, "accuracy": 0.5}})  # fmt: skip
    return found


def test_differences_are_those_of_the_pair_and_adjusted_among_the_pairs_alone():
    first, second = judged_pairs(PAIRS, records(), "accuracy", StatisticsOptions(), sequential=False)
    gaps = [math.log(a / b) for a, b in zip(LOSSES["with"], LOSSES["without"], strict=True)]
    assert first["difference"]["mean"] == pytest.approx(sum(gaps) / 4)
    p = stats.ttest_rel(*([math.log(x) for x in LOSSES[arm]] for arm in ("with", "without"))).pvalue
    # Holm: the smaller of two p-values is doubled.
    assert first["p_holm"] == pytest.approx(2 * p)
    assert (first["state"], second["state"]) == ("better", "equivalent")
    assert first["verdict"].startswith("better: test loss -5.")
    assert "against without, 4 seeds, on this test split, " in first["verdict"]
    assert "equal training time within 5% [1.00, 1.00]" in first["verdict"]


def test_a_pair_of_arms_that_share_no_seed_says_so():
    apart = [each | {"seed": 9} if each["arm"] == "with" and each["seed"] else each for each in records()]
    apart = [each for each in apart if not (each["arm"] == "with" and each["seed"] == 0)]
    (judged,) = judged_pairs(PAIRS[:1], apart, "accuracy", StatisticsOptions(), sequential=False)
    assert judged["difference"] is None
    assert judged["verdict"] == "shares no finished seed with without"


def test_the_figure_has_the_load_of_both_sides():
    found = summarise("mine", records(), list(LOSSES), "dense")
    found["pairs"] = judged_pairs(PAIRS, records(), "accuracy", StatisticsOptions(), sequential=False)
    drawn = drawn_pairs(found, [])
    row = dict(zip(drawn.table[0], drawn.table[1], strict=True))
    assert (row["load_cv"], row["against_load_cv"], row["drop_rate"], row["dead_experts"]) == (0.1, 1.5, 0.25, 3.0)
    assert row["loss"] == pytest.approx(sum(LOSSES["with"]) / 4)
    assert len(drawn.figure.axes) == 5
    assert drawn_pairs(found | {"pairs": []}, []) is None


def test_wrong_pairs_are_one_sentence():
    with pytest.raises(UsageError, match=r"unknown statistics\.pairs 'withuot'; did you mean 'without'"):
        pairs_of(StatisticsOptions(pairs=[["withuot", "dense"]]), list(LOSSES))
    with pytest.raises(UsageError, match="each pair must be a list of two labels of arms that differ"):
        resolve(["statistics.pairs=[[switch,switch]]"])
