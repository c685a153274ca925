"""A freshly built arm made ready for single steps outside the loop: to be timed, or to be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from routelab.baselines.base import Arm
from routelab.data.task import Batch


def first_batch(arm: Arm, train: Batch, size: int) -> tuple[Batch, Tensor]:
    """Prepare the arm for its first stage; a batch as `Arm.loss` takes it, of the first `size` examples, and their positions.

    Where members see batches of their own, all of them are given this one.
    """
    arm.prepare(train)
    arm.begin(0)
    arm.train()
    index = torch.arange(size)
    if arm.streams:
        index = index.expand(len(arm.streams), size)
    return train.select(index), index
