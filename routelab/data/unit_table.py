"""Sums of every metric by unit of the test split: numerators and denominators, from which any mean and its error follow.

Axes: N examples, S positions, B examples of a batch, T = B or B x S positions of a batch, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.data.task import Batch, Task

MAX_UNITS = 1_000_000
"""Rows of a table of at most `MAX_COLUMNS` sums; beyond, units are pooled."""

MAX_COLUMNS = 6
"""Sums that `MAX_UNITS` rows may have. A task with more of them has fewer rows, so that a table takes at most 48 MB."""

_CHUNK = 4096
"""Examples whose numbers are computed at once, in 8 bytes each."""


@dataclass(frozen=True)
class UnitTable:
    """Sums by unit and domain: a row for every pair that occurs, sorted by unit and then by the domain's number.

    Attributes:
        unit: Number of each row's unit, or of its pool of units, (R,).
        domain: Name of each row's domain, (R,); None without domains.
        sums: Name of `Task.unit_columns` -> the sums, (R,).
    """

    unit: NDArray[np.int64]
    domain: NDArray[np.str_] | None
    sums: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True)
class UnitIndex:
    """Row of a unit table for every example or position of a split.

    Attributes:
        row: Row of each example, (N,), or of each position, (N, S); int32.
        unit: Number of each row's unit, (R,).
        domain: Name of each row's domain, (R,); None without domains.
        number: Number of units, after pooling.
        pooled: Whether units are pooled.
    """

    row: Tensor
    unit: NDArray[np.int64]
    domain: NDArray[np.str_] | None
    number: int
    pooled: bool

    @classmethod
    def from_split(cls, split: Batch, task: Task, domain_names: Sequence[str] = ()) -> UnitIndex:
        """Number the rows of a split.

        If there are more pairs of a unit and a domain than rows are allowed, units are pooled: a fixed random permutation
        assigns them to groups of nearly equal numbers of units. Totals do not change. The expected value of the estimated
        variance of a mean does not change either, as groups of independent units are independent.

        Args:
            split: the examples; without `unit`, each of them is a unit.
            task: the task, which names the columns. With many columns, fewer rows are allowed.
            domain_names: the names of the numbers in `split.domain`.

        Returns:
            The index, on the CPU.
        """
        unit = np.arange(len(split)) if split.unit is None else split.unit.cpu().numpy()
        domains = len(domain_names) if split.domain is not None else 0
        domain = split.domain.cpu().numpy() if split.domain is not None and domains else None
        row, units, numbers = _pairs(unit, domain, max(1, domains))
        limit = min(MAX_UNITS, MAX_UNITS * MAX_COLUMNS // len(task.unit_columns))
        pooled = len(units) > limit
        if pooled:
            # Every group may occur in every domain.
            group_row = _groups(units, max(1, limit // max(1, len(np.unique(numbers)))))
            of_row, units, numbers = _pairs(group_row, numbers, max(1, domains))
            row = of_row[row]
        names = None if domain is None else np.array(domain_names, np.str_)[numbers]
        return cls(torch.from_numpy(row), units, names, len(np.unique(units)), pooled)


class UnitSums:
    """Accumulator of `Task.unit_sums` by row, on one device, in float64."""

    def __init__(self, task: Task, index: UnitIndex, device: torch.device | str = "cpu") -> None:
        self.task, self.index = task, index
        self.row = index.row.to(device)
        self.sums = {
            name: torch.zeros(len(index.unit), dtype=torch.float64, device=device) for name in sorted(task.unit_columns)
        }

    def add(self, outputs: Tensor, targets: Tensor, start: int) -> None:
        """Add the examples from `start` on.

        Args:
            outputs: (B, ...) the predictions.
            targets: (B, ...) the targets.
            start: the position of the first example in the split.
        """
        row = self.row[start : start + len(targets)]
        values = self.task.unit_sums(outputs, targets)
        positions = len(values["count"]) // max(1, len(targets))
        row_T = row.flatten() if row.ndim > 1 else row.repeat_interleave(positions)
        for name, value in values.items():
            self.sums[name].index_add_(0, row_T, value)

    def table(self) -> UnitTable:
        """Return the sums as a table."""
        sums = {name: self.sums[name].cpu().numpy() for name in self.task.unit_columns}
        return UnitTable(self.index.unit, self.index.domain, sums)

    def summary(self) -> Mapping[str, object]:
        """Return what a run's record says of its units: the noun, their number, and whether they are pooled."""
        return {"unit": self.task.unit, "number": self.index.number, "pooled": self.index.pooled}


def _pairs(
    unit: NDArray[np.integer], domain: NDArray[np.integer] | None, domains: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Number the pairs of a unit and a domain that occur, sorted by unit.

    Args:
        unit: (N,) or (N, S).
        domain: (N,), or None for one domain.
        domains: how many numbers a domain may have.

    Returns:
        The row of every entry of `unit`, in its shape; the unit (R,) and the domain (R,) of every row.
    """

    def pair(chunk: slice) -> NDArray[np.int64]:
        number = unit[chunk].astype(np.int64) * domains
        return number if domain is None else number + domain[chunk].reshape(-1, *(1,) * (unit.ndim - 1))

    size = (int(unit.max()) + 1) * domains
    if size > np.iinfo(np.int64).max:
        # A product of such numbers does not fit into 64 bits.
        distinct, position = np.unique(unit, return_inverse=True)
        row, number, domain_number = _pairs(position.reshape(unit.shape), domain, domains)
        return row, distinct.astype(np.int64)[number], domain_number
    if size <= 4 * unit.size + 65_536:
        # A table of what occurs takes less time and memory than sorting every position.
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(unit), _CHUNK)]
        occurs = np.zeros(size, bool)
        for chunk in chunks:
            occurs[pair(chunk)] = True
        rows, position = np.flatnonzero(occurs), np.cumsum(occurs, dtype=np.int32) - 1
        row = np.empty(unit.shape, np.int32)
        for chunk in chunks:
            row[chunk] = position[pair(chunk)]
    else:
        rows, inverse = np.unique(pair(slice(None)), return_inverse=True)
        row = inverse.reshape(unit.shape).astype(np.int32)
    return row, rows // domains, rows % domains


def _groups(unit: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the group, from 0 to `count` - 1, of the unit of every row; always the same for the same units."""
    distinct, position = np.unique(unit, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(distinct))
    return (order * min(count, len(distinct)) // len(distinct))[position]
