"""Paired data of two arms, and the estimates that they support. Pure functions of numbers.

Axes: S seeds, U test units.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from routelab.comparison.statistics.two_way import Estimate, estimate_over_seeds, estimate_over_units, estimate_two_way

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Difference of a metric between an arm and another, paired by seed and by test unit.

    Attributes:
        values_S: Difference for each seed that both arms have, (S,).
        table_SU: The same by seed and test unit, (S, U): each row is the seed's difference plus the influence of each unit on it.
            None if the runs recorded no test units.
        depends_on_seed: Whether the results of at least one of the two arms vary with the seed.
        seeds: Seeds, (S,).
        diverged: Number of seeds on which the training of at least one of the two arms diverged; they are not among `seeds`.
        is_selected: Whether seeds that were judged before are left out.
    """

    values_S: Floats
    table_SU: Floats | None = None
    depends_on_seed: bool = True
    seeds: tuple[int, ...] = ()
    diverged: int = 0
    is_selected: bool = False

    def select_sources(self, uncertainty: Collection[str]) -> tuple[str, ...]:
        """Return the sources of uncertainty that an estimate covers: the requested ones, as far as the data have them.

        Two arms that do not depend on the seed are judged over test units alone, for every request.

        Args:
            uncertainty: Requested sources, "seeds" and "examples".
        """
        if not self.depends_on_seed:
            return () if self.table_SU is None else ("examples",)
        if self.table_SU is None:
            return ("seeds",)
        return tuple(source for source in ("seeds", "examples") if source in uncertainty)

    def estimate(self, uncertainty: Collection[str]) -> Estimate:
        """Estimate the mean difference.

        Args:
            uncertainty: Sources of uncertainty that the standard error is to cover, see `select_sources`.

        Returns:
            The estimate. Its standard error is NaN if the data have too few seeds or units, and if the metric cannot be computed
            without one of the units. It is also NaN for two arms that do not depend on the seed and have no test units.
        """
        covered = self.select_sources(uncertainty)
        if not covered:
            return Estimate(float(self.values_S.mean()), math.nan, math.nan, len(self.values_S))
        if covered == ("seeds",) or self.table_SU is None:
            return estimate_over_seeds(self.values_S)
        estimate = estimate_over_units(self.table_SU) if covered == ("examples",) else estimate_two_way(self.table_SU)
        # R^2 of units among which one alone varies has no value without that one.
        return estimate if math.isfinite(estimate.mean) else replace(estimate, mean=float(self.values_S.mean()))

    def with_first_seeds(self, seeds: int) -> Contrast:
        """Return the contrast of the first seeds alone.

        Args:
            seeds: Number of seeds.
        """
        table_SU = None if self.table_SU is None else self.table_SU[:seeds]
        return replace(self, values_S=self.values_S[:seeds], table_SU=table_SU, seeds=self.seeds[:seeds])
