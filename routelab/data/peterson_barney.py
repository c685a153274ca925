"""The vowel formants of Peterson and Barney (1952), which come inside routelab.

Axes: N recordings, F frequencies.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from routelab.core.errors import UsageError, unknown
from routelab.data.base import DataSet, holds
from routelab.data.table import table_data

VOWELS = ("iy", "ih", "eh", "ae", "ah", "aa", "ao", "uh", "uw", "er")
FREQUENCIES = ("F0", "F1", "F2", "F3")
SPEAKERS, TRAINING_SPEAKERS = 75, 50
"""Those of the 1991 experiment. The table holds 76; the last one, a child, is left out."""

Split = Literal["first", "random"]

_FOUR = ("iy", "ih", "aa", "ah")
_VALIDATION_SPEAKERS = 10
_FILE = Path(__file__).with_name("peterson_barney_1952.csv")
_SOURCE = (
    "Peterson and Barney 1952, as listed by Praat (praat-parselmouth 0.4.7, equal to pb52 of the R package phonTools, BSD-2)"
)


@dataclass(frozen=True)
class Recordings:
    """hertz (N, F), the number of each vowel in the order asked for (N,), and of each speaker, from 1 (N,)."""

    hertz: NDArray[np.float64]
    vowel: NDArray[np.int64]
    speaker: NDArray[np.int64]


def recordings(vowels: Sequence[str] = _FOUR, frequencies: Sequence[str] = ("F1", "F2")) -> Recordings:
    """The measurements of the first 75 speakers, each of whom says every vowel twice. UsageError for a name that is none."""
    for what, names, known in (("vowels", vowels, VOWELS), ("frequencies", frequencies, FREQUENCIES)):
        if len(set(names)) < len(names) or len(names) < (2 if what == "vowels" else 1):
            raise UsageError(f"data.{what} is {list(names)}; it must name at least {2 if what == 'vowels' else 1}, none twice")
        for name in names:
            if name not in known:
                raise unknown(f"name in data.{what}", name, known)
    with _FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Vowel"] in vowels and int(row["Speaker"]) <= SPEAKERS]
    return Recordings(
        np.array([[float(row[name]) for name in frequencies] for row in rows]),
        np.array([vowels.index(row["Vowel"]) for row in rows], np.int64),
        np.array([int(row["Speaker"]) for row in rows], np.int64),
    )


def training_speakers(split: Split) -> NDArray[np.int64]:
    """The 50 speakers that train, sorted.

    "first": numbers 1 to 50, as the 1991 paper says. In this table these are the 33 men and 17 of the women, so that most of
    the test is children; "random": 50 of the 75, always the same.
    """
    if split not in ("first", "random"):
        raise unknown("data.split", split, ("first", "random"))
    everyone = np.arange(1, SPEAKERS + 1)
    if split == "random":
        everyone = np.random.default_rng(0).permutation(everyone)
    return np.sort(everyone[:TRAINING_SPEAKERS])


@holds("table")
def peterson_barney(
    *, vowels: Sequence[str] | str = _FOUR, frequencies: Sequence[str] = ("F1", "F2"), split: Split = "first"
) -> DataSet:
    """Vowels of 75 speakers as formants (1952): four vowels, 320 train, 80 validation, 200 test.

    Every speaker says every vowel twice. 25 speakers are the test and 10 of the others the validation, so nobody is heard in
    two splits. vowels: a list, or "all" ten; default [i], [ɪ], [a] and [ʌ], those of Jacobs, Jordan, Nowlan and Hinton
    (1991). frequencies: of F0, F1, F2, F3. split: see `training_speakers`. Standardised by the training rows.
    """
    found = recordings(VOWELS if vowels == "all" else (vowels,) if isinstance(vowels, str) else tuple(vowels), frequencies)
    training = training_speakers(split)
    # Every fifth, so that men, women and children take part as they do in training.
    checked = np.isin(found.speaker, training[:: TRAINING_SPEAKERS // _VALIDATION_SPEAKERS])
    trains = np.isin(found.speaker, training)
    parts = [np.flatnonzero(chosen) for chosen in (trains & ~checked, checked, ~trains)]
    return table_data("peterson_barney", found.hertz, found.vowel, parts, _SOURCE, unit="speaker", units=found.speaker)
