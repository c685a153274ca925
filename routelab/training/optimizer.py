"""The optimizer of a run, and the clipping of gradients, by the arm's groups of parameters.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from routelab.baselines.base import ParameterGroup
from routelab.config.run_options import Optimizer


def suggest(trial: Any) -> dict[str, Any]:
    """Settings for one trial of a sweep, from an Optuna trial: the peak learning rate and weight decay, on log scales."""
    return {
        "lr": trial.suggest_float("lr", 1e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
    }


def new_optimizer(groups: Sequence[ParameterGroup], settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only. The fused kernel is the fastest on a CPU as on a GPU."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for group in groups:
        behind = 0 if group.members is None else 1
        for parameter in group.parameters:
            if parameter.requires_grad:
                (decayed if parameter.ndim - behind >= 2 else others).append(parameter)
    given = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in given if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def clip(groups: Sequence[ParameterGroup], most: float) -> Tensor:
    """Shorten each group's gradient to a norm of at most `most`, and with members each member's part of it.

    Returns the mean of the norms before, over all groups and members that have gradients; nothing waits for it.
    """
    norms: list[Tensor] = []
    for group in groups:
        if not any(parameter.grad is not None for parameter in group.parameters):
            continue
        if group.members is None:
            norms.append(torch.nn.utils.clip_grad_norm_(group.parameters, most).reshape(1))
        else:
            norms.append(_clip_members(group, most))
    return torch.cat(norms).mean()


def _clip_members(group: ParameterGroup, most: float) -> Tensor:
    """`clip_grad_norm_` for each entry of the leading axis; the norms (M,) before."""
    gradients = [parameter.grad for parameter in group.parameters if parameter.grad is not None]
    norm_M = torch.linalg.vector_norm(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1), dim=1)
    factor_M = (most / (norm_M + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor_M.view(-1, *[1] * (gradient.ndim - 1)))
    return norm_M
