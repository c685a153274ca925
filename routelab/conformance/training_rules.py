"""Rules of training: gradients, state, checkpointing.

Axes: G groups, S positions, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import DoesNotApplyError, require, require_close, rule
from routelab.experts.grouped_experts import KERNELS
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.plans import Plan
from routelab.routers.probes.random_tokens import seeded, tokens

_NO_GRADIENT = 1e-8


@rule(
    "The gradient of the output reaches every parameter of the router, each expert's part of it, unless `untrained` names it."
)
def gradients(subject: Subject) -> None:
    if not list(subject.router().parameters()):
        raise DoesNotApplyError("it has no parameters")
    for factor in (None, 1.25):
        reached: dict[str, Tensor] = {}
        for seed in range(6):
            layer = subject.layer(seed, capacity_factor=factor)
            seeded(layer, *tokens(3, 12, seed), seed=seed)[0].square().sum().backward()
            for name, parameter in layer.router.named_parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                require(torch.isfinite(gradient).all(), f"the gradient of {name} is not finite")
                by_expert = parameter.ndim and parameter.shape[0] == subject.num_experts
                size = gradient.abs().reshape(subject.num_experts, -1).amax(1) if by_expert else gradient.abs().max().reshape(1)
                reached[name] = torch.maximum(reached.get(name, torch.zeros_like(size)), size)
        for name, size in reached.items():
            free = name in layer.router.untrained
            missing = int((size <= _NO_GRADIENT).sum())
            what = f"{name}: " + (f"{missing} of {len(size)} experts get" if len(size) > 1 else "it gets")
            require(free or not missing, f"{what} no gradient from the output in any of 6 trials")
            require(not free or missing, f"{name} is declared `untrained`, and gets a gradient of {float(size.max()):.2g}")


@rule("Every loss reaches a parameter: it is made of probabilities, and not of counts alone.")
def loss_gradients(subject: Subject) -> None:
    router = subject.router()
    if not router.loss_weights:
        raise DoesNotApplyError("it has no loss")
    for name in router.loss_weights:
        router.zero_grad()
        loss = router(RouterInput(*tokens(3, 8))).losses[name]
        require(loss.requires_grad, f"loss {name!r} carries no gradient")
        loss.backward()
        size = max(float(p.grad.abs().max()) for p in router.parameters() if p.grad is not None)
        require(size > 0, f"the gradient of loss {name!r} is 0 in every parameter")


@rule("Every kernel gives the value and the gradients of the plain loop over experts.")
def kernels(subject: Subject) -> None:
    for factor in (None, 1.0):
        wanted = _values_and_gradients(subject, factor, "loop")
        for kernel in KERNELS:
            for name, value in _values_and_gradients(subject, factor, kernel).items():
                require_close(f"kernel {kernel!r}, {name}", value, wanted[name], 2e-5)


def _values_and_gradients(subject: Subject, factor: float | None, kernel: str) -> dict[str, Tensor]:
    layer = subject.layer(capacity_factor=factor, kernel=kernel)
    x, ids = tokens(3, 8)
    out, _ = seeded(layer, x.requires_grad_(), ids)
    out.square().sum().backward()
    return {"output": out.detach(), **gradients_of(layer, [x])}


def gradients_of(layer: nn.Module, inputs: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Name -> gradient of every parameter and of the inputs; 0 where there is none."""
    named = {**{f"x {number}": x for number, x in enumerate(inputs)}, **dict(layer.named_parameters())}
    return {
        f"gradient of {name}": torch.zeros_like(value) if value.grad is None else value.grad for name, value in named.items()
    }


def _buffers(router: Router) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in router.named_buffers()}


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def quiet(subject: Subject, **options: Any) -> MixtureLayer:
    """A layer whose training draws no random numbers; the rule says nothing about a router that always draws some."""
    found = subject.noiseless
    if found is None:
        raise DoesNotApplyError("training draws random numbers, and the class names no `noiseless` options")
    return subject.layer(router=found, **options)


@rule(
    "State moves in `update` alone, once per optimizer step: two micro-batches count as one batch, evaluation counts nothing."
)
def updates(subject: Subject) -> None:
    x, ids = tokens(4, 8)
    layer = quiet(subject)
    router, start = layer.router, _buffers(layer.router)
    layer.eval()(x, ids)
    with torch.no_grad():
        layer.train()(x, ids)
    moved = _moved(start, _buffers(router))
    require(not moved, f"{', '.join(moved)} moved without a training step: in evaluation or without gradients")
    layer(x, ids)
    moved = [name for name in _moved(start, _buffers(router)) if name not in router.counts]
    require(not moved, f"{', '.join(moved)} moved in a forward, before `update`, and is not among `counts`")
    router.update()
    whole = _buffers(router)
    for name in router.counts:
        require(
            not whole[name].any(), f"`update` left {name} at {float(whole[name].abs().max()):.3g}; it must clear its counts"
        )
    if router.batch_coupled:
        return  # halves of a batch then choose otherwise than the whole
    parts = quiet(subject)
    for half in (slice(0, 2), slice(2, 4)):
        parts(x[half], ids[half])
    parts.router.update()
    for name, value in _buffers(parts.router).items():
        require_close(f"two micro-batches and one batch, {name} after `update`", value, whole[name], 1e-6)


@rule("What `update` moves has an effect: on a later plan, a loss, or other state.")
def state_used(subject: Subject) -> None:
    def stepped() -> Router:
        router = subject.router(**(subject.noiseless or {}))
        for step in range(3):
            router(RouterInput(*tokens(3, 8, step)))
            router.update()
        return router

    start = _buffers(subject.router(**(subject.noiseless or {})))
    now = _buffers(stepped())
    moved = [name for name in _moved(start, now) if now[name].is_floating_point()]
    if not moved:
        raise DoesNotApplyError("`update` moves no state")
    usual = _effects(stepped())
    for name in moved:
        other = stepped()
        buffer = dict(other.named_buffers())[name]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            buffer.add_(torch.randn(buffer.shape, generator=generator).abs() * 3 + 1)
        changed = _effects(other, but=name)
        same = [key for key in usual if key != f"state {name}"]
        require(
            any(usual[key].shape != changed[key].shape or not torch.equal(usual[key], changed[key]) for key in same),
            f"{name} is moved by `update`, and neither a plan, nor a loss, nor other state depends on it",
        )


def _effects(router: Router, but: str | None = None) -> dict[str, Tensor]:
    """What later steps give: plans and losses in training and evaluation, and the state after one more update."""
    found: dict[str, Tensor] = {}
    for training in (True, False):
        torch.manual_seed(0)
        routing = router.train(training)(RouterInput(*tokens(3, 8, 9)))
        parts = {**_tensors(routing.plan), **routing.losses}
        found |= {f"{name} {training}": value.detach() for name, value in parts.items()}
    router.train().update()
    return found | {f"state {name}": value for name, value in _buffers(router).items() if name != but}


def _tensors(plan: Plan) -> dict[str, Tensor]:
    return {name: value for name, value in vars(plan).items() if isinstance(value, Tensor)}


@rule("Under gradient checkpointing the selection is replayed: same choices, same gradients, and nothing is counted twice.")
def checkpointing(subject: Subject) -> None:
    mask = torch.arange(8).expand(3, 8) < torch.tensor([[8], [6], [3]])
    for factor in (None, 1.0):
        wanted = _checkpointed(subject, factor, mask, None)
        # Other random numbers in the recomputation: a router that is asked again chooses other experts.
        for keep_random_state in (True, False):
            for name, value in _checkpointed(subject, factor, mask, keep_random_state).items():
                require_close(name, value, wanted[name], 1e-6)


def _checkpointed(subject: Subject, factor: float | None, mask: Tensor, keep_random_state: bool | None) -> dict[str, Tensor]:
    """Gradients and state after a step of two micro-batches. keep_random_state: None is without a checkpoint."""
    layer = subject.layer(capacity_factor=factor)

    def block(x: Tensor, ids: Tensor) -> tuple[Tensor, Routing]:
        # The layer in the middle of what is recomputed, as it stands in a network.
        out, routing = layer(x * 1.0, ids, mask)
        return (x + out).tanh(), routing

    totals, inputs = [], []
    for part in range(2):
        x, ids = tokens(3, 8, part)
        torch.manual_seed(part)
        inputs.append(x.requires_grad_())
        if keep_random_state is None:
            out, routing = block(x, ids)
        else:
            out, routing = checkpoint(block, x, ids, use_reentrant=False, preserve_rng_state=keep_random_state)
        totals.append(out.square().sum() + sum(routing.losses.values()))
    torch.manual_seed(99)
    for total in totals:
        total.backward()
    return gradients_of(layer, inputs) | _buffers(layer.router)
