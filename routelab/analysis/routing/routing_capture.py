"""What every mixture layer does with a sample: shares, weights, choices and inputs, from any plan.

Axes: N examples, S positions of a layer, G groups and P positions as the layer sees them, T = G * P = N * S tokens, E experts,
R rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import Prediction
from routelab.data.task import Batch
from routelab.experts.moe_layer import MixtureLayer, exclude
from routelab.routers.base import Routing
from routelab.routers.plans import Blend, Plan, Slots, share_TE
from routelab.training.routing_metrics import first_choice, weight_TE

Array = NDArray[Any]
_PARTS = ("real", "share", "first", "second", "chosen", "prob")
_ROWS = 512
"""Tokens of each layer that experts are compared on."""


@dataclass(frozen=True)
class Observed:
    """One layer. real (N, S) bool: what is no padding. share (N, S, E): what each expert was given of a token
    (`routelab.routers.plans.share_TE`), 0 for padding. first,
    second (N, S): the experts with the largest weights among those that a token was given, -1 where there is none. chosen
    (N, S, E) bool: the experts that a token chose; where every expert sees every token, its first and second. prob (N, S, E):
    the router's probabilities, or where it gives none, its weights. plan: the name of the plan's type. inputs (R, D): what
    the layer read for some tokens."""

    real: Array
    share: Array
    first: Array
    second: Array
    chosen: Array
    prob: Array
    plan: str
    inputs: Tensor

    @property
    def experts(self) -> int:
        """E, zero-compute experts included."""
        return int(self.share.shape[-1])

    @property
    def taken(self) -> Array:
        """`share`, and where some tokens go without an expert one column more, (N, S, E + 1): 1 for those."""
        none = self.real & (self.first < 0)
        return np.concatenate([self.share, none[..., None]], -1) if none.any() else self.share


@dataclass(frozen=True)
class Observation:
    """The sample's losses, (N,) in nats (or squared units), and its layers."""

    loss: Array
    layers: list[Observed]


@torch.inference_mode()
def observe(arm: SingleBackbone, batches: Iterable[Batch]) -> Observation:
    """One evaluation pass over the batches."""
    parts: list[list[dict[str, Any]]] = [[] for _ in arm.mixtures]
    # By layer, as one that is given a flat batch calls itself again with the batch as one group.
    seen: dict[MixtureLayer, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, args: seen.update({layer: args[0]})) for layer in arm.mixtures]
    losses = []
    try:
        for number, batch in enumerate(batches):
            prediction = predict(arm, batch, number)
            losses.append(arm.task.loss(prediction.outputs, batch.targets).double().cpu())
            for found, layer, routing in zip(parts, arm.mixtures, prediction.routings, strict=True):
                found.append({**_part(routing, prediction, batch), "inputs": seen[layer].flatten(0, 1)[:_ROWS].float()})
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for found in parts:
        whole = {name: np.concatenate([part[name] for part in found]) for name in _PARTS}
        every = torch.cat([part["inputs"] for part in found])
        rows = every[torch.linspace(0, len(every) - 1, min(_ROWS, len(every))).long()]
        layers.append(Observed(**whole, plan=found[0]["plan"], inputs=rows))
    return Observation(torch.cat(losses).numpy(), layers)


def predict(arm: SingleBackbone, batch: Batch, number: int) -> Prediction:
    """The arm's prediction of the `number`-th batch. Routers that draw in evaluation draw the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        return arm.predict(batch)


def _part(routing: Routing, prediction: Prediction, batch: Batch) -> dict[str, Any]:
    examples = len(batch)
    groups = examples if prediction.groups is None else prediction.groups
    plan, positions = routing.plan, prediction.positions
    share, weight = share_TE(plan, groups, positions), weight_TE(plan, groups, positions)
    tokens = len(share)
    real = torch.ones(tokens, dtype=torch.bool, device=share.device)
    if batch.mask is not None and batch.mask.numel() == tokens:
        real = batch.mask.reshape(-1)
    share = share * real.unsqueeze(1)
    first = first_choice(weight, share)
    rest = share.scatter(1, first.clamp_min(0).unsqueeze(1), 0.0)
    second = first_choice(weight, rest)
    everyone = isinstance(plan, (Blend, Slots))
    if everyone:
        chosen = torch.zeros_like(share)
        for best in (first, second):
            chosen[best >= 0] = chosen[best >= 0].scatter(1, best[best >= 0].unsqueeze(1), 1.0)
    else:
        chosen = share
    prob = routing.probs if routing.probs is not None and routing.probs.shape == share.shape else weight * (share > 0)
    found = {
        "real": real,
        "share": share,
        "first": first,
        "second": second,
        "chosen": chosen > 0,
        "prob": prob.float() * real.unsqueeze(1),
    }
    return {
        "plan": type(plan).__name__,
        **{name: value.cpu().numpy().reshape(examples, tokens // examples, *value.shape[1:]) for name, value in found.items()},
    }


@contextmanager
def rerouted(layer: MixtureLayer, change: Callable[[Plan, int, int], Plan]) -> Iterator[None]:
    """Inside the block the layer follows `change(plan, groups, positions)` instead of its router's plan."""
    choose = layer.choose

    def changed(x: Tensor, token_ids: Tensor | None, mask: Tensor | None) -> Routing:
        routing = choose(x, token_ids, mask)
        return replace(routing, plan=exclude(change(routing.plan, x.shape[0], x.shape[1]), mask))

    layer.__dict__["choose"] = changed
    try:
        yield
    finally:
        del layer.__dict__["choose"]


@torch.inference_mode()
def outputs(layer: MixtureLayer, inputs: Tensor) -> Tensor:
    """What every expert of the bank makes of the same rows: (R, D) -> (E, R, D)."""
    rows = inputs if layer.latent is None else layer.latent.enter(inputs)
    return layer.experts.batched(rows.expand(layer.experts.num_experts, *rows.shape).contiguous())


def own_weights(layer: MixtureLayer) -> Array:
    """The weights that experts of the bank have to themselves, (E, X)."""
    own = layer.experts.own_parameters().values()
    return torch.cat([value.detach().flatten(1) for value in own], 1).float().cpu().numpy()
