"""Pareto fronts of several objectives, and pruning against them. Pure functions; every objective is minimised.

Axes: N points, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is no worse than `b` in every objective and better in one."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def ranks(points: Sequence[Point]) -> list[int]:
    """The front that each of the N points lies on: 0 for those that none dominates, 1 for those that are left without them, and
    so on (non-dominated sorting, Deb et al. 2002, NSGA-II)."""
    rank = [-1] * len(points)
    left, level = set(range(len(points))), 0
    while left:
        here = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in here:
            rank[i] = level
        left -= here
        level += 1
    return rank


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that none dominates, in their order."""
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def falls_behind(point: Point, peers: Sequence[Point], keep: float, least: int) -> bool:
    """Whether a trial at a rung is to be pruned: the points on better fronts already fill the share `keep` of all that came here.

    Ties on a front are kept, so a point that nothing dominates never falls behind. least: peers without which nobody does.
    With one objective this is the top-`keep` rule of successive halving (Jamieson and Talwalkar 2016); with several, fronts
    take the place of ranks, as in multi-objective asynchronous successive halving (Schmucker et al. 2021).
    """
    if len(peers) < least:
        return False
    rank = ranks([*peers, point])
    better = sum(each < rank[-1] for each in rank)
    return better >= keep * len(rank)
