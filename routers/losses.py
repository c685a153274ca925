"""Auxiliary losses of routers, and the mathematics that they share. Pure functions.

Axes: T tokens, E experts, k choices. Masked tokens count in no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routers.processes import processes, total


def balance_loss(probs: Tensor, expert: Tensor, mask: Tensor | None = None) -> Tensor:
    """Load balance, E * sum_e f_e * P_e (Fedus 2021, eq. 4-6; Lepikhin 2020).

    probs (T, E): softmax of the logits. expert (T,) or (T, k): the choices counted, before any is dropped. f_e is the
    share of all counted choices, P_e the mean probability over real tokens, so perfect balance gives 1 for every k.
    In several processes f and the number of tokens are those of the whole batch, so that the mean of the processes' losses
    is the loss of one process with all of it.
    """
    tokens, experts = probs.shape
    flat = expert.reshape(-1)
    k = flat.numel() // tokens
    real = torch.ones(tokens, dtype=probs.dtype, device=probs.device) if mask is None else mask.to(probs.dtype)
    number = total(real.sum()).clamp_min(1)
    # index_add_ rather than bincount, which makes the host wait for a GPU.
    count = torch.zeros(experts, dtype=probs.dtype, device=probs.device).index_add_(0, flat, real.repeat_interleave(k))
    return experts * processes() * torch.dot(total(count) / (number * k), (real @ probs) / number)


def z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean(logsumexp(logits)^2) over real tokens (Zoph 2022, eq. 5). logits (T, E)."""
    square = torch.logsumexp(logits, dim=-1).square()
    if mask is None:
        return square.mean()
    return processes() * torch.where(mask, square, 0.0).sum() / total(mask.sum()).clamp_min(1)


def cv_squared(load: Tensor) -> Tensor:
    """Squared coefficient of variation, population variance over squared mean (Shazeer 2017, eq. 7). load (E,)."""
    return load.var(correction=0) / load.mean().square().clamp_min(1e-10)


def jitter(x: Tensor, amount: float) -> Tensor:
    """Multiply by U[1 - amount, 1 + amount], elementwise (Fedus 2021, §2.4)."""
    return x * torch.empty_like(x).uniform_(1 - amount, 1 + amount)
