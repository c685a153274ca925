"""Each clause of the sentence on a whole comparison is present on one side of its condition and absent on the other."""

import math

import pytest
from studies import (
    ALIKE,
    BETTER,
    CONSTANT,
    DECIDED_OUTLIER,
    SEEDS,
    TWO,
    UNDECIDED,
    UNDECIDED_OUTLIER,
    UNITS,
    Case,
    options,
    sentence,
    untested_literals,
    values,
)

from routelab.comparison import budget_accounting, summary_text


def readings(mine, other, earlier=1e9):
    """Return the summary's sentences for training FLOPs of two arms, the first of which builds on a run of so many FLOPs."""
    changes = {
        "dense": {"flops_model": 1e9},
        "mine": {"flops_model": mine, "initial_flops": earlier},
        "other": {"flops_model": other},
    }
    return sentence(TWO, changes=changes)


SUMMARY_CASES = [
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
    Case("mine and other showed no significant difference from dense (", lambda: sentence({"mine": UNDECIDED, "other": UNDECIDED}),
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
    Case(" Beside dense, at equal additional training FLOPs (what earlier runs took is sunk): mine (better), other (worse); at equal "
         "total training FLOPs (earlier runs' counted): other (worse).",
         lambda: readings(1.024e9, 0.976e9), lambda: readings(1.026e9, 0.976e9)),
    Case("(earlier runs' counted): no arm; at neither: mine (2.00x additional, 3.00x total), other (3.00x additional, 3.00x total).",
         lambda: readings(2e9, 3e9), lambda: readings(2e9, 1e9)),
    Case("is sunk): no arm; at equal total", lambda: readings(2e9, 3e9), lambda: readings(2e9, 1e9)),
    Case("Beside dense, ", lambda: readings(1e9, 1e9), lambda: readings(1e9, 1e9, earlier=None)),
]  # fmt: skip


@pytest.mark.parametrize("case", SUMMARY_CASES, ids=lambda case: case.clause[:60])
def test_a_clause_of_the_summary_is_printed_on_one_side_of_its_condition_only(case):
    assert case.clause in case.present()
    assert case.clause not in case.absent()


def test_each_literal_of_summaries_is_part_of_a_tested_clause():
    assert not untested_literals(summary_text, SUMMARY_CASES)


def test_each_literal_of_budgets_is_part_of_a_tested_clause():
    assert not untested_literals(budget_accounting, SUMMARY_CASES)
