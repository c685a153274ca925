"""The UCI handwritten digits that come with scikit-learn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from routelab.data.base import DataSet, holds, image_data


@holds("image")
def digits() -> DataSet:
    """1,797 handwritten digits of 8 x 8 pixels in 10 classes (scikit-learn); 1,257 train, 180 validation, 360 test."""
    return image_data("digits", *_read(), (180, 360), "scikit-learn load_digits (UCI, BSD)")


@functools.cache
def _read() -> tuple[Tensor, Tensor]:
    """Read images (N, 1, 8, 8) and labels (N,). The result is cached, as scikit-learn takes a tenth of a second to parse text.

    The splits of a data set are copies of rows, so no caller can change the cached tensors.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images).float().unsqueeze(1), torch.from_numpy(found.target).long()
