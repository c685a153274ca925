"""Wisconsin diagnostic breast cancer (Wolberg, Street and Mangasarian 1993), which comes with scikit-learn."""

from __future__ import annotations

import torch

from routelab.data.base import DataSet, holds, split_stratified
from routelab.data.table import table_data


@holds("table")
def breast_cancer() -> DataSet:
    """569 tumours as 30 measurements of cell nuclei, malignant or benign (scikit-learn); 341 train, 57 validation, 171 test.

    A fixed stratified split; numbers are standardised by the training rows. This is the diagnostic set of 1993; the one in
    Breiman's tables is the older one of 699 tumours with 9 grades each.
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    parts = [part.numpy() for part in split_stratified(torch.from_numpy(found.target).long(), (57, 171))]
    return table_data("breast_cancer", found.data, found.target, parts, "scikit-learn load_breast_cancer (UCI)", unit="tumour")
