"""The Backbone contract: everything of a network except its feed-forward layers, which a factory fills in.

Axes: B examples (= groups), S positions, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from routelab.backbones.backbone_registry import BACKBONES
from routelab.core.flops import Cost
from routelab.data.task import InputSpec
from routelab.experts.feed_forward import FeedForward
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Routing, must_be_class, must_define


@dataclass(frozen=True)
class Slot:
    """The place of one feed-forward layer: its number (0-based), its features, and how many positions a group has.

    whole_block: the layer stands in a `routelab.backbones.attention.Block`, which can run on some positions alone.
    """

    index: int
    d_model: int
    positions: int
    vocab_size: int | None = None
    whole_block: bool = False


FeedForwardFactory = Callable[[Slot], nn.Module]
"""Builds what fills a slot: a `FeedForward`, or a `MixtureLayer`."""


class Backbone(nn.Module):
    """Base of every backbone: `Backbone(inputs, outputs, feed_forward, **options)`.

    Attributes to set: `d_model` and `positions` (S). `forward` calls each module that the factory made as `module(x)`, or,
    where `module.routes` is true, as `module(x, token_ids=..., mask=...)`, which returns a Routing beside the output.
    """

    d_model: int
    positions: int

    batch_is_group: ClassVar[bool] = False
    """True where an example is one position and the batch is the group, so that whatever a router mixes within a group
    mixes examples. Arms refuse routers whose evaluation would do so."""

    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Options for one trial of a sweep, from an Optuna trial. Default: none to tune, as arms share their backbone."""
        return {}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """Outputs (B, K), or (B, S, K) where every position has one, and one Routing per mixture layer."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, mask)")

    def token_embeddings(self) -> Tensor | None:
        """The (V, D) table of token embeddings, for routers that look at it before training; None if there is none."""
        return None

    def layout(self, examples: int) -> tuple[int, int]:
        """Groups and positions, (G, S), of what the mixture layers see of a batch."""
        return (1, examples) if self.batch_is_group else (examples, self.positions)

    def cost(self, examples: int) -> Cost:
        """Model FLOPs of everything but the feed-forward layers. Default: counted, once per number of examples."""
        known: dict[int, Cost] = self.__dict__.setdefault("_counted", {})
        if examples not in known:
            known[examples] = _count(self, examples)
        return known[examples]

    def recomputed(self, examples: int) -> float:
        """FLOPs that a training step runs a second time (a fused attention's backward, checkpointing)."""
        return 0.0


def _count(backbone: Backbone, examples: int) -> Cost:
    """Forward and backward FLOPs by torch's counter, with every feed-forward layer passing its input through.

    Attention runs unfused: the counter knows no fused kernel on a CPU, and counts none on the meta device.
    """
    where = next(backbone.parameters()).device
    dtype = torch.int64 if backbone.inputs.kind == "text" else torch.float32
    layers = [module for module in backbone.modules() if isinstance(module, (FeedForward, MixtureLayer))]
    gradients = [parameter.grad for parameter in backbone.parameters()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # Evaluation, where a new number of examples may turn up first, forbids gradients in two ways.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for module in backbone.modules():
            stack.callback(setattr, module, "training", module.training)
            # In training, batch norm would learn from these inputs; recurrent networks on a GPU have no other backward.
            module.training = isinstance(module, nn.RNNBase)
        if not any(parameter.requires_grad for parameter in backbone.parameters()):
            # A member whose stage is over, or a teacher: what training it costs is known of it all the same.
            stack.callback(backbone.requires_grad_, False)
            backbone.requires_grad_(True)
        for layer in layers:
            through: Any = (lambda x, *_, **__: (x, None)) if isinstance(layer, MixtureLayer) else (lambda x: x)
            layer.__dict__["forward"] = through
            stack.callback(layer.__dict__.pop, "forward")
        counter = stack.enter_context(FlopCounterMode(display=False))
        out, _ = backbone(torch.zeros(examples, *backbone.inputs.shape, dtype=dtype, device=where))
        forward = counter.get_total_flops()
        out.float().sum().backward()
        backward = counter.get_total_flops() - forward
    for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return Cost(float(forward), float(backward))


def must_be_backbone(value: object) -> None:
    """ValueError, naming the rule, unless `value` is a subclass of Backbone that defines `forward(x, mask)` and whose
    constructor takes (inputs, outputs, feed_forward)."""
    must_be_class(value, Backbone, "(inputs, outputs, feed_forward, **options)", 3)
    must_define(value, Backbone, {"forward": 2})


def register_backbone(name: str) -> Callable[[Any], Any]:
    """Class decorator: make a Backbone known as `name`."""
    return BACKBONES.register(name)
