"""Do consecutive tokens go to the same expert? As Mixtral's Table 5 (Jiang et al. 2024), with chance given the load.

Axes: N sequences, S positions, E experts. First and second choices are expert ids, -1 where a token has none.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.core.intervals import Interval, ratio_interval

Array = NDArray[Any]


@dataclass(frozen=True)
class Repetition:
    """share: of the pairs of neighbouring tokens, those that have an expert in common, and its t-interval over blocks of sequences
    that hang together. within: the same for any two tokens of one sequence; what `share` has more is the neighbours', what this
    has more than chance is the text's. chance: for two tokens drawn at random from all sequences. uniform: for two tokens whose
    experts are drawn evenly, which is the "random" of Mixtral's table."""

    share: Interval
    within: float
    chance: float
    uniform: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def first_repetition(first_NS: Array, experts: int, block_N: Array) -> Repetition | None:
    """The same first choice in tokens i and i + 1. Chance is the sum of squared loads, uniform 1 / E. None without a pair.

    block_N: which sequences hang together, by number.
    """
    equal, both = _neighbours(first_NS)
    return _repetition(equal & both, both, first_NS, np.full_like(first_NS, -1), experts, block_N, 1 / experts)


def either_repetition(first_NS: Array, second_NS: Array, experts: int, block_N: Array) -> Repetition | None:
    """A first or second choice of token i is one of token i + 1 as well. None without second choices or without a pair.

    Chance, for two tokens with the sets A and B: E|A and B in common| - P(both in common), from how often each expert and each
    pair of experts is chosen. Uniform: 1 - C(E - 2, 2) / C(E, 2), which is 46.4% for E = 8. block_N: see `first_repetition`.
    """
    if experts < 2 or not (second_NS >= 0).any():
        return None
    both = (first_NS[:, :-1] >= 0) & (first_NS[:, 1:] >= 0)
    hit = np.zeros_like(both)
    for left in (first_NS, second_NS):
        for right in (first_NS, second_NS):
            hit |= (left[:, :-1] == right[:, 1:]) & (left[:, :-1] >= 0)
    uniform = 1 - math.comb(experts - 2, 2) / math.comb(experts, 2)
    return _repetition(hit & both, both, first_NS, second_NS, experts, block_N, uniform)


def _repetition(
    hit: Array, pair: Array, first_NS: Array, second_NS: Array, experts: int, block_N: Array, uniform: float
) -> Repetition | None:
    """hit, pair (N, S - 1): neighbours with an expert in common, and those that both have one."""
    if not pair.any():
        return None
    _, place = np.unique(block_N, return_inverse=True)
    share = ratio_interval(np.bincount(place, hit.sum(1)), np.bincount(place, pair.sum(1)))
    each = [_in_common(first, second, experts) for first, second in zip(first_NS, second_NS, strict=True)]
    alike, tokens = (np.array(values) for values in zip(*each, strict=True))
    # Of two different tokens: every token has an expert in common with itself.
    within = (alike - tokens).sum() / max(1, (tokens * (tokens - 1)).sum())
    whole, count = _in_common(first_NS.reshape(-1), second_NS.reshape(-1), experts)
    return Repetition(share, float(within), whole / count**2, uniform)


def _in_common(first_T: Array, second_T: Array, experts: int) -> tuple[float, int]:
    """Of all pairs of tokens, in order and with themselves, how many have an expert in common; and how many tokens have any."""
    first, second = first_T[first_T >= 0], second_T[first_T >= 0]
    two = second >= 0
    member = np.bincount(first, minlength=experts) + np.bincount(second[two], minlength=experts)
    low, high = np.minimum(first, second)[two], np.maximum(first, second)[two]
    # Sets of two that are equal have been counted twice.
    both = np.bincount(low * experts + high)
    return float((member.astype(np.float64) ** 2).sum() - (both.astype(np.float64) ** 2).sum()), len(first)


def _neighbours(first_NS: Array) -> tuple[Array, Array]:
    """Whether tokens i and i + 1 have equal choices, and whether both have one: (N, S - 1) each."""
    left, right = first_NS[:, :-1], first_NS[:, 1:]
    return left == right, (left >= 0) & (right >= 0)
