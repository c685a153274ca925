"""Balanced assignment: every expert gets as many tokens as any other, at the highest sum of scores.

Axes: N tokens, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced_assignment(score_NE: NDArray[np.float64]) -> NDArray[np.int64]:
    """The expert of each token (N,), so that sum_t score[t, a_t] is largest with sizes that differ by at most one.

    Exact: minimum-cost flow by successive shortest paths. It starts from every token's own favourite, which is best if sizes
    are ignored, and moves one unit of excess at a time along the cheapest chain of moves between experts. A chain is a path
    among E nodes, not among N tokens, so the cost is about (tokens in excess) * (N + rounds * E^2) instead of the N^3 of a
    general solver. Scores must be finite.

    With N = q E + r, every expert takes q tokens and r of them one more. Who holds these r extra places is part of the
    optimum: an expert in excess may take over the place of another, which then has to pass on a token in its stead.
    """
    tokens, experts = score_NE.shape
    quota, places = divmod(tokens, experts)
    chosen = score_NE.argmax(1)
    load = np.bincount(chosen, minlength=experts)
    extra = np.zeros(experts, dtype=bool)
    extra[np.flatnonzero(load > quota)[:places]] = True
    places -= int(extra.sum())
    excess = np.maximum(load - quota - extra, 0)
    loss, mover = np.empty((experts, experts)), np.empty((experts, experts), dtype=np.int64)
    for expert in range(experts):
        loss[expert], mover[expert] = _cheapest_moves(score_NE, chosen, expert)
    # Far above the rounding of float64 sums and far below any difference that matters.
    tolerance = 1e-10 * max(1.0, float(np.abs(score_NE).max(initial=0.0)))
    for _ in range(int(excess.sum())):
        swap = ~extra[:, None] & extra[None, :] & (loss > 0)
        distance, before = _shortest(np.where(swap, 0.0, loss) if swap.any() else loss, excess > 0, tolerance)
        # Not load < quota: a chain may hand an extra place to an expert whose quota is not full yet.
        short = load - extra - excess < quota
        able = short | (~extra & (places > 0))
        here = int(np.where(able, distance, np.inf).argmin())
        if not short[here]:
            extra[here], places = True, places - 1
        touched = set()
        while before[here] >= 0:
            source = int(before[here])
            if swap[source, here]:
                extra[source], extra[here] = True, False
            else:
                chosen[mover[source, here]] = here
                load[source], load[here] = load[source] - 1, load[here] + 1
                touched |= {source, here}
            here = source
        excess[here] -= 1
        for expert in touched:
            loss[expert], mover[expert] = _cheapest_moves(score_NE, chosen, expert)
    return chosen


def _cheapest_moves(
    score_NE: NDArray[np.float64], chosen: NDArray[np.int64], expert: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For every other expert, what it costs to move a token there (E,), and which token of `expert` costs least (E,)."""
    own = np.flatnonzero(chosen == expert)
    if not own.size:
        return np.full(score_NE.shape[1], np.inf), np.zeros(score_NE.shape[1], dtype=np.int64)
    cost = score_NE[own, expert][:, None] - score_NE[own]
    best = cost.argmin(0)
    return cost[best, np.arange(cost.shape[1])], own[best]


def _shortest(
    cost: NDArray[np.float64], source: NDArray[np.bool_], tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Bellman-Ford from several sources: distance (E,), and the node before each on its path (E,), -1 where it starts."""
    distance, before = np.where(source, 0.0, np.inf), np.full(source.size, -1)
    # Only what came nearer in the last round can bring anything else nearer.
    nearer = np.flatnonzero(source)
    for _ in range(source.size):
        if not nearer.size:
            break
        through = distance[nearer, None] + cost[nearer]
        best = through.argmin(0)
        value = through[best, np.arange(source.size)]
        better = value < distance - tolerance
        distance[better], before[better] = value[better], nearer[best[better]]
        nearer = np.flatnonzero(better)
    return distance, before
