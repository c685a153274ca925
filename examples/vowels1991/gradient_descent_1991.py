"""The systems of the 1991 experiment and their training: full-batch gradient descent with a fixed step, all runs at once.

Axes: R runs, N examples, I inputs and a constant 1, E experts, H hidden units and a constant 1, K outputs. Examples come
last, so that everything but the products runs over contiguous memory. Gradients are the closed forms of the paper, several
times faster than autograd at this size; tests hold them to `routelab.baselines.classic_moe.classic_moe_losses` under autograd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEASURES = ("prediction", "experts")
"""How the mean squared error may be measured, see `Epoch.errors`."""

Outputs = str
"""What an output is of its linear form: "softmax", "sigmoid", or "linear"."""

OUTPUTS = ("softmax", "sigmoid", "linear")


def squash(form: Tensor, outputs: Outputs) -> Tensor:
    """Outputs (..., K, N) of their linear forms."""
    if outputs == "softmax":
        # Faster than torch's own over an axis that is not the last.
        raised = (form - form.amax(-2, keepdim=True)).exp_()
        return raised / raised.sum(-2, keepdim=True)
    return form.sigmoid() if outputs == "sigmoid" else form


def pull(gradient: Tensor, output: Tensor, outputs: Outputs) -> Tensor:
    """The gradient with respect to the linear forms, from that with respect to the outputs; both (..., K, N)."""
    if outputs == "softmax":
        return output * (gradient - (gradient * output).sum(-2, keepdim=True))
    return gradient * output * (1 - output) if outputs == "sigmoid" else gradient


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training examples finds, before the step that it leads to.

    prediction (R, K, N). errors: mean squared errors of a case (R,), summed over outputs, by how they are measured:
    "prediction" by the system's prediction; "experts" by the experts themselves, each to the extent of its posterior, which
    for a system without experts is the same. proportions (R, E), means over the examples, if there is a gate. gradients: of
    the mean training error over the examples, one for each tensor of weights.
    """

    prediction: Tensor
    errors: Mapping[str, Tensor]
    proportions: Tensor | None
    gradients: list[Tensor]


@dataclass(frozen=True)
class Mixture:
    """Linear experts under a linear gate, trained on -log sum_i p_i exp(-½ ‖d - o_i‖²) (Jacobs et al. 1991).

    Weights: the gate (R, E, I), which starts at 0 and so in equal proportions, and the experts (R, E K, I).
    """

    experts: int

    @property
    def name(self) -> str:
        """As the paper's table has it."""
        return f"{self.experts} experts"

    def start(self, runs: int, scale: float, inputs: int, classes: int, generator: torch.Generator) -> list[Tensor]:
        """Initial weights, the experts' uniform between -scale and scale."""
        return [torch.zeros(runs, self.experts, inputs), _uniform((runs, self.experts * classes, inputs), scale, generator)]

    def forward(self, weights: Sequence[Tensor], x_IN: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Proportions (R, E, N) and the experts' outputs (R, E, K, N)."""
        gate, experts = weights
        form = experts @ x_IN
        return squash(gate @ x_IN, "softmax"), squash(form.view(len(gate), self.experts, -1, x_IN.shape[1]), outputs)

    def predict(self, weights: Sequence[Tensor], x_IN: Tensor, outputs: Outputs) -> Tensor:
        """The outputs in proportion: (R, K, N)."""
        return _blend(*self.forward(weights, x_IN, outputs))

    def epoch(self, weights: Sequence[Tensor], x_IN: Tensor, d_KN: Tensor, outputs: Outputs) -> Epoch:
        """One pass over the training examples."""
        share, output = self.forward(weights, x_IN, outputs)
        residual = d_KN - output
        apart = residual.square().sum(2)
        # From the nearest expert on, so that not every one of them underflows.
        joint = share * torch.exp(0.5 * (apart.amin(1, keepdim=True) - apart))
        posterior = joint / joint.sum(1, keepdim=True)
        form = pull(-posterior.unsqueeze(2) * residual, output, outputs).flatten(1, 2)
        mean = x_IN.t() / x_IN.shape[1]
        prediction = _blend(share, output)
        errors = {"prediction": _mean_distance(d_KN, prediction), "experts": (posterior * apart).sum(1).mean(1)}
        return Epoch(prediction, errors, share.mean(2), [(share - posterior) @ mean, form @ mean])


@dataclass(frozen=True)
class Backprop:
    """One hidden layer of sigmoid units, trained on ½ ‖d - o‖². Weights: (R, H, I) and (R, K, H + 1)."""

    hidden: int

    @property
    def name(self) -> str:
        """As the paper's table has it."""
        return f"backprop, {self.hidden} hidden"

    def start(self, runs: int, scale: float, inputs: int, classes: int, generator: torch.Generator) -> list[Tensor]:
        """Initial weights, uniform between -scale and scale."""
        shapes = ((runs, self.hidden, inputs), (runs, classes, self.hidden + 1))
        return [_uniform(shape, scale, generator) for shape in shapes]

    def forward(self, weights: Sequence[Tensor], x_IN: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Hidden activations with the constant 1 below them (R, H + 1, N), and outputs (R, K, N)."""
        active = (weights[0] @ x_IN).sigmoid()
        active = torch.cat([active, torch.ones_like(active[:, :1])], 1)
        return active, squash(weights[1] @ active, outputs)

    def predict(self, weights: Sequence[Tensor], x_IN: Tensor, outputs: Outputs) -> Tensor:
        """The outputs: (R, K, N)."""
        return self.forward(weights, x_IN, outputs)[1]

    def epoch(self, weights: Sequence[Tensor], x_IN: Tensor, d_KN: Tensor, outputs: Outputs) -> Epoch:
        """One pass over the training examples."""
        active, output = self.forward(weights, x_IN, outputs)
        form = pull(output - d_KN, output, outputs)
        below = (weights[1].transpose(1, 2) @ form * active * (1 - active))[:, :-1]
        examples = x_IN.shape[1]
        error = _mean_distance(d_KN, output)
        gradients = [below @ x_IN.t() / examples, form @ active.transpose(1, 2) / examples]
        return Epoch(output, {"prediction": error, "experts": error}, None, gradients)


System = Mixture | Backprop


@dataclass(frozen=True)
class Examples:
    """x_IN with its constant row, and the class numbers (N,)."""

    x_IN: Tensor
    classes: Tensor

    @property
    def targets_KN(self) -> Tensor:
        """One-hot targets."""
        return torch.nn.functional.one_hot(self.classes).t().float()


@dataclass(frozen=True)
class Criterion:
    """Stop where an error of a case, summed over its outputs, is at most `threshold`. measure: see `Epoch.errors`."""

    threshold: float
    measure: str = "prediction"


@dataclass(frozen=True)
class Reached:
    """What the runs were like where they first met a criterion; NaN in runs that never got there.

    epochs (R,): gradient steps before it. train and test (R,): share of examples whose largest output is the right one.
    proportions (R, E): means over the training examples; None for a system without a gate.
    """

    epochs: Tensor
    train: Tensor
    test: Tensor
    proportions: Tensor | None


def descend(
    system: System,
    weights: Sequence[Tensor],
    step_R: Tensor,
    train: Examples,
    test: Examples,
    outputs: Outputs,
    criteria: Mapping[str, Criterion],
    epochs: int,
) -> dict[str, Reached]:
    """Train every run with its own step until it has met all `criteria`, or for `epochs` steps.

    Returns one entry per criterion. A run whose errors are no finite numbers any more is given up.
    """
    runs, target = len(step_R), train.targets_KN
    parts = system.experts if isinstance(system, Mixture) else None

    def empty(*shape: int) -> Tensor:
        return torch.full((runs, *shape), math.nan)

    found = {name: Reached(empty(), empty(), empty(), None if parts is None else empty(parts)) for name in criteria}
    alive, weights, step = torch.arange(runs), list(weights), step_R.view(-1, 1, 1)
    for epoch in range(epochs + 1):
        now = system.epoch(weights, train.x_IN, target, outputs)
        going = torch.zeros(len(alive), dtype=torch.bool)
        for name, criterion in criteria.items():
            reached, error = found[name], now.errors[criterion.measure]
            missing = reached.epochs[alive].isnan()
            new = missing & (error <= criterion.threshold)
            if new.any():
                which = alive[new]
                reached.epochs[which] = float(epoch)
                reached.train[which] = _correct(now.prediction[new], train)
                seen = system.predict([each[new] for each in weights], test.x_IN, outputs)
                reached.test[which] = _correct(seen, test)
                if reached.proportions is not None and now.proportions is not None:
                    reached.proportions[which] = now.proportions[new]
            going |= missing & ~new & error.isfinite()
        gradients = now.gradients
        if not going.all():
            alive, step = alive[going], step[going]
            weights, gradients = [each[going] for each in weights], [each[going] for each in gradients]
        if not len(alive):
            break
        weights = [each - step * gradient for each, gradient in zip(weights, gradients, strict=True)]
    return found


def _uniform(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * scale


def _blend(share: Tensor, output: Tensor) -> Tensor:
    return (share.unsqueeze(2) * output).sum(1)


def _mean_distance(target_KN: Tensor, prediction: Tensor) -> Tensor:
    return (target_KN - prediction).square().sum(1).mean(1)


def _correct(output: Tensor, examples: Examples) -> Tensor:
    return (output.argmax(1) == examples.classes).float().mean(1)
