"""Traces by hand: what LRU reads, what Belady's rule reads, what is asked for; and the rule against trying everything."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from routelab.analysis.serving.cache_trace import (
    Trace,
    by_batch,
    fewest_misses,
    hit_rate,
    in_use,
    misses_of,
    optimum,
    replay,
    shuffled,
    trace_of,
)
from routelab.core.intervals import mean_interval
from routelab.experts.offload import Recent

ONE_BY_ONE = [0, 1, 2, 0, 3, 0, 1]


def single(units):
    return [[unit] for unit in units]


@pytest.mark.parametrize(
    ("slots", "start", "missed"),
    [
        # Held after each access with two slots: 0, 01, 12, 20, 03, 30, 01.
        (2, (), [1, 1, 1, 1, 1, 0, 1]),
        # 0, 01, 012, 120, 203, 230, 301: only 1 had to go, for 3.
        (3, (), [1, 1, 1, 0, 1, 0, 1]),
        (1, (), [1, 1, 1, 1, 1, 1, 1]),
        (4, (), [1, 1, 1, 0, 1, 0, 0]),
        # Held at first: 1 and, as the more recent one, 0.
        (2, (0, 1, 2), [0, 0, 1, 1, 1, 0, 1]),
        (4, (0, 1, 2, 3), [0] * 7),
    ],
)
def test_least_recently_used_by_hand(slots, start, missed):
    assert replay(single(ONE_BY_ONE), slots, start).misses.tolist() == missed


@pytest.mark.parametrize(
    ("slots", "start", "missed"),
    [
        # 2 takes the place of 1, needed last, 3 that of 2, never needed again, and 1 that of either.
        (2, (), [1, 1, 1, 0, 1, 0, 1]),
        # 3 takes the place of 2.
        (3, (), [1, 1, 1, 0, 1, 0, 0]),
        (1, (), [1, 1, 1, 1, 1, 1, 1]),
        (2, (0, 1), [0, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_beladys_rule_by_hand(slots, start, missed):
    assert optimum(ONE_BY_ONE, slots, start).astype(int).tolist() == missed


def fewest(accesses, slots, start):
    """Misses if every choice of what makes room is tried."""

    @functools.cache
    def rest(place, held):
        if place == len(accesses):
            return 0
        unit = accesses[place]
        if unit in held:
            return rest(place + 1, held)
        if len(held) < slots:
            return 1 + rest(place + 1, held | {unit})
        return 1 + min(rest(place + 1, (held - {other}) | {unit}) for other in held)

    return rest(0, frozenset(start[:slots]))


def test_beladys_rule_is_the_best_of_all_choices():
    random = np.random.default_rng(0)
    for _ in range(60):
        units, slots = int(random.integers(2, 6)), int(random.integers(1, 4))
        accesses = random.integers(0, units, 12).tolist()
        start = list(range(int(random.integers(0, units))))
        least = int(optimum(accesses, slots, start).sum())
        assert least == fewest(accesses, slots, start)
        assert least <= replay(single(accesses), slots, start).misses.sum()


def test_of_units_that_are_asked_for_at_once_those_in_memory_come_first():
    """A scan in fixed order would lose each unit just before its turn, and read all four every time."""
    found = replay([[0, 1, 2, 3]] * 3, 3)
    assert found.misses.tolist() == [4, 1, 1]
    assert [unit for unit, _ in found.accesses] == [0, 1, 2, 3, 1, 2, 3, 0, 0, 2, 3, 1]


def test_a_memory_never_holds_more_than_its_slots():
    held = []
    memory = Recent(2, lambda unit: held.append(len(memory)) or unit)
    for unit in (0, 1, 2, 0, 0, 3):
        assert memory.get(unit) == unit
        assert len(memory) <= 2
    assert max(held) == 1, "room is made before a unit is loaded, not after"
    assert (memory.hits, memory.misses) == (1, 5)
    with pytest.raises(ValueError, match="slots is 0; it must be at least 1"):
        Recent(0, int)


# Two examples of three positions, two layers of two experts; the first position is the prompt.
FIRST = np.array([[[1, 0], [1, 0], [0, 1]], [[0, 1], [0, 1], [0, 1]]], dtype=bool)
SECOND = np.array([[[1, 1], [0, 1], [0, 1]], [[1, 0], [1, 0], [1, 1]]], dtype=bool)


def number(layer, expert):
    return 2 * layer + expert


def test_requests_by_hand():
    alone = trace_of([FIRST, SECOND], 1, 1, number)
    assert alone.units == [[0], [2, 3], [0], [3], [1], [3], [1], [2], [1], [2], [1], [2, 3]]
    assert alone.batch.tolist() == [0] * 6 + [1] * 6
    assert alone.counted.tolist() == ([False] * 2 + [True] * 4) * 2
    assert (alone.tokens, alone.layers, alone.asked.tolist()) == (2, 2, [1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2])
    both = trace_of([FIRST, SECOND], 2, 1, number)
    assert both.units == [[0, 1], [2, 3], [0, 1], [2, 3], [1], [2, 3]]
    assert both.tokens == 4
    whole = trace_of([FIRST, SECOND], 1, 0, number, at_once=True)
    assert whole.units == [[0, 1], [2, 3], [1], [2, 3]]
    assert (whole.tokens, whole.counted.all()) == (3, True)
    assert by_batch(alone, alone.asked).tolist() == [4, 5]
    assert by_batch(alone, alone.asked, counted=False).tolist() == [3, 2]


def test_layers_with_slots_of_their_own():
    trace = trace_of([FIRST, SECOND], 1, 1, number)
    read = misses_of(trace, 1, [0, 2, 1, 3], per_layer=True)
    # Layer 0 starts with 0 and is asked for 0 0 1 1 1 1; layer 1 starts with 2 and is asked for 23 3 3 2 2 23.
    assert read.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert fewest_misses(trace, 1, [0, 2, 1, 3], per_layer=True).sum() <= read.sum()
    assert not misses_of(trace, 2, [0, 2, 1, 3], per_layer=True).any()


def test_hits_are_requests_that_find_their_expert():
    """Two batches of two counted requests each; the prompts' requests, misses all of them, are left out."""
    trace = Trace([[0], [0, 1], [1], [0], [2, 3], [3, 0]], np.repeat([0, 1], 3), np.array([False, True, True] * 2), 1, 2)
    two = np.arange(2)
    found = hit_rate(trace, np.array([1, 1, 0, 1, 2, 1]), two)
    # 3 asked for and 1 read, then 4 and 3: of 7, 3 were there.
    assert found.mean == pytest.approx(3 / 7)
    assert (found.low, found.high) == (0, 1), "two batches bound it by nothing"
    assert hit_rate(trace, np.zeros(6), two).mean == 1
    assert hit_rate(trace, trace.asked, two).mean == 0
    assert hit_rate(trace, np.array([1, 1, 0, 1, 2, 1]), np.zeros(2, dtype=int)).n == 1, "batches that hang together are one"
    assert np.isnan(hit_rate(replace(trace, units=[[]] * 6), np.zeros(6), two).mean), "nothing was asked for"


def test_the_interval_of_a_hit_rate_is_that_of_a_mean_where_all_ask_alike():
    hits = [4, 7, 5, 6, 8]
    trace = Trace([list(range(10))] * 5, np.arange(5), np.ones(5, dtype=bool), 1, 1)
    found, wanted = hit_rate(trace, 10 - np.array(hits), np.arange(5)), mean_interval([each / 10 for each in hits])
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_adapters_that_take_turns_are_read_in_every_layer_and_hit_by_one_in_three():
    """Three texts at a time with an adapter each, two layers, room for one: each layer finds the one that was read last, and
    reads two, each of which is the adapter of both layers. Counted in bytes that would be less than nothing."""
    chosen = np.eye(3, dtype=bool)[:, None].repeat(5, 1)
    trace = trace_of([chosen, chosen], 3, 1, lambda layer, expert: expert)
    read = misses_of(trace, 1, [0, 1, 2])
    assert read[trace.counted].tolist() == [2, 2] * 4
    assert hit_rate(trace, read, np.zeros(1, dtype=int)).mean == pytest.approx(1 / 3)
    assert by_batch(trace, read) / trace.tokens == pytest.approx(4 / 3), "units a token"


def test_experts_in_use_by_hand():
    """Loads of 1/3 and 2/3 amount to 3 / 4^(1/3) experts."""
    assert in_use(FIRST) == pytest.approx(3 / 4 ** (1 / 3))
    assert in_use(FIRST[:1, :2]) == 1
    assert in_use(np.ones((2, 3, 5), dtype=bool)) == pytest.approx(5)


def test_chance_has_the_same_load_and_keeps_prompts_apart():
    dealt = shuffled([FIRST, SECOND], 1, together=False, seed=0)
    for before, after in zip([FIRST, SECOND], dealt, strict=True):
        for part in (slice(0, 1), slice(1, 3)):
            sets = [sorted(map(tuple, each[:, part].reshape(-1, 2).tolist())) for each in (before, after)]
            assert sets[0] == sets[1]
    alike = shuffled([FIRST, FIRST], 1, together=True, seed=1)
    assert np.array_equal(*alike)


def test_texts_with_experts_of_their_own_are_above_chance_in_any_order():
    """Two experts of four for each text, drawn for every token: the order of a text's tokens is nothing special."""
    random = np.random.default_rng(0)
    expert = random.integers(0, 2, (20, 100)) + 2 * random.integers(0, 2, 20)[:, None]
    chosen = np.eye(4, dtype=bool)[expert]
    dealt = shuffled([chosen], 10, False, 0, within=True)[0]
    for part in (slice(0, 10), slice(10, 100)):
        assert (dealt[:, part].sum(1) == chosen[:, part].sum(1)).all(), "a text keeps its own, and its prompt"
    assert not np.array_equal(dealt, chosen)

    def hits(chosen):
        trace = trace_of([chosen], 1, 10, number)
        return hit_rate(trace, misses_of(trace, 1, [0]), np.arange(20))

    found = hits(chosen)
    assert found.low < hits(dealt).mean < found.high
    assert hits(shuffled([chosen], 10, False, 0)[0]).mean < found.low - 0.1


def test_a_stable_choice_reads_less_than_chance():
    """One expert for half of the text, another for the rest: one read, where chance reads at half of all tokens."""
    chosen = np.zeros((1, 200, 2), dtype=bool)
    chosen[0, :100, 0] = chosen[0, 100:, 1] = True
    read = misses_of(trace_of([chosen], 1, 1, number), 1, [0])
    chance = misses_of(trace_of(shuffled([chosen], 1, True, 0), 1, 1, number), 1, [0])
    assert read.sum() == 1
    assert 70 < chance.sum() < 130
