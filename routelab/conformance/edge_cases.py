"""Rules of sizes: the smallest, the most lopsided, and any between.

Axes: G groups, S positions, D features, E experts.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import BrokenError, require, rule
from routelab.routers.plans import check_plan, check_values
from routelab.routers.probes.random_tokens import WIDTH, seeded, tokens

_EXAMPLES = 15
# What one example is made of: groups, positions, width, experts beyond the fewest, training, masked, capacity, its group, seed.
_CHOICES: tuple[tuple[Any, ...], ...] = (
    (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (3, 4, 8), (0, 1, 2, 3, 4), (True, False), (True, False), (None, 0.5, 1.25),
    ("sequence", "batch"), tuple(range(1000)),
)  # fmt: skip


@rule("One token, one expert (or as few as it takes), more experts than tokens: forward and backward are finite.")
def smallest(subject: Subject) -> None:
    few = {1, subject.fewest}
    for groups, positions in ((1, 1), (1, 2), (2, 1)):
        for count in sorted({count for count in few if count >= subject.fewest} | {subject.num_experts}):
            for factor in (None, 1.0):
                layer = subject.layer(router={"num_experts": count, "positions": positions}, capacity_factor=factor)
                _step(layer, *tokens(groups, positions), None, f"{groups} x {positions} tokens and {count} experts")


@rule(
    "Tokens that are all alike, all zero or all padding, and so one expert with every token and others with none, do no harm."
)
def lopsided(subject: Subject) -> None:
    x, ids = tokens(3, 8)
    alike, same = x[:1, :1].expand_as(x).clone(), ids[:1, :1].expand_as(ids).clone()
    nothing = torch.zeros(3, 8, dtype=torch.bool)
    for factor in (None, 1.0):
        for what, given in {
            "tokens all alike": (alike, same, None),
            "tokens all zero": (torch.zeros_like(x), same, None),
            "tokens of size 1000": (x * 1000, ids, None),
            "padding alone": (x, ids, nothing),
        }.items():
            for training in (True, False):
                _step(subject.layer(capacity_factor=factor).train(training), *given, what)


@rule("As many choices as there are experts: where there is an option `top_k`, all experts may be chosen.")
def every_expert(subject: Subject) -> None:
    try:
        layer = subject.layer(router={"top_k": subject.num_experts})
    except (TypeError, ValueError):
        layer = subject.layer(router={"num_experts": subject.fewest})
    _step(layer, *tokens(3, 8), None, "as many choices as experts")


def _step(layer: Any, x: Tensor, ids: Tensor, mask: Tensor | None, what: str) -> None:
    """Forward and backward; output, losses and gradients must be finite."""
    x = x.clone().requires_grad_()
    try:
        out, routing = seeded(layer, x, ids, mask)
    except Exception as error:
        # A constructor that refuses such sizes with a ValueError is not asked for them.
        raise BrokenError(f"{what}: the forward raised {type(error).__name__}: {error}") from error
    require(torch.isfinite(out).all(), f"{what}: the output is not finite")
    check_values(routing.plan, *x.shape[:2])
    for name, loss in routing.losses.items():
        require(torch.isfinite(loss), f"{what}: loss {name!r} is {float(loss.detach())}")
    (out.square().sum() + sum(routing.losses.values())).backward()
    for name, value in {"x": x, **dict(layer.named_parameters())}.items():
        finite = value.grad is None or torch.isfinite(value.grad).all()
        require(finite, f"{what}: the gradient of {name} is not finite")


@rule("Any shape, mask and capacity: the plan fits, the work adds up, padding comes out as 0.")
def any_shape(subject: Subject) -> None:
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        generator = random.Random(0)
        for _ in range(_EXAMPLES):
            _example(subject, *(generator.choice(each) for each in _CHOICES))
        return

    @hypothesis.settings(
        max_examples=_EXAMPLES, deadline=None, database=None, derandomize=True, report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate],  # a sentence names the sizes; to look for smaller ones takes a minute

        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategies.tuples(*map(strategies.sampled_from, _CHOICES)))
    def examples(drawn: tuple[Any, ...]) -> None:
        _example(subject, *drawn)

    examples()


def _example(
    subject: Subject, groups: int, positions: int, width: int, more: int, training: bool, masked: bool, factor: float | None,
    group: str, seed: int,
) -> None:  # fmt: skip
    count = subject.fewest + more
    sizes = {"d_model": width, "num_experts": count, "positions": positions}
    what = f"{groups} x {positions} tokens of width {width}, {count} experts, capacity {factor} per {group}, seed {seed}"
    try:
        layer = subject.layer(seed, router=sizes, capacity_factor=factor, capacity_group=group).train(training)
    except ValueError as error:
        # A number of experts that its options do not go with is a refusal; a width is not.
        if width == WIDTH or count != subject.num_experts:
            return
        raise BrokenError(f"{what}: it cannot be built: {error}") from error
    x, ids = tokens(groups, positions, seed, width)
    mask = torch.rand(groups, positions, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    out, routing = seeded(layer, x, ids, mask)
    check_plan(routing.plan, groups, positions)
    _step(layer, x, ids, mask, what)
    work = routing.work
    assert work is not None
    dynamic = layer.router.dynamic
    most = groups * positions * count if dynamic else layer.router.nominal_rows(groups, positions)
    kept, assigned, executed = int(work.kept), int(work.assigned), int(work.executed)
    require(0 <= kept <= assigned <= most, f"{what}: {kept} rows kept of {assigned} assigned, of at most {most:g}")
    require(kept <= executed, f"{what}: {kept} rows kept and {executed} executed")
    require(mask is None or not out[~mask].any(), f"{what}: padding does not come out as 0")
