"""The classic mixtures of experts: whole networks under one gate on the input, or under a tree of gates.

Axes: B examples, S positions of a text, E experts, K outputs, T = B or B * S predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.backbones.linear import Linear
from routelab.baselines.backbone_arm import SingleBackbone, whole
from routelab.baselines.base import ArmSpec, ParameterGroup, Prediction, StepLoss
from routelab.baselines.build import make_single
from routelab.baselines.classic_moe.classic_moe_losses import (
    ERRORS,
    blend,
    competitive,
    coupled,
    distance,
    likelihood,
    log_blend,
)
from routelab.baselines.classic_moe.hierarchical_moe import gate_outputs, log_proportions
from routelab.baselines.ensembles.ensemble_base import PASS, MemberArm, MemberOptions, member_seed
from routelab.baselines.ensembles.member_networks import Outputs
from routelab.core.errors import unknown
from routelab.core.flops import Flops
from routelab.core.initialisation import initialise
from routelab.core.seeds import key
from routelab.data.task import Batch, Task
from routelab.routers.base import ExpertWork, Routing
from routelab.routers.plans import Blend
from routelab.routers.router_registry import ROUTERS

IN_USE = 0.1
"""An expert is in use if its mean proportion is at least this part of an even share, 1 / E."""

LINEAR = "linear"
GATES = (LINEAR, "network")


class LinearArm(SingleBackbone):
    """A linear map of the input (`routelab.backbones.linear`), as an expert or a gate."""

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.task, self._fills = task, []
        self.network = Linear(task.inputs, task.outputs)
        if not sizing:
            initialise(self.network, seed)


@dataclass(frozen=True)
class GatedOptions(MemberOptions):
    """members: the experts, E. base: what each expert is: dense (the backbone), a router's name, or linear.

    error: likelihood, competitive or coupled. gate: linear, or network (the backbone, with a proportion for each expert as its
    outputs). d_model, hidden: of the experts and of a gate that is a network, as in `MemberOptions`.
    """

    error: str = "likelihood"
    gate: str = LINEAR


class GatedMixture(MemberArm):
    """Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan and Hinton 1991): E networks, and a gate on the input.

    With proportions p = softmax(s(x)), three errors, as `routelab.baselines.classic_moe.classic_moe_losses` defines them:
    "likelihood", -log sum_i p_i P_i(target): the one that the paper's simulations use, P_i being a Gaussian of variance 1
    around o_i for regression (targets are standardised), or softmax(o_i)[y]; experts compete, and specialise.
    "competitive", sum_i p_i ‖d - o_i‖²; "coupled", ‖d - sum_i p_i o_i‖². For classes, and for the next byte of a text, d is
    one-hot and o_i a distribution in these two. (With the log loss, the coupled error would be the likelihood's.)

    Prediction is the experts' distributions, or values, in proportion. For text the gate looks at every position by itself
    (a linear one at its byte alone), so nothing depends on later ones. Every expert runs on every example, and all are charged.
    The gate starts with equal proportions where it is linear. Options: see `GatedOptions`.

    The proportions are shown as the load of a layer whose plan is a blend; `figures` holds their means over the training
    split and the number of experts in use (see `IN_USE`).
    """

    options_type: ClassVar[type[Any]] = GatedOptions

    gate: SingleBackbone

    @classmethod
    def made_of(cls, spec: ArmSpec) -> tuple[str, ...]:
        names = super().made_of(spec)
        return tuple("dense" if name == LINEAR else name for name in names)

    @property
    def knobs(self) -> tuple[str, ...]:  # type: ignore[override]
        """None where the experts are linear: their size is that of the input and the task."""
        return () if self.options.base == LINEAR else MemberArm.knobs

    def gate_logits(self) -> int:
        """How many outputs the gate has."""
        return self.count

    def log_proportions(self, logits: Tensor) -> Tensor:
        """The gate's outputs (T, G) as log proportions (T, E)."""
        return logits.log_softmax(-1)

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        for name, value, allowed in (("error", self.options.error, ERRORS), ("gate", self.options.gate, GATES)):
            if value not in allowed:
                raise unknown(f"{name} of arm {self.spec.name!r}", value, allowed)
        super().build(task, seed, sizing=sizing)
        kind = task.kind if task.causal else "classification"
        of_gate = replace(task, kind=kind, outputs=self.gate_logits())
        if self.options.gate == LINEAR:
            self.gate = LinearArm(ArmSpec("dense"))
            self.gate.build(of_gate, key(seed, "gate"), sizing=sizing)
            for parameter in self.gate.parameters():
                torch.nn.init.zeros_(parameter)
        else:
            backbone = {name: value for name, value in self.base_spec().backbone.items() if name != "tied"}
            self.gate = make_single(ArmSpec("dense", backbone, self.spec.experts), of_gate, key(seed, "gate"), sizing=sizing)

    def base_spec(self) -> ArmSpec:
        bases = ("dense", LINEAR, *ROUTERS.names())
        if self.options.base not in bases:
            raise unknown(f"base of arm {self.spec.name!r}", self.options.base, bases)
        if self.options.base == LINEAR:
            return ArmSpec("dense", self.spec.backbone)
        return super().base_spec()

    def _member(self, spec: ArmSpec, number: int, sizing: bool = False) -> SingleBackbone:
        if self.options.base != LINEAR:
            return super()._member(spec, number, sizing)
        arm = LinearArm(spec)
        with torch.device("meta" if sizing else torch.get_default_device()):
            arm.build(self.task, member_seed(self.seed, number), sizing=sizing)
        return arm

    # Training

    @property
    def streams(self) -> Sequence[int]:
        return ()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [*self.members.groups(), ParameterGroup(list(self.gate.parameters()))]

    def prepare(self, train: Batch) -> None:
        """Nothing has the length of the training split: who learns from an example is the posterior's to say."""

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        log_gate, out, routing, flops = self._run(batch)
        error = self.error(log_gate, _per_prediction(out), batch.targets)
        return StepLoss(error.mean(), flops, out.penalties, (routing,))

    def error(self, log_gate_TE: Tensor, outputs_TEK: Tensor, targets: Tensor) -> Tensor:
        """The error of every prediction, (T,)."""
        if self.task.kind == "regression":
            wanted_TK = targets.view(len(outputs_TEK), -1)
            if self.options.error == "likelihood":
                return likelihood(log_gate_TE, -0.5 * distance(wanted_TK, outputs_TEK))
        else:
            label_T = targets.flatten().long()
            if self.options.error == "likelihood":
                truth_TE1 = label_T.view(-1, 1, 1).expand(-1, outputs_TEK.shape[1], 1)
                return likelihood(log_gate_TE, outputs_TEK.log_softmax(-1).gather(2, truth_TE1).squeeze(2))
            wanted_TK = F.one_hot(label_T, outputs_TEK.shape[2]).to(outputs_TEK.dtype)
            outputs_TEK = outputs_TEK.softmax(-1)
        if self.options.error == "competitive":
            return competitive(log_gate_TE, distance(wanted_TK, outputs_TEK))
        return coupled(log_gate_TE, wanted_TK, outputs_TEK)

    def _run(self, batch: Batch) -> tuple[Tensor, Outputs, Routing, Flops]:
        """Log proportions (T, E), the experts' outputs, the proportions as a routing, and the work."""
        log_gate, of_gate = self._gates(batch)
        out = self.members(batch, False)
        proportions = log_gate.detach().exp()
        rows = proportions.numel()
        routing = Routing(Blend(proportions, self.count), {}, log_gate.detach(), proportions, ExpertWork(rows, rows, rows))
        flops = out.flops + of_gate
        return log_gate, out, routing, flops

    def _gates(self, batch: Batch) -> tuple[Tensor, Flops]:
        logits, _ = self.gate.network(batch.inputs, batch.mask)
        log_gate = self.log_proportions(logits.float().flatten(0, -2))
        return log_gate, self.gate.flops(len(batch), [], training=self.training)

    # Prediction

    def predict(self, batch: Batch) -> Prediction:
        log_gate, out, routing, flops = self._run(batch)
        outputs_TEK = _per_prediction(out)
        if self.task.kind == "regression":
            mixed = blend(log_gate, outputs_TEK)
        else:
            mixed = log_blend(log_gate, outputs_TEK.log_softmax(-1))
        positions = len(mixed) // len(batch)
        return Prediction(mixed.view(out.values.shape[1:]), flops, (routing,), positions, len(batch), members=out.values)

    @torch.no_grad()
    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        total, seen = torch.zeros(self.count, dtype=torch.float64), 0
        spent = Flops()
        for start in range(0, len(train), PASS):
            log_gate, flops = self._gates(train.select(slice(start, min(start + PASS, len(train)))))
            total, seen = total + log_gate.exp().double().sum(0).cpu(), seen + len(log_gate)
            spent += flops
        proportions = total / seen
        used = int((proportions >= IN_USE / self.count).sum())
        return {"proportions": proportions.tolist(), "experts_in_use": used}, spent

    # What it costs

    def flops_per_example(self) -> float | None:
        return self.count * self.template.flops_per_example() + self.gate.flops_per_example()

    def train_flops_per_example(self) -> float | None:
        return self.count * self.template.train_flops_per_example() + self.gate.train_flops_per_example()

    @property
    def total_params(self) -> int:
        return super().total_params + self.gate.total_params

    @property
    def active_params(self) -> int:
        return super().active_params + self.gate.active_params


@dataclass(frozen=True)
class HierarchyOptions:
    """branching, depth: children of a gate, and levels of gates; branching^depth experts. The rest as in `GatedOptions`."""

    branching: int = 2
    depth: int = 3
    base: str = "dense"
    d_model: int | None = None
    hidden: int | None = None
    error: str = "likelihood"
    gate: str = LINEAR

    @property
    def members(self) -> int:
        """The experts, which are the leaves."""
        return int(whole("branching", self.branching) ** whole("depth", self.depth))


class HierarchicalMixture(GatedMixture):
    """Hierarchical mixtures of experts (Jordan and Jacobs 1994): a tree of gates on the input, experts as its leaves.

    An expert's proportion is the product of the gates on its path, g_i g_j|i; what becomes of the proportions is as in
    `GatedMixture`, whose depth is 1. All gates are one linear map (or one network) with an output for each child of each. The
    shape of the tree is options, not learned. Trained by gradient, as any arm; the paper's exact EM, for linear gates and
    experts, is `routelab.baselines.classic_moe.hierarchical_moe.em_step`. Options: see `HierarchyOptions`.
    """

    options_type = HierarchyOptions

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The levels of gates; 4 or 8 experts where each has 2 children."""
        return {"options.depth": trial.suggest_categorical("options.depth", [2, 3])}

    def gate_logits(self) -> int:
        return gate_outputs(self.options.branching, self.options.depth)

    def log_proportions(self, logits: Tensor) -> Tensor:
        return log_proportions(logits, self.options.branching, self.options.depth)


def _per_prediction(out: Outputs) -> Tensor:
    """Values (E, B, ..., K) as (T, E, K), float32."""
    return out.values.float().flatten(1, -2).transpose(0, 1)
