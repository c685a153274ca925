"""Feed-forward kinds, and the dense feed-forward that an expert bank of one expert equals.

Axes: R rows, D features, H hidden width, E experts, r rank of a low-rank update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.core.errors import first_line
from routelab.core.flops import Cost
from routelab.experts.expert_registry import KINDS
from routelab.routers.base import fresh, truncated_normal_


@dataclass(frozen=True)
class Kind:
    """What happens between a row and an expert's output.

    activation: between the up and the down projection; None: there is no hidden layer, the expert is one linear map. gated:
    there is a second projection `gate` (D, H), and the hidden activation is activation(x gate) * lift(x up). lift: None is the
    identity; for gated kinds only. rank: in a bank, the experts share every matrix, and each adds a product of two matrices
    of this rank to it (Hu et al. 2021, LoRA); a dense feed-forward of the kind is the shared one alone.
    """

    activation: Callable[[Tensor], Tensor] | None
    gated: bool = False
    lift: Callable[[Tensor], Tensor] | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.lift is not None and not self.gated:
            raise ValueError("a kind with `lift` must be gated: without a gate, `activation` says all there is to say")
        if self.gated and self.activation is None:
            raise ValueError("a gated kind needs an activation: the gate is its argument")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1, or null for experts of their own")

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Keys of the experts section for one trial of a sweep, from an Optuna trial: the rank, where there is one."""
        return {} if self.rank is None else {"rank": trial.suggest_int("rank", 2, 32, log=True)}

    @property
    def has_hidden(self) -> bool:
        """Whether there is a hidden layer, whose width H can be chosen."""
        return self.activation is not None

    def hidden(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """The hidden activation of pre-activations `up` (..., H), and `gate` (..., H) for gated kinds."""
        assert self.activation is not None
        if gate is None:
            return self.activation(up)
        return self.activation(gate) * (up if self.lift is None else self.lift(up))

    def run(self, rows: Tensor, project: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Rows (..., D) -> (..., D). project(value, name): the value times the matrix called `name`, plus its bias."""
        if not self.has_hidden:
            return project(rows, "linear")
        gate = project(rows, "gate") if self.gated else None
        return project(self.hidden(project(rows, "up"), gate), "down")


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
LINEAR = Kind(None)
"""x linear: no hidden layer and no hidden width (Jacobs et al. 1991)."""
LORA = Kind(F.gelu, rank=8)
"""One gelu feed-forward for all experts, each with low-rank updates of its own: W + a b, rank 8 (after Hu et al. 2021)."""


def register_expert(name: str) -> Callable[[Kind], Kind]:
    """Make a `Kind` known as `name`: `register_expert("mine")(Kind(torch.tanh))`."""
    return KINDS.register(name)


def kind_named(name: str) -> Kind:
    """The registered kind; ValueError if experts of that name are not made of products."""
    kind = KINDS.get(name)
    if not isinstance(kind, Kind):
        raise ValueError(
            f"{name!r} is a zero-compute expert, not a kind of feed-forward; it stands beside real ones, as in experts.{name}=1"
        )
    return kind


def check_hidden(name: str, kind: Kind, d_hidden: int | None) -> None:
    """ValueError for a hidden width where there is none, or for none where there must be one."""
    if kind.has_hidden and d_hidden is None:
        raise ValueError(f"kind {name!r} needs a hidden width: d_hidden is None; it must be at least 1")
    if not kind.has_hidden and d_hidden is not None:
        raise ValueError(f"d_hidden is {d_hidden}; experts of kind {name!r} have no hidden width: leave it out")


def must_be_kind(value: object) -> None:
    """ValueError, naming the rule, unless `value` is a Kind that maps finite pre-activations to finite ones of their shape."""
    if not isinstance(value, Kind):
        raise ValueError(f"it must be a Kind; it is of type {type(value).__name__}")
    if not value.has_hidden:
        return
    up = torch.linspace(-1, 1, 6, device="cpu").view(2, 3)
    try:
        hidden = value.hidden(up, up if value.gated else None)
    except Exception as error:
        raise ValueError(
            f"its activation fails on a tensor of shape (2, 3): {type(error).__name__}: {first_line(error)}"
        ) from None
    if not isinstance(hidden, Tensor) or hidden.shape != up.shape or not hidden.is_floating_point():
        found = f"{hidden.dtype} of shape {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(f"its activation must keep floating point and the shape (2, 3); it returned {found}")
    if not bool(torch.isfinite(hidden).all()):
        raise ValueError("its activation must be finite between -1 and 1")


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
    """The dense feed-forward: (..., D) -> (..., D). Parameters: `up` (D, H), `gate` (D, H) if gated, `down` (H, D), or for a
    kind without a hidden layer `linear` (D, D); with `bias=True` also `up_bias` (H,), `gate_bias` (H,), `down_bias` (D,), or
    `linear_bias` (D,). d_hidden: H, None for kinds without one. init_scale: see `draw`."""

    def __init__(
        self, kind: str, d_model: int, d_hidden: int | None = None, bias: bool = False, *, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.kind = kind_named(kind)
        check_hidden(kind, self.kind, d_hidden)
        check_sizes(d_model=d_model, d_hidden=1 if d_hidden is None else d_hidden)
        check_scale(init_scale)
        self.d_model, self.d_hidden, self.init_scale = d_model, d_hidden, init_scale
        for name, shape in parameter_shapes(self.kind, d_model, d_hidden, bias).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        # On the meta device there is nothing to draw: an arm is only sized there.
        if not next(self.parameters()).is_meta:
            self.init_parameters(fresh)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Draw as expert 0 of a bank does, so that a bank of one starts as this feed-forward."""
        for name, parameter in self.named_parameters(recurse=False):
            draw(parameter, name, generator(f"{name}/0"), self.init_scale)

    def forward(self, x: Tensor) -> Tensor:
        def project(value: Tensor, name: str) -> Tensor:
            product, bias = value @ getattr(self, name), getattr(self, f"{name}_bias", None)
            return product if bias is None else product + bias

        return self.kind.run(x, project)

    def cost(self, rows: float) -> Cost:
        """FLOPs for `rows` rows."""
        return products_cost(parameter_shapes(self.kind, self.d_model, self.d_hidden, bias=False).values()) * rows


def parameter_shapes(kind: Kind, d_model: int, d_hidden: int | None, bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one feed-forward's parameters, in a fixed order."""
    shapes: dict[str, tuple[int, ...]] = {}
    if d_hidden is None:
        shapes["linear"] = (d_model, d_model)
    else:
        shapes["up"] = (d_model, d_hidden)
        if kind.gated:
            shapes["gate"] = (d_model, d_hidden)
        shapes["down"] = (d_hidden, d_model)
    if bias:
        shapes |= {f"{name}_bias": (shape[1],) for name, shape in list(shapes.items())}
    return shapes


def update_shapes(kind: Kind, d_model: int, d_hidden: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one expert's low-rank updates; none without a rank. For each matrix (in, out): `NAME_a` (in, r) and
    `NAME_b` (r, out)."""
    if kind.rank is None:
        return {}
    pairs = parameter_shapes(kind, d_model, d_hidden, bias=False).items()
    return {f"{name}_{ab}": shape for name, (rows, columns) in pairs for ab, shape in
            (("a", (rows, kind.rank)), ("b", (kind.rank, columns)))}  # fmt: skip


def draw(parameter: Tensor, name: str, generator: torch.Generator, scale: float = 1.0) -> None:
    """Initial value of one feed-forward parameter: N(0, scale / fan in), truncated at two deviations; biases are 0, and so is
    the second factor of a low-rank update, which therefore starts at nothing.

    The Transformer's scale is 1; Fedus 2021, §2.4, recommends 0.1 for Switch layers (with other scales the same draws are
    multiplied by a constant, so arms that share a seed start in the same direction).
    """
    if name.endswith(("_bias", "_b")):
        with torch.no_grad():
            parameter.zero_()
    else:
        truncated_normal_(parameter, (scale / parameter.shape[0]) ** 0.5, generator)


def products_cost(shapes: Iterable[tuple[int, ...]]) -> Cost:
    """FLOPs of one row times matrices of these shapes; the backward pass has two products for each of the forward's."""
    forward = 2.0 * sum(math.prod(shape) for shape in shapes)
    return Cost(forward, 2 * forward)
