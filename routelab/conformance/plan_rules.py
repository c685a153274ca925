"""Rules of what a router returns: its plan, its weights, its losses.

Axes: G groups, S positions, T = G * S tokens, E experts, k choices per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import DoesNotApplyError, require, rule
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import RouterInput, Routing
from routelab.routers.capacity import capacity, ragged_capacity, unequal_capacity
from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK, check_plan, check_values, token_expert
from routelab.routers.probes.random_tokens import seeded, tokens

MODES = ((True, "in training"), (False, "in evaluation"))


def weights(plan: Plan) -> dict[str, Tensor]:
    """The plan's weights by the names of their fields."""
    if isinstance(plan, Slots):
        return {"dispatch": plan.dispatch, "combine": plan.combine}
    return {"weight": plan.weight}


@rule("A router returns a Routing whose plan fits the tokens, in int64 and float32; the layer's output is shaped as its input.")
def shapes(subject: Subject) -> None:
    for training, when in MODES:
        for groups, positions in ((3, 8), (2, 5)):
            layer = subject.layer(router={"positions": positions}).train(training)
            x, ids = tokens(groups, positions)
            routing = layer.router(RouterInput(x, ids))
            require(isinstance(routing, Routing), f"{when} it returned {type(routing).__name__} in place of a Routing")
            check_plan(routing.plan, groups, positions)
            for name, value in weights(routing.plan).items():
                require(value.dtype == torch.float32, f"{when} the plan's {name} is {value.dtype}; it must be torch.float32")
            for name in ("logits", "probs"):
                value = getattr(routing, name)
                ok = value is None or (value.ndim == 2 and value.shape[0] == groups * positions)
                require(ok, f"{when} {name} has shape {None if value is None else tuple(value.shape)}; it must be (T, any)")
            out, _ = layer(x, ids)
            require(out.shape == x.shape, f"{when} the output has shape {tuple(out.shape)} for an input of {tuple(x.shape)}")
            half, _ = layer(x.bfloat16(), ids)
            require(half.dtype == torch.bfloat16, f"{when} tokens in bfloat16 came back in {half.dtype}")


@rule("Indices are in range, no token is given one expert twice, and weights are finite and, unless `signed`, not negative.")
def values(subject: Subject) -> None:
    for seed in range(3):
        for training, when in MODES:
            router = subject.router(seed).train(training)
            x, ids = tokens(3, 8, seed)
            plan = router(RouterInput(x, ids)).plan
            check_values(plan, 3, 8)
            for name, value in weights(plan).items():
                low = float(value.detach().min()) if value.numel() else 0.0
                require(
                    router.signed or low >= 0, f"{when} the plan's {name} falls to {low:.3g}, and the router is not `signed`"
                )
            if isinstance(plan, (TopK, PerExpert, Ragged)):
                token, expert = token_expert(plan, 8)
                pair = token * plan.num_experts + expert
                twice = pair.numel() - pair.unique().numel()
                require(not twice, f"{when} {twice} of {pair.numel()} assignments give a token an expert that it has already")


@rule("In evaluation a TopK plan names a token's experts best first, as capacity serves first choices first.")
def best_first(subject: Subject) -> None:
    # topk(sorted=False) returns small rows in order by chance: the more experts, the sooner it shows.
    for count in (subject.num_experts, 16):
        for seed in range(4):
            try:
                router = subject.router(seed, num_experts=count).eval()
            except ValueError:
                continue
            plan = router(RouterInput(*tokens(3, 16, seed))).plan
            if not isinstance(plan, TopK):
                raise DoesNotApplyError(f"its plan is {type(plan).__name__}")
            rise = float((plan.weight[:, 1:] - plan.weight[:, :-1]).detach().max()) if plan.weight.shape[1] > 1 else 0.0
            require(rise <= 1e-6, f"with {count} experts a later choice weighs {rise:.3g} more than the one before it")


@rule("No softmax is taken of a softmax: neither weights nor `probs` are one of what sums to 1 already.")
def one_softmax(subject: Subject) -> None:
    for training, when in MODES:
        routing = subject.router().train(training)(RouterInput(*tokens(3, 8)))
        for name, base in (("logits", routing.logits), ("probs", routing.probs)):
            if base is None or not _is_distribution(base):
                continue
            again = base.softmax(-1)
            twice = name == "logits" and routing.probs is not None and torch.allclose(routing.probs, again, atol=1e-6)
            require(not twice, f"{when} `probs` is a softmax of `logits`, whose rows sum to 1 already")
            if isinstance(routing.plan, (TopK, Blend)) and base.shape[1] == routing.plan.num_experts:
                same = any(torch.allclose(routing.plan.weight, weight, atol=1e-6) for weight in _softmaxes(base, routing.plan))
                require(not same, f"{when} the weights are a softmax of `{name}`, whose rows sum to 1 already")


def _softmaxes(value: Tensor, plan: TopK | Blend) -> list[Tensor]:
    """A softmax over all experts at the chosen ones, and one over the chosen, if there are several."""
    again = value.softmax(-1)
    if isinstance(plan, Blend):
        return [again]
    chosen = [value.gather(1, plan.expert).softmax(-1)] if plan.expert.shape[1] > 1 else []
    return [again.gather(1, plan.expert), *chosen]


def _is_distribution(value: Tensor) -> bool:
    return bool((value >= 0).all()) and torch.allclose(value.sum(-1), torch.ones(value.shape[0]), atol=1e-5)


@rule("A forward changes neither the tokens, nor their ids, nor the mask.")
def inputs_unchanged(subject: Subject) -> None:
    for training, when in MODES:
        router = subject.router().train(training)
        x, ids = tokens(3, 8)
        given = {"x": x, "token_ids": ids, "mask": torch.arange(8).expand(3, 8) < 6}
        before = {name: value.clone() for name, value in given.items()}
        router(RouterInput(**given))
        for name, value in given.items():
            require(
                torch.equal(value, before[name]), f"{when} {int((value != before[name]).sum())} entries of {name} were changed"
            )


@rule("Losses are finite scalars in training and in evaluation, and have the names that `loss_weights` gives defaults for.")
def losses(subject: Subject) -> None:
    mask = torch.arange(8).expand(3, 8) < torch.tensor([[8], [3], [0]])
    for training, when in MODES:
        for real in (None, mask, torch.zeros_like(mask)):
            router = subject.router().train(training)
            found = router(RouterInput(*tokens(3, 8), real)).losses
            wanted = sorted(router.loss_weights)
            require(
                sorted(found) == wanted,
                f"{when} it returned {sorted(found) or 'no loss'}; `loss_weights` has {wanted or 'none'}",
            )
            for name, loss in found.items():
                require(loss.shape == (), f"{when} loss {name!r} has shape {tuple(loss.shape)}; it must be a scalar")
                require(torch.isfinite(loss), f"{when} loss {name!r} is {float(loss.detach())}")


@rule("`nominal_rows` is what a dropless evaluation runs, or, if `dynamic`, the same target for every group.")
def nominal_rows(subject: Subject) -> None:
    for groups, positions in ((2, 6), (5, 3), (1, 1)):
        # The loop pads nothing; the kernel that several threads choose for so few rows does.
        layer = subject.layer(router={"positions": 6}, kernel="loop").eval()
        nominal = layer.router.nominal_rows(groups, positions)
        if layer.router.dynamic:
            each = layer.router.nominal_rows(1, positions)
            require(
                abs(nominal - groups * each) < 1e-6 * nominal,
                f"{groups} groups of {positions} tokens count {nominal:g} rows, and one group {each:g}",
            )
            continue
        routing = layer(*tokens(groups, positions))[1]
        assert routing.work is not None
        # Which of the choices are of experts that compute nothing hangs on the tokens.
        run = float(routing.work.executed) + _free(layer, routing)
        require(run == nominal, f"{groups} groups of {positions} tokens run {run:g} rows; `nominal_rows` says {nominal:g}")


@rule("`shares`, where a router has any, are a part above 0 of all choices for each expert, and sum to 1.")
def shares(subject: Subject) -> None:
    found = subject.router().shares(torch.device("cpu"))
    if found is None:
        raise DoesNotApplyError("its experts are meant to take equal parts")
    wanted = f"({subject.num_experts},) in torch.float64"
    fits = found.shape == (subject.num_experts,) and found.dtype == torch.float64
    require(fits, f"they have shape {tuple(found.shape)} in {found.dtype}; it must be {wanted}")
    require(bool((found > 0).all()), f"one of them is {float(found.min()):.3g}")
    require(abs(float(found.sum()) - 1) < 1e-9, f"they sum to {float(found.sum()):.3g}")


def _free(layer: MixtureLayer, routing: Routing) -> int:
    """How many of a plan's choices are of zero-compute experts."""
    if layer.zero_compute is None or not isinstance(routing.plan, (TopK, Ragged)):
        return 0
    return int((routing.plan.expert >= layer.experts.num_experts).sum())


@rule("Under capacity no expert takes more rows than it has room for, and none turns a token away while it has room.")
def capacity_bounds(subject: Subject) -> None:
    plan = subject.router()(RouterInput(*tokens(1, 4))).plan
    if not isinstance(plan, (TopK, Ragged)):
        raise DoesNotApplyError(f"the size of a {type(plan).__name__} plan is fixed, and no capacity applies to it")
    mask = torch.arange(8).expand(3, 8) < torch.tensor([[8], [3], [5]])
    for group in ("sequence", "batch"):
        for factor in (0.5, 1.25):
            for real in (None, mask):
                layer = subject.layer(capacity_factor=factor, capacity_group=group)
                routing = seeded(layer, *tokens(3, 8), real)[1]
                _within_bounds(layer, routing, factor, group, real)


def _within_bounds(layer: MixtureLayer, routing: Routing, factor: float, group: str, mask: Tensor | None) -> None:
    limited = routing.plan
    assert isinstance(limited, (TopK, Ragged))
    assert limited.keep is not None
    token, expert = token_expert(limited, 8)
    # The router itself may have left choices out, which only it can tell: those were never asked for.
    kept, parts = limited.keep.reshape(-1), 3 if group == "sequence" else 1
    real = torch.ones(24, dtype=torch.bool) if mask is None else mask.flatten()
    part = token * parts // 24
    if isinstance(limited, TopK):
        real_each, k = real.view(parts, -1).sum(1), limited.expert.shape[1]
        shares = layer.router.shares(limited.weight.device)
        even = torch.tensor([[capacity(factor, k, n, limited.num_experts)] for n in real_each.tolist()])
        room = even if shares is None else unequal_capacity(factor, k, real_each, shares)
    else:
        room = ragged_capacity(factor, limited, parts, 24, None if mask is None else real).unsqueeze(1)
    computing, assigned, computed = layer.experts.num_experts, 0, 0
    for number, rooms in enumerate(room.expand(parts, limited.num_experts).tolist()):
        for e, most in enumerate(rooms):
            here = (part == number) & (expert == e) & real[token]
            rows = int((here & kept).sum())
            assigned += int(here.sum()) if e < computing else 0
            computed += min(int(here.sum()), most) if e < computing else 0
            require(rows <= most, f"capacity {factor} per {group}: expert {e} took {rows} rows and has room for {most}")
    require(not (kept & ~real[token]).any(), f"capacity {factor} per {group}: padding takes room")
    work = routing.work
    assert work is not None
    # Where the router kept every choice, each expert must be as full as its choices allow.
    if int(work.assigned) == assigned:
        require(
            int(work.kept) == computed, f"capacity {factor} per {group}: {int(work.kept)} rows were kept where {computed} fit"
        )
