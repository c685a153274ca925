"""How far two implementations of one layer are apart: outputs, losses, and the gradient of everything.

Axes: G groups, S positions, D features, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.plans import TopK

Named = Callable[[str], Tensor]
"""Hands out a tensor of the published block by its name: a parameter, a buffer, or a parameter's gradient."""
Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Twin:
    """A published block, the layer here that should equal it, and how the weights of one are those of the other.

    layout: the name of each of our parameters (and of buffers that matter) -> the same tensor out of the published block's.
    Its functions are linear, so they carry gradients as well as values.
    theirs: calls the block on (G, S, D) -> output, and its losses in our units and under our names.
    ours: likewise for the layer.
    """

    block: nn.Module
    layer: MixtureLayer
    layout: Mapping[str, Callable[[Named], Tensor]]
    theirs: Callable[[Tensor], tuple[Tensor, Losses]]
    ours: Callable[[Tensor], tuple[Tensor, Losses]]


@dataclass(frozen=True)
class Distance:
    """Largest differences. outputs: absolute. gradients: of one tensor, over its largest element, for the input and every
    parameter of ours. losses: relative; None where the block has none."""

    outputs: float
    gradients: float
    losses: float | None

    def __or__(self, other: Distance) -> Distance:
        losses = [value for value in (self.losses, other.losses) if value is not None]
        return Distance(
            max(self.outputs, other.outputs),
            max(self.gradients, other.gradients),
            max(losses) if losses else None,
        )


def copy_weights(twin: Twin) -> None:
    """Give the layer the weights of the block. KeyError if the layer has a parameter that the layout forgets."""
    parameters = dict(twin.layer.named_parameters())
    forgotten = parameters.keys() - twin.layout.keys()
    if forgotten:
        raise KeyError(f"the layout names no source for {', '.join(sorted(forgotten))}")
    every = {**parameters, **dict(twin.layer.named_buffers())}
    source = {**dict(twin.block.named_parameters()), **dict(twin.block.named_buffers())}
    with torch.no_grad():
        for name, part in twin.layout.items():
            every[name].copy_(part(source.__getitem__))


def distance(twin: Twin, x: Tensor, seed: int = 0) -> Distance:
    """Run both on x (G, S, D) and compare; the layer must have the block's weights already.

    Differentiated is a random sum of the outputs, plus every loss that both have.

    Both start from the same global random state, so that a block that draws as the router here does draws alike.
    """
    upstream = None
    results = []
    for module, call in ((twin.block, twin.theirs), (twin.layer, twin.ours)):
        module.zero_grad(set_to_none=True)
        own = x.clone().requires_grad_()
        torch.manual_seed(seed)
        # A copy, since some blocks write on what they are given.
        out, losses = call(own * 1.0)
        if upstream is None:
            upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))
        results.append((out, losses, own, upstream))
    (their_out, their_losses, their_x, _), (our_out, our_losses, our_x, _) = results
    both = their_losses.keys() & our_losses.keys()
    for out, losses, _, weight in results:
        torch.add((out * weight).sum(), sum((losses[name] for name in sorted(both)), torch.zeros(()))).backward()
    apart = [relative(_gradient(our_x), _gradient(their_x))]
    theirs, ours = dict(twin.block.named_parameters()), dict(twin.layer.named_parameters())
    for name, part in twin.layout.items():
        if name in ours:
            apart.append(relative(_gradient(ours[name]), part(lambda key: _gradient(theirs[key]))))
    with torch.no_grad():
        outputs = (our_out - their_out).abs().max().item()
        lossy = [relative(our_losses[name], their_losses[name]) for name in both]
        return Distance(outputs, max(apart), max(lossy) if lossy else None)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest element of `theirs`; absolute where that is 0."""
    scale = theirs.detach().abs().max().item()
    return (ours.detach() - theirs.detach()).abs().max().item() / (scale or 1.0)


def firm(layer: MixtureLayer, x: Tensor) -> bool:
    """Whether no choice hangs on a rounding: tokens moved by 1e-5 get the same experts, and the same are dropped.

    Where two experts tie, two right implementations may differ. x (G, S, D).
    """
    training = layer.training
    layer.eval()
    with torch.no_grad():
        plans = [layer(tokens)[1].plan for tokens in (x, x + 1e-5 * torch.randn(x.shape))]
    layer.train(training)
    if not all(isinstance(plan, TopK) for plan in plans):
        return True
    return all(_alike(getattr(plans[0], name), getattr(plans[1], name)) for name in ("expert", "keep"))


def _alike(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


def _gradient(tensor: Tensor) -> Tensor:
    # An expert that no token chose has no gradient in some implementations, and zeros in others.
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
