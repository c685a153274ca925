"""The Router contract: what a router is given, what it returns, and the defaults that a new router inherits.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from routelab.core.collectives import alone
from routelab.core.errors import PluginError
from routelab.core.flops import Cost
from routelab.core.initialisation import parameter_init_names
from routelab.routers.plans import Plan, Slots, check_plan, check_values, rows_per_group
from routelab.routers.router_registry import ROUTERS


@dataclass(frozen=True)
class RouterInput:
    """What a router sees.

    x: (G, S, D) float32. An image is a group of patches, a sequence a group of tokens, a table's row a group of features.
    token_ids: (G, S) int64, where the data has them.
    mask: (G, S) bool, True = a real token; None = all are real.
    before: (T, E) logits of the mixture layer before this one, for routers that asked for them (`Router.follows`).
    """

    x: Tensor
    token_ids: Tensor | None = None
    mask: Tensor | None = None
    before: Tensor | None = None

    @property
    def x_TD(self) -> Tensor:
        """The tokens in a flat (T, D) view, row-major."""
        return self.x.flatten(0, 1)

    @property
    def mask_T(self) -> Tensor | None:
        """The mask in a flat (T,) view."""
        return None if self.mask is None else self.mask.flatten()


@dataclass(frozen=True)
class Routing:
    """What a router returns.

    plan: one of the plan types. losses: name -> raw scalar; the training loop multiplies each by its entry in
    `loss_weights`. logits and probs: for telemetry and drop priorities only, detached by the layer.
    work: filled in by the layer, what the experts really ran.
    """

    plan: Plan
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    probs: Tensor | None = None
    work: ExpertWork | None = None


@dataclass(frozen=True)
class ExpertWork:
    """Rows that the experts ran in one forward pass; tensors where a number would have to wait for a GPU.

    assigned: what the plan asked for among real tokens; kept: what was left after capacity; executed: rows that were
    computed, padding included. pairs: rows that attended to each other, where a whole block is the expert.
    """

    assigned: int | Tensor
    kept: int | Tensor
    executed: int | Tensor
    pairs_kept: int | Tensor = 0
    pairs_executed: int | Tensor = 0


class Router(nn.Module):
    """Base of every router: `Router(d_model, num_experts, **options)`; write `forward(RouterInput) -> Routing`.

    The layer around it switches autocast off and hands over float32, applies the mask and the capacity, and counts the
    work, so a router holds only its own idea. Everything below has a default that suits a causal token-choice router.
    """

    init_names: ClassVar[Mapping[str, str]] = {"weight": "weight"}
    """Attributes of parameters and submodules, and the names that their initial values depend on; see `routelab.core.initialisation`.
    A subclass adds its own: an attribute that is renamed keeps its initial values if it is declared under its former name."""

    loss_weights: Mapping[str, float] = {}
    """Default weight of each loss that `forward` may return."""

    capacity_factor: float | None = None
    """Default capacity factor in training (None = dropless); the layer applies it. Evaluation is dropless by default."""

    priority: str = "position"
    """Who is dropped first when an expert is full; see `routelab.routers.capacity`."""

    shared_experts: int = 0
    """Default number of experts in a routed arm that take every token, beside the chosen ones (`experts.shared`)."""

    noiseless: ClassVar[Mapping[str, Any]] = {}
    """Options under which a training forward draws no random number, so that two calls can be compared."""

    dynamic: bool = False
    """True if tokens choose how many experts they take; `nominal_rows` is then a target."""

    whole_block: bool = False
    """True if in an arm the router chooses who goes through a whole block, attention and feed-forward, instead of who goes
    to which expert: see `routelab.backbones.mixture_of_depths_block`. Its plan is then a PerExpert for one expert."""

    every: int = 1
    """Default of `backbone.moe_every`: every how many-th layer is routed."""

    latent_ratio: int = 1
    """Default of `latent_dim` in a routed arm: the features over this. 1: the experts work on all features."""

    zero_compute: int | None = None
    """For a router that treats zero-compute experts differently: how many of its last experts are such."""

    follows: bool = False
    """True if the router looks at the logits of the mixture layer before, which an arm then hands it."""

    whole_model: bool = False
    """True if the first mixture layer chooses and all others take its choice: expert e of all layers is one specialist."""

    counts: ClassVar[Sequence[str]] = ()
    """Buffers that training forwards add to and `update` reads and clears; summed over processes before `update`."""

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("num_experts", num_experts)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.d_model = d_model
        self.num_experts = num_experts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `bfloat16` and the like do. A router goes along to another device, and keeps its types: choices
        made in half precision tie, and steps of 0.001 are lost in a bias in it."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep, recurse)

    def forward(self, inputs: RouterInput) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} must define forward(RouterInput) -> Routing")

    @property
    def causal(self) -> bool:
        """False if a token's output may depend on later tokens of its own group."""
        return True

    @property
    def batch_coupled(self) -> bool:
        """True if a token's output may depend on other groups of the batch."""
        return False

    @property
    def per_token(self) -> bool:
        """True if in evaluation a token's plan depends on that token alone: not on other tokens, nor on its place.

        What a group that is a batch of examples needs. Default: causal and not batch-coupled; override it where a router
        looks back or at positions, or where only its training is coupled.
        """
        return self.causal and not self.batch_coupled

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the parameters that the output gives no gradient under these options. Default: none."""
        return ()

    @property
    def signed(self) -> bool:
        """True if weights may be below 0."""
        return False

    @property
    def causal_predictor(self) -> bool:
        """True if a loss teaches what stands in for a choice by later tokens, so that evaluation sees none of them.

        A causal task takes such a router although it is not `causal`: no metric leaks. As training does see later tokens,
        the arm is marked wherever it is shown. Routers that merely choose otherwise in evaluation are refused.
        """
        return False

    def shares(self, device: torch.device) -> Tensor | None:
        """(E,) float64: which part of all choices each expert is meant to take; they sum to 1. None: equal parts. Capacity and
        nominal costs go by it."""
        return None

    @classmethod
    def zero_compute_kinds(cls, num_experts: int) -> Mapping[str, int]:
        """How many zero-compute experts of each kind a routed arm has by default beside `num_experts` others."""
        return {}

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Draw the parameters from `generator(parameter name)`. Default: every 2-D parameter from a normal with standard
        deviation 0.02, truncated at two deviations; others keep the values of the constructor."""
        names = parameter_init_names(self)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                truncated_normal_(parameter, 0.02, generator(names[name]))

    def calibrate(self, *, token_counts: Tensor | None = None, embeddings: Tensor | None = None) -> None:
        """Called once before training, after the initial values are drawn, with what there is of: the (V,) frequencies of the
        tokens in the training data, and the backbone's (V, D) token embeddings, which are those of the initialisation."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Arguments that `calibrate` cannot do without under these options; an arm that lacks one is refused beforehand."""
        return ()

    def update(self) -> None:
        """Called once after each optimizer step; keep state in float32 buffers."""

    @classmethod
    def update_layers(cls, routers: Sequence[Router]) -> None:
        """What an arm calls after each optimizer step with the routers of this class in a model, one for each layer.

        Default: `update` of each. Override it where layers share state, and let `update` serve a layer that is alone.
        """
        for router in routers:
            router.update()

    def nominal_rows(self, groups: int, positions: int) -> float:
        """Expert rows that one evaluation forward asks for. Default: ask the router itself, on random tokens."""
        return rows_per_group(self.probe_plan(groups, positions), groups) * groups

    def probe_plan(self, groups: int, positions: int) -> Plan:
        """The plan of an evaluation forward on random tokens: what sort of plan this router makes, and of what size."""
        with torch.no_grad(), _probing(self, training=False):
            return routed(self, self._probe(groups, positions)).plan

    def cost(self, groups: int, positions: int) -> Cost:
        """FLOPs of one training call. Default: counted, on random tokens."""
        with _probing(self, training=True), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            routing = routed(self, self._probe(groups, positions, gradient=True))
            forward = counter.get_total_flops()
            if isinstance(routing.plan, Slots):
                parts = [routing.plan.dispatch, routing.plan.combine]
            else:
                parts = [routing.plan.weight]
            parts += list(routing.losses.values())
            total = sum(part.sum() for part in parts if part.requires_grad)
            if isinstance(total, Tensor):
                total.backward()
            backward = counter.get_total_flops() - forward
        return Cost(float(forward), float(backward))

    published: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Options of settings that are published besides the defaults; a sweep tries them before its sampler chooses any."""

    tuned_top_k: ClassVar[Sequence[int]] = (2, 4)
    """What a sweep tries as `top_k` beside the default, in a class that takes it."""

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Options for one trial of a sweep, from an Optuna trial.

        Default: the capacity factor, if the class has one; `tuned_top_k` or the default number of choices, if it takes
        `top_k`; and every loss weight within a factor of ten of its default. Among choices None stands for a default that the
        class works out by itself.
        """
        options: dict[str, Any] = {}
        choices = inspect.signature(cls).parameters.get("top_k")
        if choices is not None and choices.default is not inspect.Parameter.empty:
            tried = sorted({choices.default, *cls.tuned_top_k}, key=lambda k: k or 0)
            options["top_k"] = trial.suggest_categorical("top_k", tried)
        if cls.capacity_factor is not None:
            options["capacity_factor"] = trial.suggest_float("capacity_factor", 1.0, 2.0)
        for name, weight in cls.loss_weights.items():
            if weight > 0:
                found = trial.suggest_float(f"loss_weights.{name}", weight / 10, weight * 10, log=True)
                options.setdefault("loss_weights", {})[name] = found
        return options

    def _probe(self, groups: int, positions: int, gradient: bool = False) -> RouterInput:
        generator = torch.Generator("cpu").manual_seed(0)
        reference = next(iter(self.parameters()), next(iter(self.buffers()), torch.empty(0, device="cpu")))
        # Drawn on the CPU whatever the default device is: an arm may be sized on the meta device around this.
        x = torch.randn(groups, positions, self.d_model, generator=generator, device="cpu").to(reference.device)
        ids = torch.randint(0, getattr(self, "vocab_size", None) or 256, (groups, positions), generator=generator, device="cpu")
        before = x.new_zeros(groups * positions, self.num_experts).requires_grad_(gradient) if self.follows else None
        return RouterInput(x.requires_grad_(gradient), token_ids=ids.to(reference.device), before=before)


def routed(router: Router, inputs: RouterInput) -> Routing:
    """What `router` returns for `inputs`, held to the contract; PluginError in one sentence if it breaks it.

    Shapes and types are looked at always, values on a CPU only: a GPU would have to be waited for. There, what a router
    does with the random tokens that it is sized with, on the CPU, must do.
    """
    routing: Routing = router(inputs)
    groups, positions, _ = inputs.x.shape
    try:
        if not isinstance(routing, Routing):
            raise ValueError(f"forward returned {type(routing).__name__}; it must return a Routing")
        check_plan(routing.plan, groups, positions)
        if routing.plan.num_experts != router.num_experts:
            raise ValueError(f"the plan names {routing.plan.num_experts} experts; there are {router.num_experts}")
        _check_losses(router, routing.losses)
        for name, value in (("logits", routing.logits), ("probs", routing.probs)):
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"Routing.{name} must be a tensor or None; got {type(value).__name__}")
        if inputs.x.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_values(routing, inputs)
    except ValueError as error:
        raise PluginError(f"{ROUTERS.title_of(type(router))} broke the contract: {error}") from None
    return routing


def _check_values(routing: Routing, inputs: RouterInput) -> None:
    groups, positions, _ = inputs.x.shape
    try:
        check_values(routing.plan, groups, positions)
        for name, loss in routing.losses.items():
            if not math.isfinite(value := float(loss.detach())):
                raise ValueError(f"the loss {name!r} is {value}")
    except ValueError:
        # Where the tokens are not finite, training has gone astray before the router was asked; the loop says so.
        if bool(torch.isfinite(inputs.x).all()):
            raise


def _check_losses(router: Router, losses: Mapping[str, Tensor]) -> None:
    if not isinstance(losses, Mapping):
        raise ValueError(f"Routing.losses must map names to scalars; got {type(losses).__name__}")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = (
                f"a tensor of {loss.dtype} and shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise ValueError(f"the loss {name!r} must be a floating point scalar; got {found}")
        if name not in router.loss_weights:
            raise ValueError(
                f"forward returns a loss {name!r} that `loss_weights` of the class does not name, so it would weigh nothing"
            )


def must_be_router(value: object) -> None:
    """ValueError, naming the rule, unless `value` is a subclass of Router that defines `forward(RouterInput)` and whose
    constructor takes (d_model, num_experts)."""
    must_be_class(value, Router, "(d_model, num_experts, **options)", 2)
    must_define(value, Router, {"forward": 1})


def must_be_class(value: object, base: type, arguments: str, count: int) -> None:
    """ValueError unless `value` is a subclass of `base` whose constructor takes `count` first arguments by position."""
    if not isinstance(value, type) or not issubclass(value, base):
        found = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise ValueError(f"it must be a subclass of {base.__name__}; it is {found}")
    try:
        inspect.signature(value).bind_partial(*[None] * count)
    except TypeError as error:
        raise ValueError(f"its constructor must take {arguments}: {error}") from None


def must_define(value: Any, base: type, methods: Mapping[str, int]) -> None:
    """ValueError unless the class `value` overrides these methods of `base`, each called with so many arguments."""
    for name, count in methods.items():
        expected = f"{name}({', '.join(list(inspect.signature(getattr(base, name)).parameters)[1 : count + 1])})"
        method = getattr(value, name)
        if method is getattr(base, name):
            raise ValueError(f"it must define {expected}")
        try:
            inspect.signature(method).bind(*[None] * (count + 1))
        except TypeError as error:
            raise ValueError(f"it must define {expected}: {error}") from None


@contextmanager
def _probing(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module in a mode for a while, and leave mode, gradients, buffers and the global random state as they were."""
    was, gradients = module.training, [parameter.grad for parameter in module.parameters()]
    # A router that counts its load would count the probe's tokens too.
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    # Inference mode, in which evaluation runs, would leave the backward uncounted. The sizes of evaluation batches differ between
    # processes: one of them may ask what another knows already, and must not wait for it.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), alone():
        module.train(training)
        module.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            module.train(was)
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def fresh(parameter: str) -> torch.Generator:
    """A generator seeded by torch's global random state, as torch's own modules draw: for a module that is used by itself.

    In an arm, everything is drawn again by (seed, parameter name).
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))


def truncated_normal_(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Fill in place from N(0, deviation) cut at two deviations. Drawn in float32 on the CPU, so every device starts alike."""
    value = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    nn.init.trunc_normal_(value, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
    with torch.no_grad():
        parameter.copy_(value)
