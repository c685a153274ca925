"""Repetition, paths, confidence, co-selection and similarity, each by hand."""

import numpy as np
import pytest

from routelab.analysis.routing.consecutive_tokens import either_repetition, first_repetition
from routelab.analysis.routing.expert_paths import paths_through
from routelab.analysis.routing.expert_statistics import (
    alike,
    co_selection,
    confidence,
    load,
    output_similarity,
    weight_similarity,
)


def test_first_choices_repeat():
    first = np.array([[0, 0, 1, 1], [1, 0, 1, 0]])
    found = first_repetition(first, 4, np.arange(2))
    # Two of three neighbours in the first sequence, none in the second; loads are a half each.
    assert found.share.mean == pytest.approx(1 / 3)
    assert found.share.n == 2
    assert found.chance == pytest.approx(0.5)
    assert found.uniform == 0.25
    # Of the six pairs of a sequence, 01 and 23 agree, and in the other one 02 and 13.
    assert found.within == pytest.approx(1 / 3)
    one = first_repetition(first, 4, np.zeros(2, dtype=int)).share
    assert (one.mean, one.n) == (pytest.approx(1 / 3), 1), "windows of one document are one"
    assert np.isnan(one.low)


def test_texts_that_differ_are_not_neighbours_that_agree():
    """Every sequence has experts of its own, in no order: far above chance, and neighbours are nothing special."""
    random = np.random.default_rng(0)
    first = random.integers(0, 2, (40, 200)) + 2 * (np.arange(40) % 4)[:, None]
    found = first_repetition(first, 8, np.arange(40))
    assert found.chance == pytest.approx(1 / 8, abs=0.01)
    assert found.within == pytest.approx(1 / 2, abs=0.01)
    assert found.share.low < found.within < found.share.high


def test_a_pair_with_an_unrouted_token_does_not_count():
    one = np.arange(1)
    found = first_repetition(np.array([[0, -1, 0, 0]]), 2, one)
    assert found.share.mean == 1.0
    assert found.chance == found.within == 1.0
    assert first_repetition(np.array([[0, -1]]), 2, one) is None
    assert first_repetition(np.array([[0]]), 2, one) is None


def test_chance_of_first_choices_is_that_of_shuffled_tokens():
    random = np.random.default_rng(0)
    first = random.choice(4, (50, 400), p=[0.4, 0.3, 0.2, 0.1])
    found = first_repetition(first, 4, np.arange(50))
    assert found.share.mean == pytest.approx(0.30, abs=0.01)
    assert found.within == pytest.approx(0.30, abs=0.01)
    assert found.share.low < found.chance < found.share.high


def test_uniform_of_two_of_eight_is_that_of_mixtral():
    random = np.random.default_rng(0)
    orders = random.random((60, 300, 8)).argsort(-1)
    found = either_repetition(orders[..., 0], orders[..., 1], 8, np.arange(60))
    assert found.uniform == pytest.approx(1 - 15 / 28)
    assert round(100 * found.uniform) == 46, "routing.md: random about 46"
    assert found.share.mean == pytest.approx(found.uniform, abs=0.01)
    assert found.chance == pytest.approx(found.uniform, abs=0.005)


def test_either_choice_by_hand():
    # Sets {0,1} {1,2} {0,3} {3}: pairs in common: yes, no, yes.
    first, second = np.array([[0, 2, 0, 3]]), np.array([[1, 1, 3, -1]])
    found = either_repetition(first, second, 4, np.arange(1))
    assert found.share.mean == pytest.approx(2 / 3)
    # Of the six pairs of tokens, 01, 02 and 23 have an expert in common.
    assert found.within == pytest.approx(3 / 6)
    # Members 0: 2/4, 1: 2/4, 2: 1/4, 3: 2/4; pairs 01, 12, 03 each 1/4.
    assert found.chance == pytest.approx(3 / 4 + 1 / 16 - 3 / 16)
    assert either_repetition(first, np.full((1, 4), -1), 4, np.arange(1)) is None


def test_either_chance_counts_all_pairs_of_tokens():
    random = np.random.default_rng(3)
    first = random.integers(0, 4, 60)
    second = np.where(random.random(60) < 0.3, -1, (first + random.integers(1, 4, 60)) % 4)
    sets = [{a, b} - {-1} for a, b in zip(first, second, strict=True)]
    truth = np.mean([bool(x & y) for x in sets for y in sets])
    found = either_repetition(first[None], second[None], 4, np.arange(1))
    assert found.chance == pytest.approx(truth)
    assert found.within == pytest.approx((60 * truth - 1) / 59), "without a token's pair with itself"


def test_paths():
    first = np.array([[0, 0, 1, 1, -1], [0, 0, 1, 0, 0]])
    found = paths_through(first, [2, 3])
    assert (found.tokens, found.distinct, found.possible) == (4, 3, 6)
    assert found.used == 0.5
    assert found.reach == 0.75
    assert found.entropy == pytest.approx(1.5)
    assert found.effective == pytest.approx(2**1.5)
    # Dealt out anew, the only 1 of the second layer meets a 0 or a 1 of the first: 2, 1 and 1 tokens either way.
    assert found.independent == pytest.approx(1.5)
    assert found.counts == [2, 1, 1]
    assert found.common[0] == ((0, 0), 2)
    assert paths_through(np.array([[-1]]), [2]) is None


def test_layers_that_choose_independently_tell_nothing_however_few_tokens():
    """12 layers of 4 experts: 200 tokens never meet on a path, and the entropy is that of 200 tokens, not of 4^12 paths."""
    first = np.random.default_rng(0).integers(0, 4, (12, 200))
    found = paths_through(first, [4] * 12)
    assert found.entropy == pytest.approx(np.log2(200))
    assert found.independent == pytest.approx(found.entropy, abs=0.02)
    same = paths_through(np.repeat(first[:1], 12, 0), [4] * 12)
    assert same.entropy == pytest.approx(2, abs=0.05)
    assert same.independent - same.entropy > 5


def test_load():
    assert load(np.array([[1.0, 0, 0], [1, 1, 0]])).tolist() == [2, 1, 0]


def test_confidence():
    found = confidence(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [4.0, 0.0]]))
    assert found["largest"][2] == 1.0
    assert found["margin"] == pytest.approx(2 / 3)
    assert found["entropy"] == pytest.approx(1 / 3)
    assert found["spread"] == pytest.approx(-(5 / 6 * np.log2(5 / 6) + 1 / 6 * np.log2(1 / 6)))


def test_co_selection():
    # 0 and 1 always together, 2 with 3: P(0) = P(0 and 1) = 1/2; evenly chosen pairs have 4 * 2 / (3 * 4) = 2/3 of 1/4.
    lift = co_selection(np.array([[1, 1, 0, 0], [0, 0, 1, 1]]))
    assert lift[0, 1] == pytest.approx(0.5 / (0.25 * 2 / 3))
    assert lift[0, 2] == 0.0
    assert np.isnan(lift[0, 0])
    every = np.array([[a in (i, j) for a in range(4)] for i in range(4) for j in range(i)])
    assert co_selection(every)[0, 1] == pytest.approx(1.0), "all pairs alike: no preference"
    mixed = np.vstack([every, np.eye(4), np.ones((3, 4))])
    assert co_selection(mixed)[0, 1] == pytest.approx(1.0), "whatever the numbers of choices"
    assert np.isnan(co_selection(np.array([[1, 0], [0, 1]]))).all()


def test_similarity():
    weights = weight_similarity(np.array([[1.0, 0], [2, 0], [0, 1], [-1, 0]]))
    assert weights[0].tolist() == [1, 1, 0, -1]
    outputs = output_similarity(np.array([[[1.0, 0], [0, 1]], [[3.0, 0], [1, 0]]]))
    assert outputs[0, 1] == pytest.approx(0.5)
    assert outputs[0, 0] == pytest.approx(1.0)
    assert alike(weights, 0.9) == [(0, 1, 1.0)]
