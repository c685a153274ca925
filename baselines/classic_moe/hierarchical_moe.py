"""The mathematics of a tree of gates over experts, and its exact EM.

Jordan and Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm. The tree has `depth` levels of gates with
`branching` children each; its leaves are the experts, numbered from left to right, so that the children of node j of a level
are j * branching and on. Axes: B examples (any leading axes in the pure functions), I inputs with their constant 1, J nodes of
a level, C children, E = branching^depth experts, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.baselines.classic_moe.classic_moe_losses import distance, posterior

Family = Literal["classification", "regression"]

_NEWTON_STEPS, _HALVINGS, _DAMPING = 25, 30, 1e-8


def gate_outputs(branching: int, depth: int) -> int:
    """How many logits the gates of a tree have together: branching + branching^2 + ... + branching^depth."""
    return sum(branching**level for level in range(1, depth + 1))


def log_proportions(logits: Tensor, branching: int, depth: int) -> Tensor:
    """Logits of all gates (B, gate_outputs), the root's first -> log g_i + log g_j|i + ...: (B, E)."""
    log_share = logits.new_zeros(*logits.shape[:-1], 1)
    for level in logits.split([branching**level for level in range(1, depth + 1)], -1):
        each = level.unflatten(-1, (-1, branching)).log_softmax(-1)
        log_share = (log_share.unsqueeze(-1) + each).flatten(-2)
    return log_share


def node_posteriors(leaf_BE: Tensor, branching: int, depth: int) -> list[Tensor]:
    """Posteriors h of the nodes of every level below the root, from those of the leaves: (B, branching), ..., (B, E).

    The conditional ones of the paper are ratios of a node's and its parent's: h_j|i = h_ij / h_i.
    """
    return [leaf_BE.unflatten(-1, (branching**level, -1)).sum(-1) for level in range(1, depth + 1)]


# --- exact EM, for linear experts and gates ---


@dataclass(frozen=True)
class Tree:
    """Linear gates and experts, float64. gates: for each level (J, I, C). experts: (E, I, K), whose outputs are the means
    of Gaussians of variance 1 ("regression") or the logits of the classes ("classification")."""

    gates: tuple[Tensor, ...]
    experts: Tensor
    family: Family

    @classmethod
    def drawn(cls, family: Family, inputs: int, outputs: int, branching: int, depth: int, generator: torch.Generator) -> Tree:
        """A start: gates in equal proportions, experts of standard normal weights. inputs: without the constant 1."""
        gates = tuple(torch.zeros(branching**level, inputs + 1, branching, dtype=torch.float64) for level in range(depth))
        shape = (branching**depth, inputs + 1, outputs)
        return cls(gates, torch.randn(shape, dtype=torch.float64, generator=generator), family)

    @property
    def branching(self) -> int:
        """Children of a gate."""
        return self.gates[0].shape[2]

    def log_gate(self, x_BI: Tensor) -> Tensor:
        """Log proportions (B, E)."""
        logits = torch.cat([torch.einsum("bi,jic->bjc", x_BI, gate).flatten(1) for gate in self.gates], 1)
        return log_proportions(logits, self.branching, len(self.gates))

    def log_fit(self, x_BI: Tensor, target_BK: Tensor) -> Tensor:
        """Logarithm of the density that each expert gives to its target, (B, E)."""
        outputs = torch.einsum("bi,eik->bek", x_BI, self.experts)
        if self.family == "classification":
            return (outputs.log_softmax(-1) * target_BK.unsqueeze(1)).sum(-1)
        return -0.5 * (distance(target_BK, outputs) + target_BK.shape[1] * math.log(2 * math.pi))

    def log_likelihood(self, x_BI: Tensor, target_BK: Tensor) -> float:
        """Summed over the examples."""
        return float(torch.logsumexp(self.log_gate(x_BI) + self.log_fit(x_BI, target_BK), 1).sum())


def with_constant(x_BF: Tensor) -> Tensor:
    """(B, F) -> (B, F + 1) in float64, the last column 1."""
    return F.pad(x_BF.double(), (0, 1), value=1.0)


def em_step(tree: Tree, x_BI: Tensor, target_BK: Tensor) -> Tree:
    """One exact EM step; the likelihood does not fall.

    E: the posteriors of all nodes. M: each expert is fitted to the targets weighted by its posterior, by least squares or, for
    classes, by iteratively reweighted least squares; each gate likewise to the posteriors of its children, of the examples
    that reach it. target (B, K): one-hot for classes.
    """
    leaf = posterior(tree.log_gate(x_BI), tree.log_fit(x_BI, target_BK))
    nodes = node_posteriors(leaf, tree.branching, len(tree.gates))
    gates = []
    for gate, children in zip(tree.gates, nodes, strict=True):
        wanted_BJC = children.unflatten(1, (-1, tree.branching))
        gates.append(torch.stack([softmax_fit(x_BI, wanted_BJC[:, j], start) for j, start in enumerate(gate)]))
    if tree.family == "regression":
        experts = torch.stack([least_squares(x_BI, target_BK, weight) for weight in leaf.t()])
    else:
        fits = zip(leaf.t(), tree.experts, strict=True)
        experts = torch.stack([softmax_fit(x_BI, weight.unsqueeze(1) * target_BK, start) for weight, start in fits])
    return replace(tree, gates=tuple(gates), experts=experts)


def expectation_maximisation(
    tree: Tree, x_BI: Tensor, target_BK: Tensor, steps: int, watch: Callable[[float], None] = lambda likelihood: None
) -> Tree:
    """`steps` of EM; `watch` is told the log likelihood before the first and after each."""
    watch(tree.log_likelihood(x_BI, target_BK))
    for _ in range(steps):
        tree = em_step(tree, x_BI, target_BK)
        watch(tree.log_likelihood(x_BI, target_BK))
    return tree


def least_squares(x_BI: Tensor, target_BK: Tensor, weight_B: Tensor) -> Tensor:
    """argmin_W sum_b weight_b ‖target_b - x_b W‖²: (I, K). The smallest solution where there are several."""
    root = weight_B.sqrt().unsqueeze(1)
    return torch.linalg.lstsq(root * x_BI, root * target_BK, driver="gelsd").solution


def softmax_fit(x_BI: Tensor, wanted_BC: Tensor, start_IC: Tensor) -> Tensor:
    """argmax_W sum_b sum_c wanted_bc log softmax(x_b W)_c, from `start`: (I, C). wanted may have rows of any mass.

    Newton's method, which for this family is iteratively reweighted least squares. Steps are halved until the objective
    rises, so it never ends below where it began, even where the optimum lies at infinity (separable classes).
    """
    mass_B1 = wanted_BC.sum(1, keepdim=True)

    def objective(weights: Tensor) -> Tensor:
        return (wanted_BC * (x_BI @ weights).log_softmax(1)).sum()

    weights, now = start_IC, objective(start_IC)
    for _ in range(_NEWTON_STEPS):
        share = (x_BI @ weights).softmax(1)
        gradient = x_BI.t() @ (wanted_BC - mass_B1 * share)
        curvature_BCC = mass_B1.unsqueeze(2) * (torch.diag_embed(share) - share.unsqueeze(2) * share.unsqueeze(1))
        size = weights.numel()
        hessian = torch.einsum("bi,bcd,bj->icjd", x_BI, curvature_BCC, x_BI).reshape(size, size)
        # One class too many: a shift of all logits changes nothing, and the Hessian has no inverse without the damping.
        damped = hessian + (_DAMPING * (1 + hessian.diagonal().mean())) * torch.eye(size, dtype=hessian.dtype)
        direction = torch.linalg.solve(damped, gradient.flatten()).view_as(weights)
        step = 1.0
        for _ in range(_HALVINGS):
            candidate = weights + step * direction
            value = objective(candidate)
            if value > now:
                break
            step /= 2
        else:
            break
        gain, weights, now = float(value - now), candidate, value
        if gain < 1e-12 * (1 + abs(float(now))):
            break
    return weights
