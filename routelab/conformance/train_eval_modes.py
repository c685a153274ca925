"""Rules of repetition: seeds, evaluation, precision, saving, and what a forward costs."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from routelab.conformance.plan_rules import MODES, weights
from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import require, require_close, rule
from routelab.routers.base import Router, RouterInput
from routelab.routers.plans import Plan
from routelab.routers.probes.random_tokens import seeded, tokens
from routelab.training.ledger import counter_formulas

_LOW = (torch.bfloat16, torch.float16)


def same_plan(what: str, found: Plan, wanted: Plan) -> None:
    """BrokenError unless two plans are equal to the bit."""
    for name, value in vars(wanted).items():
        if isinstance(value, Tensor):
            other = getattr(found, name)
            ok = isinstance(other, Tensor) and torch.equal(other, value)
            count = int((other != value).sum()) if isinstance(other, Tensor) and other.shape == value.shape else value.numel()
            require(ok, f"{what}: {count} of {value.numel()} entries of the plan's {name} differ")


@rule("One seed gives one router, one plan and one output, to the bit.")
def determinism(subject: Subject) -> None:
    outs, routers = [], []
    for noise in (5, 6):
        torch.manual_seed(noise)  # parameters are a function of their seed alone
        layer = subject.layer()
        outs += [seeded(layer, *tokens(3, 8)) for _ in range(2)]
        routers.append(subject.router().state_dict())
    for name, value in routers[0].items():
        require(
            torch.equal(routers[1][name], value), f"{name} starts otherwise with the same seed; draw it in `init_parameters`"
        )
    for out, routing in outs[1:]:
        same_plan("two calls with one seed", routing.plan, outs[0][1].plan)
        require_close("two calls with one seed, output", out, outs[0][0], 0.0)


@rule("Evaluation is without noise: it draws no random number, drops nothing, and repeats itself to the bit.")
def quiet_evaluation(subject: Subject) -> None:
    layer = subject.layer(capacity_factor=1.0).eval()
    x, ids = tokens(3, 8)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, routing = layer(x, ids)
    require(torch.equal(torch.random.get_rng_state(), before), "an evaluation forward drew random numbers")
    second, again = seeded(layer, x, ids, seed=99)
    same_plan("two evaluations of the same tokens", again.plan, routing.plan)
    require_close("two evaluations of the same tokens, output", second, first, 0.0)
    work = routing.work
    assert work is not None
    require(int(work.kept) == int(work.assigned), f"{int(work.assigned) - int(work.kept)} rows were dropped in evaluation")


class _Halves(TorchDispatchMode):
    """Notes the operations that make numbers of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and value.dtype in _LOW:
                self.found.append(f"{func} in {value.dtype}")
        return out


@rule(
    "The selection is made in float32, under autocast to bfloat16 and in a layer turned to bfloat16 as well: the same choices, and "
    "no operation in half precision."
)
def float32_selection(subject: Subject) -> None:
    for training, when in MODES:
        x, ids = tokens(3, 8)
        plain = seeded(subject.layer().train(training), x, ids)[1]
        with torch.autocast("cpu", torch.bfloat16):
            layer = subject.layer().train(training)
            with torch.autocast("cpu", enabled=False), _Halves() as noted:
                torch.manual_seed(0)
                layer.router(RouterInput(x, ids))
            half = seeded(subject.layer().train(training), x, ids)[1]
        require(not noted.found, f"{when} the router ran {noted.found[0] if noted.found else ''}")
        same_plan(f"{when} with and without autocast", half.plan, plain.plan)
        rounded = x.bfloat16()
        turned = seeded(subject.layer().train(training).bfloat16(), rounded, ids)[1]
        same_plan(
            f"{when} in a layer turned to bfloat16", turned.plan, seeded(subject.layer().train(training), rounded, ids)[1].plan
        )


@rule("State saved and loaded gives the same outputs, to the bit: whatever they depend on is a parameter or a buffer.")
def save_and_load(subject: Subject) -> None:
    layer = subject.layer()
    for step in range(3):
        seeded(layer, *tokens(3, 8, step))
        layer.router.update()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = subject.layer(1)
    other.load_state_dict(torch.load(file, weights_only=True))
    for training, when in MODES:
        wanted, routing = seeded(layer.train(training), *tokens(3, 8, 9))
        found, again = seeded(other.train(training), *tokens(3, 8, 9))
        same_plan(f"{when} after loading", again.plan, routing.plan)
        require_close(f"{when} after loading, output", found, wanted, 0.0)
        for name, loss in routing.losses.items():
            require_close(f"{when} after loading, loss {name!r}", again.losses[name], loss, 0.0)


@rule("`cost` is what torch's FLOP counter counts in a training step of the router, and counting leaves no trace.")
def cost(subject: Subject) -> None:
    for groups, positions in ((2, 6), (3, 8)):
        router = subject.router(positions=positions)
        for parameter in router.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
        before, random = {name: value.clone() for name, value in router.state_dict().items()}, torch.random.get_rng_state()
        router.eval()
        said = router.cost(groups, positions)
        trace = [name for name, value in router.state_dict().items() if not torch.equal(value, before[name])]
        trace += [f"the gradient of {name}" for name, p in router.named_parameters() if p.grad is None or (p.grad != 7).any()]
        trace += ["the random state"] * (not torch.equal(torch.random.get_rng_state(), random)) + ["the mode"] * router.training
        require(not trace, f"`cost` changed {', '.join(trace)}")
        forward, backward = _counted(router.train(), groups, positions)
        for what, found, wanted in (("forward", said.forward, forward), ("backward", said.backward, backward)):
            close = abs(found - wanted) <= 0.01 * max(wanted, 1.0)
            require(close, f"{groups} x {positions} tokens: `cost` says {found:g} FLOPs {what}, the counter {wanted:g}")


def _counted(router: Router, groups: int, positions: int) -> tuple[float, float]:
    x, ids = tokens(groups, positions)
    with FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        routing = router(RouterInput(x.requires_grad_(), ids))
        forward = counter.get_total_flops()
        parts = [*weights(routing.plan).values(), *routing.losses.values()]
        total = sum(part.sum() for part in parts if part.requires_grad)
        if isinstance(total, Tensor):
            total.backward()
        return float(forward), float(counter.get_total_flops() - forward)
