"""The UCI handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from routelab.data.base import DataSet, holds, image_data


@holds("image")
def digits() -> DataSet:
    """1,797 handwritten digits of 8 x 8 pixels in 10 classes (scikit-learn); 1,257 train, 180 validation, 360 test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1)
    return image_data(
        "digits", images, torch.from_numpy(found.target).long(), (180, 360), "scikit-learn load_digits (UCI, BSD)"
    )
