"""Feed-forward kinds, and the dense feed-forward that an expert bank of one expert equals.

Axes: R rows, D features, H hidden width, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experts.registry import KINDS
from routers.contract import fresh, truncated_normal_
from routers.cost import Cost


@dataclass(frozen=True)
class Kind:
    """What happens between the up and the down projection. gated: there is a second projection `gate` (D, H), and the
    hidden activation is activation(x gate) * lift(x up). lift: None is the identity; for gated kinds only."""

    activation: Callable[[Tensor], Tensor]
    gated: bool = False
    lift: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.lift is not None and not self.gated:
            raise ValueError("a kind with `lift` must be gated: without a gate, `activation` says all there is to say")

    @property
    def matrices(self) -> int:
        """Weight matrices of D x H elements."""
        return 3 if self.gated else 2

    def hidden(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """The hidden activation of pre-activations `up` (..., H), and `gate` (..., H) for gated kinds."""
        if gate is None:
            return self.activation(up)
        return self.activation(gate) * (up if self.lift is None else self.lift(up))


_LIMIT, _SHARPNESS = 7.0, 1.702


def _clamped_swish(gate: Tensor) -> Tensor:
    gate = gate.clamp(max=_LIMIT)
    return gate * torch.sigmoid(_SHARPNESS * gate)


def _clamped_plus_one(up: Tensor) -> Tensor:
    return up.clamp(-_LIMIT, _LIMIT) + 1


RELU = Kind(F.relu)
"""max(x up, 0) down (Vaswani 2017)."""
GELU = Kind(F.gelu)
"""gelu(x up) down, exact (Hendrycks 2016)."""
SWIGLU = Kind(F.silu, gated=True)
"""(silu(x gate) * (x up)) down (Shazeer 2020)."""
CLAMPED_SWIGLU = Kind(_clamped_swish, gated=True, lift=_clamped_plus_one)
"""(g sigmoid(1.702 g) * (u + 1)) down with g = min(x gate, 7), u = x up within -7 and 7 (OpenAI 2025, gpt-oss)."""


def register_expert(name: str) -> Callable[[Kind], Kind]:
    """Make a `Kind` known as `name`: `register_expert("mine")(Kind(torch.tanh))`."""
    return KINDS.register(name)


def check_sizes(**sizes: int) -> None:
    """ValueError for the first size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def check_scale(init_scale: float) -> None:
    """ValueError for a scale of initial values that is not above 0."""
    if not 0 < init_scale < math.inf:
        raise ValueError(f"init_scale is {init_scale}; it must be above 0")


class FeedForward(nn.Module):
    """The dense feed-forward: (..., D) -> (..., D). Parameters: `up` (D, H), `gate` (D, H) if gated, `down` (H, D), and
    with `bias=True` `up_bias` (H,), `gate_bias` (H,), `down_bias` (D,). init_scale: see `draw`."""

    def __init__(self, kind: str, d_model: int, d_hidden: int, bias: bool = False, *, init_scale: float = 1.0) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_hidden=d_hidden)
        check_scale(init_scale)
        self.kind, self.d_model, self.d_hidden, self.init_scale = KINDS.get(kind), d_model, d_hidden, init_scale
        for name, shape in parameter_shapes(self.kind, d_model, d_hidden, bias).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        # On the meta device there is nothing to draw: an arm is only sized there.
        if not self.up.is_meta:
            self.init_parameters(fresh)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Draw as expert 0 of a bank does, so that a bank of one starts as this feed-forward."""
        for name, parameter in self.named_parameters(recurse=False):
            draw(parameter, name, generator(f"{name}/0"), self.init_scale)

    def forward(self, x: Tensor) -> Tensor:
        biases = {name: getattr(self, f"{name}_bias", None) for name in ("up", "gate", "down")}

        def project(value: Tensor, name: str) -> Tensor:
            product = value @ getattr(self, name)
            return product if biases[name] is None else product + biases[name]

        gate = project(x, "gate") if self.kind.gated else None
        return project(self.kind.hidden(project(x, "up"), gate), "down")

    def cost(self, rows: float) -> Cost:
        """FLOPs for `rows` rows."""
        return row_cost(self.kind, self.d_model, self.d_hidden) * rows


def parameter_shapes(kind: Kind, d_model: int, d_hidden: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one feed-forward's parameters, in a fixed order."""
    shapes: dict[str, tuple[int, ...]] = {"up": (d_model, d_hidden)}
    if kind.gated:
        shapes["gate"] = (d_model, d_hidden)
    shapes["down"] = (d_hidden, d_model)
    if bias:
        shapes |= {f"{name}_bias": (shape[1],) for name, shape in list(shapes.items())}
    return shapes


def draw(parameter: Tensor, name: str, generator: torch.Generator, scale: float = 1.0) -> None:
    """Initial value of one feed-forward parameter: N(0, scale / fan in), truncated at two deviations; biases 0.

    The Transformer's scale is 1; Fedus 2021, §2.4, recommends 0.1 for Switch layers (with other scales the same draws are
    multiplied by a constant, so arms that share a seed start in the same direction).
    """
    if name.endswith("_bias"):
        with torch.no_grad():
            parameter.zero_()
    else:
        truncated_normal_(parameter, (scale / parameter.shape[0]) ** 0.5, generator)


def row_cost(kind: Kind, d_model: int, d_hidden: int) -> Cost:
    """FLOPs of one row through one feed-forward; the backward pass has two products for each of the forward's."""
    forward = 2.0 * kind.matrices * d_model * d_hidden
    return Cost(forward, 2 * forward)
