"""Paths through the layers: how many are there really?

Axes: L mixture layers, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.analysis.routing.mutual_information import entropy_bits

Array = NDArray[Any]
DRAWS = 5
"""Enough: of thousands of tokens, one is within hundredths of a bit of the next."""


@dataclass(frozen=True)
class Paths:
    """tokens: those with an expert in every layer. distinct: different paths among them. possible: E_1 * ... * E_L. used:
    distinct / possible. reach: distinct / the most that so many tokens can show. entropy: of the paths, in bits. independent:
    what `entropy` is for as many tokens if layers choose without regard to each other: each layer's choices dealt out anew among
    the tokens, mean of `DRAWS` times. effective: 2 ** entropy. counts: tokens of each path, most frequent first, and `common` the
    first ten paths themselves."""

    tokens: int
    distinct: int
    possible: int
    used: float
    reach: float
    entropy: float
    independent: float
    effective: float
    counts: list[int]
    common: list[tuple[tuple[int, ...], int]]


def paths_through(first_LT: Array, experts: Sequence[int]) -> Paths | None:
    """The paths of first choices, (L, T), -1 where a token has none; None if no token has an expert in every layer.

    Entropies are of the sample, and too low with few tokens: never above log2 of their number. `independent` is as low for that
    reason, where the sum of the layers' entropies would not be.
    """
    whole = first_LT[:, (first_LT >= 0).all(0)]
    tokens = whole.shape[1]
    if not tokens:
        return None
    found, counts = np.unique(whole, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    entropy, possible, random = entropy_bits(counts), math.prod(experts), np.random.default_rng(0)
    independent = float(np.mean([entropy_bits(_counts(random.permuted(whole, axis=1))) for _ in range(DRAWS)]))
    common = [(tuple(int(e) for e in found[:, place]), int(counts[place])) for place in order[:10]]
    return Paths(
        tokens, len(counts), possible, len(counts) / possible, len(counts) / min(possible, tokens), entropy,
        independent, 2**entropy, [int(count) for count in counts[order]], common,
    )  # fmt: skip


def _counts(whole_LT: Array) -> Array:
    return np.unique(whole_LT, axis=1, return_counts=True)[1]
