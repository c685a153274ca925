"""Auxiliary losses of routers, and the mathematics that they share. Pure functions.

Axes: T tokens, E experts, k choices. Masked tokens count in no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routelab.core.collectives import gathered, sharing, total


def token_mean(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of `value` where `mask`, of its shape, is True; 0 where there is nothing to take it of.

    In several processes the number is that of the whole batch, so that the mean of the processes' results is the result of
    one process with all of it.
    """
    if mask is None:
        return value.sum() / max(1, value.numel())
    return sharing() * torch.where(mask, value, 0.0).sum() / total(mask.sum()).clamp_min(1)


def balance_loss(probs: Tensor, expert: Tensor, mask: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
    """Load balance, E * sum_e f_e * P_e (Fedus 2021, eq. 4-6; Lepikhin 2020).

    probs (T, E): softmax of the logits. expert (T,) or (T, k): the choices counted, before any is dropped. f_e is the
    share of all counted choices, P_e the mean probability over real tokens, so perfect balance gives 1 for every k.
    shares (E,), which sum to 1: what balance means where experts are meant to differ, sum_e f_e * P_e / shares_e.
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
    part = total(count) / (number * k)
    part = experts * part if shares is None else part / shares.to(part.dtype)
    return sharing() * torch.dot(part, (real @ probs) / number)


def sequence_balance_loss(probs: Tensor, expert: Tensor, mask: Tensor | None = None) -> Tensor:
    """Load balance within each group, E * sum_e f_e * P_e, averaged over groups (DeepSeek-AI 2024, V3, eq. 17-20).

    Axes: G groups, S positions. probs (G, S, E): scores that sum to 1 for each token. expert (G, S, k): the choices
    counted. mask (G, S), True = real. f and P are as in `balance_loss`, of one group each, so that perfect balance gives 1.
    Groups without a real token are left out of the mean.
    """
    groups, positions, experts = probs.shape
    k = expert.shape[-1]
    real_GS = torch.ones(groups, positions, dtype=probs.dtype, device=probs.device) if mask is None else mask.to(probs.dtype)
    number_G1 = real_GS.sum(1, keepdim=True).clamp_min(1)
    count_GE = torch.zeros(groups, experts, dtype=probs.dtype, device=probs.device)
    count_GE.scatter_add_(1, expert.flatten(1), real_GS.repeat_interleave(k, dim=1))
    mean_GE = (probs * real_GS.unsqueeze(-1)).sum(1) / number_G1
    loss_G = experts * (count_GE / (number_G1 * k) * mean_GE).sum(1)
    return token_mean(loss_G, None if mask is None else mask.any(1))


def importance_loss(weight: Tensor, expert: Tensor, num_experts: int, mask: Tensor | None = None) -> Tensor:
    """CV^2 of each expert's weights summed over real tokens (Shazeer 2017, eq. 6-7). weight and expert (T, k)."""
    if mask is not None:
        weight = torch.where(mask.unsqueeze(1), weight, 0.0)
    importance = torch.zeros(num_experts, dtype=weight.dtype, device=weight.device)
    return cv_squared(gathered(importance.index_add(0, expert.flatten(), weight.flatten())))


def load_loss(logits: Tensor, noisy: Tensor, deviation: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """CV^2 of each expert's expected number of real tokens, if its own noise were drawn anew (Shazeer 2017, eq. 8-11).

    logits, noisy, deviation (T, E): before noise, after it, and the noise's standard deviation. k is below E.
    """
    chance = chance_of_choice(logits, noisy, deviation, k)
    if mask is not None:
        chance = torch.where(mask.unsqueeze(1), chance, 0.0)
    return cv_squared(gathered(chance.sum(0)))


def chance_of_choice(logits: Tensor, noisy: Tensor, deviation: Tensor, k: int) -> Tensor:
    """P(t, e) = Phi((logits - the k-th largest of the other experts' noisy logits) / deviation); all (T, E)."""
    best = noisy.topk(k + 1, dim=-1).values
    inside, outside = best[:, k:], best[:, k - 1 : k]
    # Without a chosen expert the k-th of the others is the (k + 1)-th of all; without another it is the k-th.
    threshold = torch.where(noisy > inside, inside, outside)
    # A softplus far below 0 is 0 in float32.
    return torch.special.ndtr((logits - threshold) / deviation.clamp_min(1e-6))


def z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean(logsumexp(logits)^2) over real tokens (Zoph 2022, eq. 5). logits (T, E)."""
    return token_mean(torch.logsumexp(logits, dim=-1).square(), mask)


def cv_squared(load: Tensor) -> Tensor:
    """Squared coefficient of variation, population variance over squared mean (Shazeer 2017, eq. 7). load (E,)."""
    return load.var(correction=0) / load.mean().square().clamp_min(1e-10)


def jitter(x: Tensor, amount: float) -> Tensor:
    """Multiply by U[1 - amount, 1 + amount], elementwise (Fedus 2021, appendix C)."""
    return x * torch.empty_like(x).uniform_(1 - amount, 1 + amount)
