"""The Arm contract: anything that can be compared. The loop, the ledger and matching know arms only through it.

Axes: B examples, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from routelab.baselines.baseline_registry import BASELINES
from routelab.core.errors import PluginError
from routelab.core.flops import Flops
from routelab.core.options import check_options
from routelab.data.task import Batch, Task
from routelab.routers.base import Routing, must_be_class, must_define


@dataclass(frozen=True)
class Penalty:
    """An auxiliary loss: its raw value, summed over layers, and the weight it enters the total with."""

    raw: Tensor
    weight: float


@dataclass(frozen=True)
class StepLoss:
    """What `Arm.loss` returns. task: the mean task loss, a scalar. flops: forward and backward of this call.

    task_weight: what the task loss enters the total with.
    summed: how many members `task` and the penalties are means over. Their losses are added up, so that each member is
    trained as it would be alone; what is shown is the mean.
    """

    task: Tensor
    flops: Flops
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    routings: Sequence[Routing] = ()
    summed: int = 1
    task_weight: float = 1.0

    @property
    def total(self) -> Tensor:
        """What is differentiated."""
        task = self.task if self.task_weight == 1 else self.task_weight * self.task
        mean = task + sum(penalty.weight * penalty.raw for penalty in self.penalties.values() if penalty.weight)
        return mean if self.summed == 1 else self.summed * mean


@dataclass(frozen=True)
class Prediction:
    """What `Arm.predict` returns. outputs (B, K) or (B, S, K); flops: of the forward pass; positions and groups: S and G
    of the routings, None = a group for each example; members (M, B, ...): the outputs of those that `outputs` combines,
    where each is a prediction of its own."""

    outputs: Tensor
    flops: Flops
    routings: Sequence[Routing] = ()
    positions: int = 1
    groups: int | None = None
    members: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """A part of a run, with its share of what is left of the budget. Each stage has a learning-rate schedule of its own.

    fresh: begins with a new optimizer; False keeps the last one and its moments. warmup, schedule: instead of the
    optimizer's settings, None = those.
    """

    name: str
    share: float = 1.0
    fresh: bool = True
    warmup: float | None = None
    schedule: str | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are clipped together, by one norm.

    members: M, if their leading axis counts members that each have a norm of their own (so that one member's large gradient
    does not shorten another's step) and whose matrices and vectors are what lies behind it; None for plain parameters.
    """

    parameters: Sequence[nn.Parameter]
    members: int | None = None


@dataclass(frozen=True)
class ArmSpec:
    """An arm as the config describes it: plain data.

    name: a baseline's or a router's. backbone: `name`, `hidden` (width of the dense feed-forward), `moe_every`, and the
    backbone's own options. experts: `count`, `hidden`, `kind`, `rank`, `bias`, `shared`, and the numbers of zero-compute ones
    `zero`, `copy`, `constant`. router: options of the router, of its capacity, and
    `loss_weights`. options: what else the baseline takes.
    """

    name: str
    backbone: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Any] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def get(self, knob: str) -> Any:
        """The value of a dotted name, such as "experts.hidden"; None if it is not set."""
        section, _, key = knob.partition(".")
        return getattr(self, section).get(key)

    def with_value(self, knob: str, value: Any) -> ArmSpec:
        """A copy with a dotted name set."""
        section, _, key = knob.partition(".")
        changed: dict[str, Any] = {section: {**getattr(self, section), key: value}}
        return replace(self, **changed)


@dataclass(frozen=True)
class NoOptions:
    """Of an arm that takes none of its own."""


class Arm(nn.Module):
    """Base of every arm: `Arm(spec)`, then `build(task, seed)`.

    The loop calls, in this order: `prepare`; for each stage `begin`, then `loss` and `update` for each step, then `finish`;
    at the end `figures`. A run that is taken up again calls `prepare` and the `begin` of every stage so far, in order, and
    then loads the arm's state, so what `finish` leaves behind must lie in parameters and buffers.
    """

    options_type: ClassVar[type[Any]] = NoOptions
    """A dataclass of the arm's own options and their defaults; `self.options` holds one, made from `spec.options`."""

    fit_outside_loop: ClassVar[bool] = False
    """True for references that do not train by gradient: they skip the loop and define `fit(train, validation)`."""

    knobs: ClassVar[tuple[str, ...]] = ()
    """Dotted names of the widths that matching may size: the one that is set last, and finest, comes last."""

    def __init__(self, spec: ArmSpec) -> None:
        super().__init__()
        self.spec = spec
        check_options(f"arm {spec.name!r}", self.options_type, spec.options, first=0)
        self.options: Any = self.options_type(**spec.options)

    @classmethod
    def made_of(cls, spec: ArmSpec) -> tuple[str, ...]:
        """Names of the arms that this one is made of, itself first."""
        return (spec.name,)

    @classmethod
    def learns_from(cls, spec: ArmSpec) -> tuple[ArmSpec, ...]:
        """Arms, trained before, that this one asks while it trains: their code decides its result too."""
        return ()

    @classmethod
    def trained_as(cls, spec: ArmSpec) -> ArmSpec:
        """The arm whose training this one's is, to the bit, up to the last `finish`: arms of one answer differ in what they
        make of it afterwards, and a comparison trains them once. Default: its own spec."""
        return spec

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the arm's own options."""
        return [each.name for each in fields(cls.options_type)]

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """Settings for one trial of a sweep, from an Optuna trial: dotted names, such as "experts.count" or "options.members",
        to values. What the router, the backbone and the expert kind suggest comes besides. Default: none to tune."""
        return {}

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        """Make the parameters, by (seed, parameter name). sizing: on the meta device, for counting only."""
        raise NotImplementedError(f"{type(self).__name__} must define build(task, seed)")

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        """Training loss. index: data set positions, (B,), or (M, B) where members see different batches."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch, index)")

    def predict(self, batch: Batch) -> Prediction:
        """Outputs; the caller switches to evaluation mode first, as Lightning does."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(batch)")

    def flops_per_example(self) -> float | None:
        """Nominal FLOPs of an evaluation forward, or None where that means nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define flops_per_example()")

    def train_flops_per_example(self) -> float | None:
        """Nominal FLOPs that one training example costs each time it is drawn, forward and backward, or None where that means
        nothing. Passes over the whole data between stages come on top: how much that is for each example hangs on the budget."""
        return None

    def stages(self) -> Sequence[Stage]:
        """The parts of a run."""
        return (Stage("train"),)

    @property
    def rounds(self) -> int:
        """How many times the steps or epochs of the budget a run takes: M where M members train one after the other, so that
        each is trained as long as it would be beside the others."""
        return 1

    @property
    def streams(self) -> Sequence[int]:
        """Seeds of the data orders, one for each member that sees batches of its own; () = one order, the run's, for all."""
        return ()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, by what is clipped together."""
        return (ParameterGroup(list(self.parameters())),)

    def prepare(self, train: Batch) -> None:
        """Called before anything else with the training split: make what has its length."""

    def begin(self, stage: int) -> None:
        """Called before a stage's first step."""

    def finish(self, stage: int, train: Batch) -> Flops | None:
        """Called in evaluation mode after a stage's last step. Returns what it cost, which is charged as training."""
        return None

    @property
    def done(self) -> bool:
        """Asked after `finish`: True ends the run before its budget."""
        return False

    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        """Numbers of the arm's own for the record, and what they cost, which is charged as evaluation."""
        return {}, None

    def update(self) -> None:
        """Called once after each optimizer step."""

    def counts(self) -> Sequence[Tensor]:
        """Tensors that `update` reads and that must first be summed over the processes of a data-parallel run."""
        return ()

    @property
    def unsizable(self) -> str | None:
        """Why matching cannot size this arm although its class has knobs, as a clause about the arm; None if it can."""
        return None

    @property
    def causal(self) -> bool:
        """False if a token's output may depend on later tokens through the arm's routing."""
        return True

    @property
    def batch_coupled(self) -> bool:
        """True if an example's output may depend on the rest of the batch."""
        return False

    @property
    def leaks(self) -> str | None:
        """What an evaluated output depends on although it must not, such as "later tokens"; None in an honest arm.

        Anything but None is refused unless `router.allow_leak` is set, and is then shown wherever the arm is.
        """
        return None

    @property
    def leaks_in_training(self) -> str | None:
        """What an output depends on in training alone although it must not: no metric is better for it, training losses may
        be. Not refused, but shown wherever the arm is."""
        return None

    @property
    def evaluation_coupled(self) -> bool:
        """True if in evaluation, too, an example's output may depend on the rest of its batch: metrics then depend on the
        batch size, and the arm is marked wherever it is shown."""
        return False

    @property
    def total_params(self) -> int:
        """All parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def active_params(self) -> int:
        """Parameters that one token meets."""
        return self.total_params

    def fit(self, train: Batch, validation: Batch) -> None:
        """Train in one call, for arms that do so outside the loop."""
        raise NotImplementedError(f"{type(self).__name__} must define fit(train, validation)")


def must_be_arm(value: object) -> None:
    """ValueError, naming the rule, unless `value` is a subclass of Arm that defines what every arm must, and whose
    constructor takes (spec)."""
    must_be_class(value, Arm, "(spec)", 1)
    outside = getattr(value, "fit_outside_loop", False)
    must_define(value, Arm, {"build": 2, "predict": 1, "flops_per_example": 0, **({"fit": 2} if outside else {"loss": 2})})


def step_loss(arm: Arm, batch: Batch, index: Tensor) -> StepLoss:
    """`arm.loss(batch, index)`; PluginError unless it is a StepLoss whose task loss is a scalar."""
    result: StepLoss = arm.loss(batch, index)
    if not isinstance(result, StepLoss):
        raise _broken(arm, f"loss returned {type(result).__name__}; it must return a StepLoss")
    if not isinstance(result.task, Tensor) or result.task.ndim:
        found = f"shape {tuple(result.task.shape)}" if isinstance(result.task, Tensor) else type(result.task).__name__
        raise _broken(arm, f"StepLoss.task must be a scalar tensor, the mean over the batch; got {found}")
    return result


def predicted(arm: Arm, batch: Batch) -> Prediction:
    """`arm.predict(batch)`; PluginError unless it is a Prediction with an output for every example."""
    result: Prediction = arm.predict(batch)
    if not isinstance(result, Prediction):
        raise _broken(arm, f"predict returned {type(result).__name__}; it must return a Prediction")
    if not isinstance(result.outputs, Tensor) or result.outputs.shape[:1] != (len(batch),):
        found = f"shape {tuple(result.outputs.shape)}" if isinstance(result.outputs, Tensor) else type(result.outputs).__name__
        raise _broken(arm, f"Prediction.outputs must have a row for each of {len(batch)} examples; got {found}")
    return result


def _broken(arm: Arm, rule: str) -> PluginError:
    return PluginError(f"{BASELINES.title_of(type(arm))} broke the contract: {rule}")


def register_baseline(name: str) -> Callable[[Any], Any]:
    """Class decorator: make an Arm known as `name`."""
    return BASELINES.register(name)
