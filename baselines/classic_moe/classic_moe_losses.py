"""The mathematics of a mixture under one gate: three errors, and who is responsible for an example.

Jacobs, Jordan, Nowlan and Hinton (1991), Adaptive mixtures of local experts. Axes: B examples (any leading axes), E experts,
K outputs. A gate is given by its log proportions (B, E); an expert's fit to an example by `log_fit` (B, E), the logarithm of
the probability (or of the density, up to a constant) that it gives to the target.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Error = Literal["likelihood", "competitive", "coupled"]
ERRORS: tuple[str, ...] = get_args(Error)


def distance(target_BK: Tensor, outputs_BEK: Tensor) -> Tensor:
    """Squared distances of each expert's output from the target: (B, E)."""
    return (target_BK.unsqueeze(-2) - outputs_BEK).square().sum(-1)


def likelihood(log_gate_BE: Tensor, log_fit_BE: Tensor) -> Tensor:
    """-log sum_i p_i exp(log_fit_i): (B,).

    With log_fit = -½ ‖d - o_i‖² it is the error that the paper's simulations use, of experts with unit variance; with
    log_fit = log softmax(o_i)[y] it is the same for classes. Gradients: p_i - h_i with respect to the gate's logits, and
    -h_i (d - o_i) with respect to outputs of unit variance, where h is the `posterior`.
    """
    return -torch.logsumexp(log_gate_BE + log_fit_BE, -1)


def competitive(log_gate_BE: Tensor, distance_BE: Tensor) -> Tensor:
    """sum_i p_i ‖d - o_i‖²: (B,). The expected error where one expert is drawn by the gate."""
    return (log_gate_BE.exp() * distance_BE).sum(-1)


def coupled(log_gate_BE: Tensor, target_BK: Tensor, outputs_BEK: Tensor) -> Tensor:
    """‖d - sum_i p_i o_i‖²: (B,). The error of the blend: every expert is corrected for what the others leave over."""
    return (target_BK - blend(log_gate_BE, outputs_BEK)).square().sum(-1)


def blend(log_gate_BE: Tensor, outputs_BEK: Tensor) -> Tensor:
    """sum_i p_i o_i: (B, K)."""
    return (log_gate_BE.exp().unsqueeze(-1) * outputs_BEK).sum(-2)


def log_blend(log_gate_BE: Tensor, log_outputs_BEK: Tensor) -> Tensor:
    """log sum_i p_i exp(log_outputs_i): the logarithm of the mixture of the experts' distributions, (B, K)."""
    return torch.logsumexp(log_gate_BE.unsqueeze(-1) + log_outputs_BEK, -2)


def posterior(log_gate_BE: Tensor, log_fit_BE: Tensor) -> Tensor:
    """h_i = p_i exp(log_fit_i) / sum_j p_j exp(log_fit_j): how far each expert is responsible for the target, (B, E)."""
    return (log_gate_BE + log_fit_BE).softmax(-1)
