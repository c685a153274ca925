"""Earlier analyses of a comparison: which ones count, and which verdicts are withdrawn."""

from __future__ import annotations

import pytest

from routelab.comparison.interim_looks import EarlierLooks, earlier_looks, withdrawal_text

CELLS = {"d0", "d1", "d2", "s0", "s1", "s2"}


def stored(seeds=2, sequential=False, **more):
    """Return the summary of an analysis with so many seeds."""
    cells = [[arm, seed, f"{arm[0]}{seed}"] for arm in ("dense", "switch") for seed in range(seeds)]
    arms = {"dense": {"state": None}, "switch": {"state": "worse"}}
    return {"cells": cells, "seeds": list(range(seeds)), "sequential": sequential, "arms": arms, **more}


def looks(summary, cells=CELLS):
    return earlier_looks(summary, cells, ["dense", "switch"], "dense")


def test_without_an_earlier_summary_there_is_no_earlier_look():
    for summary in (None, {}, {"cells": None}):
        result = looks(summary)
        assert result == EarlierLooks()
        assert not result.is_sequential(range(5))
        assert result.seed_counts(5) == [5]


def test_the_same_seeds_again_are_no_further_look():
    assert not looks(stored(2)).is_sequential([1, 0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_another_number_of_seeds_is_a_further_look(seeds):
    result = looks(stored(2))
    assert result.is_sequential(range(seeds))
    assert result.seed_counts(seeds) == sorted({2, seeds})


def test_as_many_other_seeds_are_a_further_look():
    """Otherwise one could try seeds until they please."""
    assert looks(stored(2)).is_sequential([0, 7])


def test_a_sequential_comparison_stays_sequential():
    result = looks(stored(3, sequential=True, looks=[2, 3], withdrawn={"seeds": 2, "states": {"switch": "worse"}}))
    assert result.is_sequential(range(3))
    assert result.seeds == (2, 3)
    assert result.withdrawn == {"seeds": 2, "states": {"switch": "worse"}}


@pytest.mark.parametrize("cells", [{"s0"}, {"d0", "d1"}, {"x0"}])
def test_a_comparison_of_other_runs_is_another_comparison(cells):
    """The reference and an arm must be the same runs."""
    assert looks(stored(2), cells) == EarlierLooks()


def test_the_withdrawal_names_what_was_claimed():
    text = withdrawal_text(looks(stored(2)).withdrawn, [2, 3])
    assert text == (
        "This comparison was judged with 2 and 3 seeds. It is therefore judged sequentially. The verdicts at 2 seeds are withdrawn "
        "(switch worse)."
    )
    quiet = stored(2)
    quiet["arms"]["switch"]["state"] = "open"
    assert withdrawal_text(looks(quiet).withdrawn, [2, 3]).endswith("The verdicts at 2 seeds are withdrawn.")
    assert withdrawal_text(None, [3]) is None
    alone = withdrawal_text(looks(stored(2)).withdrawn, [2, 3], over_seeds=False)
    assert alone == "This comparison was judged with 2 and 3 seeds. The verdicts at 2 seeds are withdrawn (switch worse)."
    others = withdrawal_text(looks(stored(2)).withdrawn, [2])
    assert others.startswith("This comparison was judged with other seeds. It is therefore judged sequentially.")


def test_one_seed_is_no_plural():
    assert "The verdicts at 1 seed are withdrawn" in withdrawal_text(looks(stored(1)).withdrawn, [1, 3])


@pytest.mark.parametrize(
    "damage",
    [
        {"seeds": None}, {"seeds": 2}, {"seeds": "ab"}, {"looks": 3}, {"looks": ["a", None, -3, 0, True]}, {"arms": [1]},
        {"arms": {"dense": None, "switch": "worse"}}, {"arms": None}, {"withdrawn": "x"},
        {"sequential": True, "withdrawn": {"seeds": 2}}, {"sequential": True, "withdrawn": "x"},
        {"sequential": True, "withdrawn": {"states": []}},
    ],
)  # fmt: skip
def test_what_is_damaged_in_a_summary_counts_as_missing(damage):
    found = looks(stored(2) | damage)
    assert found.seeds == (2,)
    assert found.is_sequential(range(3))
    withdrawal_text(found.withdrawn, [2, 3])


def test_damaged_runs_of_a_summary_are_left_out():
    summary = stored(2)
    for wrong in (None, "run", ["dense", 0], ["dense", 0, None], [["dense"], 0, "d0"], ["dense", 0, {"d0": 1}]):
        assert looks({"cells": [wrong]}) == EarlierLooks()
        assert looks(summary | {"cells": [wrong, *summary["cells"]]}).seeds == (2,)
    assert looks({"cells": {"dense": "d0"}}) == EarlierLooks()
