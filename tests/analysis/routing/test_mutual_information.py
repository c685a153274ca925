"""Mutual information is right by hand and by scikit-learn; the test permutes sequences, and tokens alike within one prove nothing."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from routelab.analysis.routing.mutual_information import (
    Information,
    by_block,
    entropy_bits,
    information,
    information_beyond,
    joint,
    miller_madow,
    most_telling,
    mutual_information,
)


def test_by_hand():
    # A table that tells everything about two equal classes: one bit. One that tells nothing: none.
    assert mutual_information(np.array([[3.0, 0.0], [0.0, 3.0]])) == pytest.approx(1.0)
    assert mutual_information(np.array([[2.0, 4.0], [1.0, 2.0]])) == pytest.approx(0.0, abs=1e-12)
    assert entropy_bits(np.array([1.0, 1.0, 2.0])) == pytest.approx(1.5)
    assert entropy_bits(np.zeros(3)) == 0.0
    # Cells 4, rows 2, columns 2, n = 10: (4 - 2 - 2 + 1) / (20 ln 2).
    assert miller_madow(np.array([[2.0, 4.0], [3.0, 1.0]])) == pytest.approx(1 / (20 * np.log(2)))


def test_as_scikit_learn():
    random = np.random.default_rng(0)
    label, expert = random.integers(0, 4, 300), random.integers(0, 5, 300)
    share = np.eye(5)[expert][:, None]
    table = joint(label[:, None], share, 4)
    assert mutual_information(table) * np.log(2) == pytest.approx(mutual_info_score(label, expert))


def test_unlabelled_tokens_do_not_count():
    share = np.eye(2)[[[0, 1, 1]]]
    assert joint(np.array([[0, -1, 1]]), share, 2).tolist() == [[1, 0], [0, 1]]


def test_experts_of_a_class_are_found():
    label = np.arange(40) % 2
    share = np.repeat(np.eye(2)[label][:, None], 5, 1)
    found = information(label[:, None], share.sum(1, keepdims=True), 2, draws=199)
    assert found.bits == pytest.approx(1.0)
    assert found.most == pytest.approx(1.0)
    assert found.p == pytest.approx(1 / 200)
    assert found.units == 40
    assert found.null[0] < 0.1
    assert found.corrected == pytest.approx(found.bits - found.null[0])


def test_sequences_with_one_expert_each_show_nothing():
    """Every sequence has one expert for all of its 200 tokens, 4 to 2 in one class and 2 to 4 in the other: tokens permuted
    would be significant for sure."""
    label, expert = np.repeat([0, 1], 6), np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])
    share = np.repeat(np.eye(2)[expert][:, None], 200, 1)
    found = information(label[:, None], share.sum(1, keepdims=True), 2)
    assert found.p > 0.1
    assert abs(found.corrected) < 0.2
    from scipy.stats import chi2_contingency

    table = joint(label[:, None], share.sum(1, keepdims=True), 2)
    assert chi2_contingency(table).pvalue < 1e-6, "what a test of tokens would say"


def test_a_label_of_tokens_is_permuted_with_its_place():
    """Every sequence has the same labels in the same places: no permutation changes anything, so nothing is shown."""
    label = np.tile([0, 0, 1, 1], (10, 1))
    share = np.eye(2)[label]
    found = information(label, share, 2, draws=50)
    assert found.p == 1.0
    assert found.corrected == pytest.approx(0.0)
    random = np.random.default_rng(0)
    label = random.integers(0, 2, (10, 30))
    assert information(label, np.eye(2)[label], 2, draws=99).p == pytest.approx(0.01)


def test_nothing_to_test():
    share = np.ones((4, 1, 2))
    assert information(np.zeros((4, 1), dtype=int), share, 2) is None
    assert information(np.array([[0], [1]]), share[:2] * np.array([1, 0])[:, None, None], 2) is None


def test_sequences_of_a_document_are_one_and_documents_weigh_alike():
    share = np.array([[[1, 0]], [[0, 1]], [[1, 0]], [[1, 0]]])
    label, block = np.array([3, 3, 5, 5]), np.array([7, 7, 1, 2])
    labels, shares = by_block(label, share, block)
    assert labels.tolist() == [[5], [5], [3]]
    assert shares[:, 0].tolist() == [[1, 0], [1, 0], [0.5, 0.5]]


def test_what_is_told_beyond_what_is_known_by_hand():
    known = np.zeros((2, 2, 2))
    known[0, 0, 0] = known[1, 1, 1] = 3
    # Class, byte and expert are one: the expert tells all about the class, and nothing that the byte has not told.
    assert mutual_information(known.sum(1)) == pytest.approx(1.0)
    assert information_beyond(known) == pytest.approx(0.0, abs=1e-12)
    # Both bytes in both classes alike, and the expert by class: all of it is beyond the byte.
    assert information_beyond(np.array([[[2.0, 0], [2, 0]], [[0, 2], [0, 2]]])) == pytest.approx(1.0)
    # Experts by class for byte 0 alone, which is half of all: half a bit.
    assert information_beyond(np.array([[[2.0, 0], [1, 1]], [[0, 2], [1, 1]]])) == pytest.approx(0.5)
    random = np.random.default_rng(0).random((3, 4, 5))
    each = [random[:, k].sum() / random.sum() * mutual_information(random[:, k]) for k in range(4)]
    assert information_beyond(random) == pytest.approx(sum(each))


def test_experts_by_byte_tell_the_class_but_nothing_beyond_the_byte():
    """Classes differ in their bytes; the expert is the byte's, or also the class's."""
    random, label = np.random.default_rng(0), np.arange(30) % 2
    given = (random.random((30, 50)) < np.where(label == 0, 0.2, 0.6)[:, None]).astype(int) + 65

    def told(expert):
        shares = by_block(label, np.eye(3)[expert], np.arange(30), given)
        plain = information(*by_block(label, np.eye(3)[expert], np.arange(30)), 2, draws=99)
        return plain, information(*shares, 2, draws=99, told=lambda table: information_beyond(table.reshape(2, -1, 3)))

    plain, beyond = told(given - 65)
    assert plain.p == pytest.approx(0.01)
    assert plain.corrected > 0.05
    assert beyond.bits == pytest.approx(0.0, abs=1e-12)
    assert beyond.p == 1.0
    _, beyond = told(np.where(label[:, None] == 0, given - 65, 2))
    assert beyond.p == pytest.approx(0.01)
    assert beyond.corrected > 0.5


def test_one_long_document_is_not_its_class():
    """Every document has one expert, whatever its class; a class with one document of 40 windows has one expert, and 40 of one
    window have both. If documents weighed what they hold, no permutation would give a class as much."""
    label, block = np.repeat([0, 1], 40), np.concatenate([np.zeros(40, dtype=int), np.arange(1, 41)])
    expert = np.where(label == 0, 0, np.arange(80) % 2)
    share = np.eye(2)[expert][:, None]
    found = information(*by_block(label, share, block), 2, mass_C=np.array([40.0, 40.0]))
    assert found.units == 41
    assert found.most == pytest.approx(1.0), "classes keep their mass"
    # Rows (1, 0) and (1/2, 1/2) of one mass: H(3/4) - 1/2 H(1/2).
    assert found.bits == pytest.approx(-0.75 * np.log2(0.75) - 0.25 * np.log2(0.25) - 0.5)
    assert found.p > 0.9, "the one document of a class always has one expert"


def test_false_alarms_are_as_frequent_as_they_may_be():
    """Documents with experts of their own, classes without: two long documents against twenty short ones."""
    random, alarms = np.random.default_rng(0), 0
    block = np.concatenate([np.repeat([0, 1], 10), np.arange(2, 22)])
    label = (block > 1).astype(int)
    for trial in range(100):
        share = random.dirichlet([0.5] * 4, 22)[block][:, None]
        found = information(*by_block(label, share, block), 2, draws=99, seed=trial, mass_C=np.array([20.0, 20.0]))
        alarms += found.p <= 0.05
    assert alarms <= 11, "5% and two deviations"


def test_the_layer_that_tells_most_is_judged_against_the_most_of_any():
    """The same permutations in both layers. Of four, the largest of the two, less their layers' means, are 0.3, 0.1, 0.2 and 0."""

    def layer(bits, drawn):
        drawn = np.array(drawn)
        return Information(bits, bits - drawn.mean(), (drawn.mean(), 0.0, 0.0), 0.2, 1.0, 9, drawn)

    weak, strong = layer(0.4, [0.7, 0.3, 0.2, 0.4]), layer(0.3, [0.0, 0.2, 0.3, -0.1])
    assert most_telling([weak, None, strong]) == {"layer": 2, "p": pytest.approx(3 / 5), "tested": 2}
    assert most_telling([None]) is None
    many = [layer(0.9, np.linspace(0, 0.1, 499)) for _ in range(40)]
    assert most_telling(many)["p"] == pytest.approx(1 / 500), "40 times the smallest p would show nothing"
