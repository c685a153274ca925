"""What tuning buys: the expected best loss after n trials (Dodge et al. 2019, Show Your Work)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def expected_best(losses: Sequence[float]) -> list[float]:
    """The expected lowest of n losses drawn with replacement from the N that were found, for n = 1 to N.

    With the distinct losses v and their empirical distribution F, P(min <= v) = 1 - (1 - F(v))^n, and the expectation is the sum
    of v times the step of that probability at v. The paper states it for the highest of a score; this is its mirror image. The
    trials should be alike, drawn at random: a sampler that learns makes later ones better, and the curve then is a description.
    """
    if not losses:
        return []
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError("losses must be finite")
    ordered, total = sorted(losses), len(losses)
    curve = []
    for n in range(1, total + 1):
        # The k-th lowest (0-based) is the minimum with probability (1 - k/N)^n - (1 - (k+1)/N)^n; ties add up by themselves.
        curve.append(sum(v * ((1 - k / total) ** n - (1 - (k + 1) / total) ** n) for k, v in enumerate(ordered)))
    return curve
