"""Tables: columns to one float tensor, standardised and coded by the training split alone.

Axes: N rows, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.data.base import DataSet
from routelab.data.task import Batch, InputSpec, Task

Column = NDArray[Any]


def standardise(values: Column, train: Column) -> Column:
    """(N, ...) minus the mean of the rows `train`, over their standard deviation; a missing number becomes 0, their mean.

    A column that does not vary in training is only shifted.
    """
    known = values[train].astype(np.float64)
    mean, deviation = np.nanmean(known, 0), np.nanstd(known, 0)
    scaled = (values.astype(np.float64) - mean) / np.where(deviation > 0, deviation, 1.0)
    return np.nan_to_num(scaled, nan=0.0)


def code(values: Column, train: Column) -> tuple[Column, int]:
    """Codes (N,) of one column's categories, and how many codes there are.

    The categories of the rows `train`, sorted, are 1, 2, ...; 0 is any other value, or a missing one (None or NaN).
    """
    found = set(values[train].tolist())
    known = sorted(value for value in found if value is not None and not (isinstance(value, float) and math.isnan(value)))
    numbers = {value: number for number, value in enumerate(known, start=1)}
    return np.array([numbers.get(value, 0) for value in values.tolist()]), len(known) + 1


def table_data(
    name: str,
    numbers: Column,
    targets: Column,
    parts: Sequence[Column],
    source: str,
    *,
    categories: Mapping[str, Column] | None = None,
    regression: bool = False,
    unit: str = "example",
    units: Column | None = None,
) -> DataSet:
    """A data set from numbers (N, F), category columns (N,), and targets (N,): class numbers from 0, or values.

    parts: the rows of the training, validation and test splits. Numbers and regression targets are standardised, and
    categories coded, by the training rows; see `standardise` and `code`. ValueError for a target that is missing.

    unit: the noun for what the test split is a sample of. units: the number of every row's unit (N,); None: a row is a unit.
    """
    if not np.isfinite(targets.astype(np.float64)).all():
        raise ValueError("a target is missing or not finite; leave out such rows")
    train = parts[0]
    coded = [code(column, train) for column in (categories or {}).values()]
    columns = [standardise(numbers, train), *(values[:, None] for values, _ in coded)]
    inputs = torch.from_numpy(np.concatenate(columns, 1)).float()
    if regression:
        wanted = torch.from_numpy(standardise(targets, train)).float().unsqueeze(1)
    else:
        wanted = torch.from_numpy(targets).long()
    sizes = (0,) * numbers.shape[1] + tuple(size for _, size in coded)
    spec = InputSpec("table", (inputs.shape[1],), categories=sizes if coded else ())
    outputs = 1 if regression else int(targets.max()) + 1
    task = Task(name, "regression" if regression else "classification", spec, outputs, unit=unit)
    train_batch, validation, test = (_batch(inputs, wanted, part) for part in parts)
    if units is not None:
        test = replace(test, unit=torch.from_numpy(units[parts[2]].astype(np.int32)))
    return DataSet(task, train_batch, validation, test, source)


def _batch(inputs: Tensor, targets: Tensor, rows: Column) -> Batch:
    which = torch.from_numpy(rows)
    return Batch(inputs[which].contiguous(), targets[which].contiguous())
