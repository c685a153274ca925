"""Training in several processes: the few sums that a router must take over all of them.

One process of a data-parallel run sees its share of the batch. A loss that is a mean over tokens is right all the same, as
gradients are averaged; a product of two means (balance) is not, and neither is a count that `update` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def processes() -> int:
    """How many processes train together; 1 outside a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


_alone = [False]  # torch.compile follows no context variable


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process shares no batch: for tokens that it made up, whenever it did, and the others did not."""
    before, _alone[0] = _alone[0], True
    try:
        yield
    finally:
        _alone[0] = before


def sharing() -> int:
    """How many processes share the batch of this forward pass: all of them in training, and 1 without gradients, as in
    evaluation, where every process has batches of its own."""
    return processes() if torch.is_grad_enabled() and not _alone[0] else 1


def total(value: Tensor) -> Tensor:
    """The sum of `value` over the processes that share this batch, without gradient."""
    if sharing() == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def gathered(value: Tensor) -> Tensor:
    """The sum of `value` over the processes that share this batch, for losses that are no mean over tokens.

    The gradient of this process's part is taken once for each process, so that the mean of the processes' gradients, which
    training takes, is the gradient of the whole.
    """
    if sharing() == 1:
        return value
    return total(value) + sharing() * (value - value.detach())
