"""The sentences of a comparison: right in number, and no claim that the records do not bear."""

import math

import pytest

from routelab.comparison.summary import summarise
from routelab.config.schema import StatisticsOptions


def record(arm, seed, loss, ratio=1.0):
    status = "failed" if loss is None else "ok"
    flops = None if ratio is None else 1e6 * ratio
    return {"flops_per_example": flops, "arm": arm, "seed": seed, "data": "digits", "metric": "accuracy", "status": status,
            "test": {} if loss is None else {"loss": loss, "accuracy": 0.5}}  # fmt: skip


def summary(losses, reference="dense", ratios=None, **more):
    """losses: arm -> its test losses by seed, None = failed."""
    ratios = ratios or dict.fromkeys(losses, 1.0)
    records = [record(arm, seed, loss, ratios[arm]) for arm, values in losses.items() for seed, loss in enumerate(values)]
    return summarise("mine", records, list(losses), reference, **more)


def test_one_seed():
    made = summary({"dense": [1.0], "switch": [0.9], "soft": [1.1]})
    assert made["sentence"] == "On digits, at equal forward FLOPs per example: switch and soft cannot be judged by one seed."
    assert made["caveat"] == (
        "One seed says nothing about how much seeds differ, so there are no intervals. seeds=auto adds seeds while they can lead to a "
        "verdict, up to statistics.max_seeds."
    )
    assert made["arms"]["switch"]["verdict"] == "test loss -10.0% against dense; one seed gives no interval"
    assert "1 seeds" not in made["caveat"]


def test_several_seeds():
    """Ratios of 0.5 and 2 with a spread of under 1%, and one arm that is as often above as below."""
    base = [1.0, 1.01, 0.99, 1.0, 1.02]
    wobble = [1.1, 0.91, 1.09, 0.9, 1.02]
    losses = {"dense": base, "good": [0.5 * x for x in base[::-1]], "bad": [2 * x for x in base[::-1]], "like": wobble}
    made = summary(losses, options=StatisticsOptions(uncertainty=["seeds"]))
    assert made["sentence"] == (
        "On digits, at equal forward FLOPs per example: good had a lower test loss than dense; bad had a higher test loss than "
        "dense; like showed no significant difference from dense (paired t-tests over seeds, Holm-adjusted, level .05)."
    )
    assert made["caveat"].startswith("With 5 seeds the smallest possible exact sign-flip p is 0.0625, so that test can never")
    assert "find a true difference in test loss of about 2.7% to 18% (by arm) 8 times in 10." in made["caveat"]
    assert "sign-flip" not in summary(losses)["caveat"]


def test_a_range_of_one_value_is_one_value():
    made = summary({"dense": [1.0, 1.1], "switch": [1.1, 1.1]})
    assert "of about 118% 8 times in 10." in made["caveat"]
    assert "by arm" not in made["caveat"]
    assert "showed no significant difference" in made["sentence"]


def test_failures_are_named():
    made = summary({"dense": [1.0, 1.1], "switch": [None, None], "soft": [None, 1.0]})
    assert made["sentence"] == (
        "On digits, at equal forward FLOPs per example: soft cannot be judged by one seed; switch failed on every seed."
    )
    made = summary({"dense": [None, 1.1], "switch": [1.0, None]})
    assert "switch shared no finished seed with dense" in made["sentence"]
    made = summary({"dense": [None], "switch": [1.0]})
    assert made["sentence"] == "On digits, the reference dense failed on every seed, so no arm could be compared with it."


def test_without_others_or_without_a_reference():
    assert summary({"dense": [1.0]})["sentence"] == (
        "On digits, dense was trained alone, so there is nothing to compare it with."
    )
    assert "no arm is the reference (match.reference)" in summary({"switch": [1.0]}, reference=None)["sentence"]


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({"dense": 1.0, "switch": 1.02, "soft": 0.98}, "at equal forward FLOPs per example"),
        ({"dense": 1.0, "switch": 0.5, "soft": 2.0}, "at 0.50 to 2.00 times the forward FLOPs per example of dense"),
        ({"dense": 1.0, "switch": 3.0, "soft": None}, "at 3.00 times the forward FLOPs per example of dense"),
    ],
)
def test_equal_cost_is_only_claimed_where_it_holds(ratios, words):
    made = summary({"dense": [1.0], "switch": [0.9], "soft": [0.9]}, ratios=ratios)
    assert made["sentence"].startswith(f"On digits, {words}: ")


def test_arms_whose_flops_nobody_counts_are_named():
    made = summary({"dense": [1.0], "switch": [0.9], "forest": [0.9]}, ratios={"dense": 1.0, "switch": 1.0, "forest": None})
    assert made["sentence"].endswith("one seed. The FLOPs of forest are not counted, so they may differ.")


def test_losses_differ_in_logs():
    made = summary({"dense": [1.0, 2.0], "switch": [2.0, 4.0]})
    assert made["arms"]["switch"]["difference"]["mean"] == pytest.approx(math.log(2))


def test_differences_that_are_all_equal_leave_no_doubt():
    """Differences of arms that vary with the seed: not undecided, and not for want of seeds."""
    base = [1.0, 2.0, 1.0]
    made = summary({"dense": base, "worse": [2.0, 4.0, 2.0], "same": base})["arms"]
    assert (made["worse"]["state"], made["same"]["state"]) == ("worse", "equivalent")
    assert made["worse"]["verdict"] == (
        "worse: test loss +100.0% [+100.0, +100.0] against dense, 3 seeds, on this test split, Holm p=0"
    )


def test_arms_that_no_seed_moves_are_not_judged_over_seeds():
    """Three equal differences of such arms are one observation, and no test units were recorded."""
    made = summary({"dense": [1.0, 1.0, 1.0], "worse": [2.0, 2.0, 2.0]})
    assert made["arms"]["worse"]["state"] is None
    assert made["arms"]["worse"]["verdict"] == (
        "test loss +100.0% against dense; the results of neither arm differ between seeds, and no test units were recorded"
    )
    assert made["sentence"].endswith(": worse cannot be judged by these data.")


def test_with_looks_after_every_seed_nothing_is_said_that_holds_at_one_look_alone():
    base = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0]
    made = summary(
        {"dense": base, "good": [0.9 + 0.1 * x for x in base[::-1]], "far": [0.5 * x for x in base[::-1]]}, sequential=True
    )
    for arm in ("good", "far"):
        entry = made["arms"][arm]
        assert entry["p_sign_flip"] is entry["detectable"] is entry["bca"] is None
        assert entry["p_t"] is entry["p_holm"] is entry["p_equivalent"] is None
    assert made["arms"]["far"]["state"] == "better"
    assert "sign-flip" not in made["caveat"]
    assert (
        "hold at every interim analysis and are widened for skewness. Those of leverage, time and single arms do not."
        in made["caveat"]
    )
    two = summary({"dense": base[:2], "good": [0.9, 0.91]}, sequential=True)["arms"]["good"]
    assert "[no bounds below 5 seeds]" in two["verdict"]


def test_an_arm_that_never_ran_is_not_called_causal():
    made = summary({"dense": [1.0], "switch": [None]})["arms"]
    assert (made["dense"]["causal"], made["switch"]["causal"]) == (True, None)


def test_an_undecided_difference_in_time_is_said_with_its_interval():
    records = [
        record(arm, seed, 1.0 + 0.1 * seed * (arm == "switch")) | {"seconds": 2.0 ** (seed * (arm == "switch"))}
        for arm in ("dense", "switch")
        for seed in (-1, 0, 1)
    ]
    made = summarise("mine", records, ["dense", "switch"], "dense")
    assert (
        "difference in training time undecided [0.18, 5.59]" in made["arms"]["switch"]["verdict"]
    )  # exp(+-4.303 ln 2 / sqrt 3)


def test_without_a_reference_no_column_is_held_against_none():
    from routelab.cli.output import table

    made = summary({"switch": [1.0, 1.1]}, reference=None)
    assert not [column.header for column in table(made).columns if "None" in str(column.header) or "vs" in str(column.header)]
    assert "loss vs dense" in [column.header for column in table(summary({"dense": [1.0]})).columns]
