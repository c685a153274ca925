"""How much the choice of an expert tells about a label: mutual information in bits, and what of it is chance.

Axes: N sequences (or documents), S positions, E experts, C classes of a label. A label of -1 is no label, and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DRAWS = 499
"""Permutations; the smallest p is 1 / (DRAWS + 1)."""


@dataclass(frozen=True)
class Information:
    """Mutual information of label and expert, in bits. bits: of the table as it is. corrected: less the mean of `null`, which
    is what as many sequences give by chance. null: (mean, 2.5% quantile, 97.5% quantile) over the permutations. p: how often
    a permutation gives as much. most: the label's entropy, which no expert can tell more than. units: what was permuted. drawn:
    bits of each permutation."""

    bits: float
    corrected: float
    null: tuple[float, float, float]
    p: float
    most: float
    units: int
    drawn: Array

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, without the draws."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "drawn"}


def entropy_bits(mass: Array) -> float:
    """Entropy in bits of masses (any shape, not negative), divided by their sum; 0 where there is no mass."""
    total = float(mass.sum())
    if total <= 0:
        return 0.0
    share = mass[mass > 0] / total
    return float(-(share * np.log2(share)).sum())


def mutual_information(table_CE: Array) -> float:
    """Of the two axes of a table of masses, in bits: H(C) + H(E) - H(C, E). Biased upwards where there are few tokens."""
    return max(0.0, entropy_bits(table_CE.sum(1)) + entropy_bits(table_CE.sum(0)) - entropy_bits(table_CE))


def information_beyond(table_CKE: Array) -> float:
    """What the last axis tells about the first where the middle one is known already, in bits: I(C; E | K)
    = H(C, K) + H(K, E) - H(K) - H(C, K, E)."""
    known = entropy_bits(table_CKE.sum((0, 2)))
    return max(0.0, entropy_bits(table_CKE.sum(2)) + entropy_bits(table_CKE.sum(0)) - known - entropy_bits(table_CKE))


def miller_madow(table_CE: Array) -> float:
    """The bias of `mutual_information` in bits if the table counts independent draws, to first order (Miller 1955):
    (cells - rows - columns + 1) / (2 n ln 2), each counted where it is not empty. Tokens of a text are not independent: the
    permutation of sequences is the stronger correction."""
    total = float(table_CE.sum())
    if total <= 0:
        return 0.0
    cells, rows, columns = (int((part > 0).sum()) for part in (table_CE, table_CE.sum(1), table_CE.sum(0)))
    return (cells - rows - columns + 1) / (2 * total * math.log(2))


def joint(label_NS: Array, share_NSE: Array, classes: int) -> Array:
    """How much each expert got of each class: (C, E)."""
    flat = label_NS.reshape(-1)
    real = flat >= 0
    table = np.zeros((classes, share_NSE.shape[-1]))
    np.add.at(table, flat[real], share_NSE.reshape(-1, share_NSE.shape[-1])[real])
    return table


def information(
    label_NS: Array,
    share_NSE: Array,
    classes: int,
    draws: int = DRAWS,
    seed: int = 0,
    mass_C: Array | None = None,
    told: Callable[[Array], float] = mutual_information,
) -> Information | None:
    """Mutual information of the tokens' label and their experts, tested by permuting sequences.

    A permutation gives each sequence the labels of another one, position by position, so that what neighbouring tokens have in
    common stays in both; permuting tokens would call any smooth routing significant. A label of the whole sequence is S = 1,
    with the sequence's shares summed. None where fewer than two classes, or two sequences, have any mass.

    mass_C: what each class is weighed with, whatever the mass of the sequences that a permutation gives it. told: bits of a table
    (C, E).
    """
    weights = share_NSE.sum((1, 2))
    label_NS, share_NSE = label_NS[weights > 0], share_NSE[weights > 0]

    def weighed(table_CE: Array) -> Array:
        return table_CE if mass_C is None else table_CE * (mass_C / np.maximum(table_CE.sum(1), 1e-12))[:, None]

    table = weighed(joint(label_NS, share_NSE, classes))
    if len(label_NS) < 2 or int((table.sum(1) > 0).sum()) < 2:
        return None
    # One product for each permutation, instead of a scatter: (C, N * S) @ (N * S, E).
    one_hot = (label_NS.reshape(1, -1) == np.arange(classes)[:, None]).astype(np.float64).reshape(classes, *label_NS.shape)
    flat = share_NSE.reshape(-1, share_NSE.shape[-1]).astype(np.float64)
    random = np.random.default_rng(seed)
    null = np.array(
        [told(weighed(one_hot[:, random.permutation(len(label_NS))].reshape(classes, -1) @ flat)) for _ in range(draws)]
    )
    bits = told(table)
    low, high = np.quantile(null, [0.025, 0.975])
    # Sums that are equal on paper differ in the last bits.
    p = (1 + int((null >= bits - 1e-12).sum())) / (draws + 1)
    mean = float(null.mean())
    return Information(bits, bits - mean, (mean, float(low), float(high)), p, entropy_bits(table.sum(1)), len(label_NS), null)


def most_telling(tests: Sequence[Information | None]) -> dict[str, Any] | None:
    """Of one label's tests in all layers, where the choice tells most, and p of that: how often the same permutation gives as
    much in any layer (Westfall and Young 1993), which takes that layer being picked into account. None without a test."""
    there = [(layer, test) for layer, test in enumerate(tests) if test is not None]
    if not there:
        return None
    layer, best = max(there, key=lambda pair: pair[1].corrected)
    largest = np.max([test.drawn - test.null[0] for _, test in there], axis=0)
    p = (1 + int((largest >= best.corrected - 1e-12).sum())) / (len(largest) + 1)
    return {"layer": layer, "p": p, "tested": len(there)}


def by_block(label_N: Array, share_NSE: Array, block_N: Array, known_NS: Array | None = None) -> tuple[Array, Array]:
    """A label of whole sequences for `information`, with sequences of one document joined: (B, 1) labels, (B, 1, E) shares,
    which add up to 1 for every document. known_NS: what is known of every token, as numbers below K; shares are then of
    (known, expert), (B, 1, K * E), K the numbers that there are.

    Documents that weigh what they hold could not change places: where one class has a few long ones, what sets one of them
    apart would be taken for the class's. block_N: which document each sequence belongs to; its label is that of its first
    sequence.
    """
    _, first, place = np.unique(block_N, return_index=True, return_inverse=True)
    kinds, kind_NS = np.unique(np.zeros(share_NSE.shape[:2]) if known_NS is None else known_NS, return_inverse=True)
    share_BKE = np.zeros((len(first), len(kinds), share_NSE.shape[-1]))
    np.add.at(share_BKE, (place.reshape(-1, 1), kind_NS.reshape(share_NSE.shape[:2])), share_NSE)
    share_BX = share_BKE.reshape(len(first), -1)
    share_BX /= np.maximum(share_BX.sum(1, keepdims=True), 1e-12)
    return label_N[first][:, None], share_BX[:, None]
