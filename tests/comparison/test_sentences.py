"""Each other clause that a comparison prints is present on one side of its condition and absent on the other.

These are the announcement, the lines on pairs, the withdrawal of earlier verdicts, and the labels of intervals in the report.
"""

from types import SimpleNamespace

import pytest
from studies import (
    ALIKE,
    BETTER,
    CONSTANT,
    SEEDS,
    TWO,
    UNDECIDED,
    UNITS,
    WORSE,
    Case,
    options,
    records_of,
    study,
    untested_literals,
)

from routelab.cli.compare_command import announcement, pair_lines
from routelab.comparison import estimate, interim_looks
from routelab.comparison.interim_looks import earlier_looks, withdrawal_text
from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.pairwise import judged_pairs
from routelab.report import interval_labels
from routelab.report.interval_labels import intervals_of


def withdrawal(before=5, now=8, arms=None, seeds_now=None, **more):
    """Return the sentences on earlier verdicts of the same arms, at `before` seeds, if there are now `now` seeds."""
    first = study(arms or TWO, **more) | {"seeds": list(range(before)), "cells": [["dense", 0, "k0"], ["mine", 0, "k1"]]}
    earlier = earlier_looks(first, {"k0", "k1"}, ["dense", "mine", "other"], "dense")
    return (
        withdrawal_text(earlier.withdrawn if earlier.is_sequential(seeds_now or range(now)) else None, earlier.seed_counts(now))
        or ""
    )


def announced(seeds="3", rows=2, uncertainty=("seeds", "examples"), before=None, **ahead):
    """Return the announcement of two arms for a cost estimate with these fields."""
    fields = {"runs": 6, "uncounted": 0, "flops": 1.5e9, "seconds": 600.0, "effect": 2.0} | ahead
    config = SimpleNamespace(
        seeds=seeds, statistics=options(*uncertainty), data={"name": "digits"}
    )  # fmt: skip
    count = 5 if seeds == "auto" else int(seeds)
    looks = interim_looks.EarlierLooks()
    if before:
        looks = interim_looks.EarlierLooks((before,), False, {"seeds": before, "states": {}})
    prepared = SimpleNamespace(
        resolved=SimpleNamespace(config=config), labels=["dense", "mine"], rows=[None] * rows, seeds=range(count), earlier=looks
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "outlook", lambda _: estimate.Outlook(**fields))
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


@pytest.mark.parametrize("case", [*OTHER_CASES, *LABEL_CASES], ids=lambda case: case.clause[:60])
def test_a_clause_is_printed_on_one_side_of_its_condition_only(case):
    assert case.clause in case.present()
    assert case.clause not in case.absent()


def test_each_literal_of_withdrawals_is_part_of_a_tested_clause():
    assert not untested_literals(interim_looks, OTHER_CASES)


def test_each_literal_of_labels_is_part_of_a_tested_clause():
    # That of an earlier version's summary is tested in tests/report/test_uncertainty_columns.py.
    assert untested_literals(interval_labels, LABEL_CASES) == {interval_labels.SEEDS_ALONE}
