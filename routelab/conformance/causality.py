"""Rules of what an output may depend on: padding, the order of tokens, later tokens, other groups of the batch.

Axes: G groups, S positions, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from routelab.conformance.plan_rules import MODES
from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import DoesNotApplyError, require, require_close, rule
from routelab.conformance.training_rules import quiet
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import RouterInput
from routelab.routers.plans import Ragged, TopK
from routelab.routers.probes.dependence import reacts
from routelab.routers.probes.random_tokens import tokens

SEEDS = 8
_ROUNDING = 1e-5


@rule("Padding comes out as 0, takes no capacity and no loss, and changes nothing else.")
def padding(subject: Subject) -> None:
    # Noise in training would hide what padding changes; evaluation has none.
    noisy = subject.noiseless is None
    for training, when in MODES[1:] if noisy else MODES:
        for group in ("sequence", "batch"):
            options: dict[str, Any] = {"capacity_factor": 1.25, "capacity_group": group}
            layer = (subject.layer(**options) if noisy else quiet(subject, **options)).train(training)
            # Served by position, padding in front would take the room of every real token; only where positions mean nothing
            # must the rest stay as it is.
            for before in (0, 5) if layer.router.per_token and not layer.router.batch_coupled else (0,):
                _padded(layer, before, f"{when} with capacity per {group} and padding {'before' if before else 'behind'}")


def _padded(layer: MixtureLayer, before: int, where: str) -> None:
    x, ids = tokens(3, 8)
    padded_x, padded_ids = torch.full((3, 13, x.shape[-1]), 3.0), torch.zeros(3, 13, dtype=torch.int64)
    real = slice(before, before + 8)
    padded_x[:, real], padded_ids[:, real] = x, ids
    mask = torch.zeros(3, 13, dtype=torch.bool)
    mask[:, real] = True
    wanted, routing = layer(x, ids)
    found, padded = layer(padded_x, padded_ids, mask)
    require_close(f"{where}, outputs beside it", found[:, real], wanted, _ROUNDING)
    require(not found[~mask].any(), f"{where}: it came out as {float(found[~mask].detach().abs().max()):.2g} instead of 0")
    without, beside = int(routing.work.kept), int(padded.work.kept)
    require(without == beside, f"{where}: {beside} rows were kept beside it, and {without} without it")
    for name, loss in routing.losses.items():
        require_close(f"{where}, loss {name!r} beside it", padded.losses[name], loss, _ROUNDING)


@rule("A group whose batch is not coupled gives the same outputs cut to its own length and by itself.")
def lengths(subject: Subject) -> None:
    layer = quiet(subject, capacity_factor=1.25, capacity_group="sequence")
    if layer.batch_coupled:
        raise DoesNotApplyError("its batch is coupled")
    x, ids = tokens(3, 8)
    real = (8, 5, 1)
    out, _ = layer(x, ids, torch.arange(8).expand(3, 8) < torch.tensor(real).unsqueeze(1))
    for group, length in enumerate(real):
        alone, _ = layer(x[group : group + 1, :length], ids[group : group + 1, :length])
        require_close(f"{length} of 8 positions real, outputs", out[group, :length], alone[0], _ROUNDING)


@rule(
    "`per_token`, in evaluation, means that tokens put in another order, across groups too, give their outputs in that order."
)
def permutation_of_tokens(subject: Subject) -> None:
    layer = subject.layer().eval()
    if not layer.per_token:
        raise DoesNotApplyError("it declares that a token's plan may depend on other tokens or on its place")
    for seed in range(SEEDS):
        layer = subject.layer(seed).eval()
        x, ids = tokens(3, 8, seed)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        wanted = layer(x, ids)[0].flatten(0, 1)[order]
        moved = x.flatten(0, 1)[order].view_as(x), ids.flatten()[order].view_as(ids)
        require_close("tokens in another order, outputs", layer(*moved)[0].flatten(0, 1), wanted, _ROUNDING)


@rule("Groups put in another order give their outputs in that order, where the batch is not coupled.")
def permutation_of_groups(subject: Subject) -> None:
    order = torch.tensor([2, 0, 1])
    tried = 0
    for training, when in MODES:
        layer = (quiet(subject) if training and subject.noiseless is not None else subject.layer()).train(training)
        coupled = layer.batch_coupled if training else layer.evaluation_coupled
        if coupled or (training and subject.noiseless is None):
            continue
        tried += 1
        x, ids = tokens(3, 8)
        require_close(
            f"{when} groups in another order, outputs", layer(x[order], ids[order])[0], layer(x, ids)[0][order], _ROUNDING
        )
    if not tried:
        raise DoesNotApplyError("its batch is coupled")


@rule(
    "`causal` is true: in some trial of a router that is not causal later tokens change an output, and in none of one that is; nor, "
    "in evaluation, of one that has a `causal_predictor`."
)
def causality(subject: Subject) -> None:
    for what, layers in _settings(subject):
        declared = not (layers[0].causal_in_evaluation if what == "in evaluation" else layers[0].causal)
        _compare(what, "later tokens of the group", declared, layers, "later", must_be_seen=what == "without capacity")


@rule(
    "`batch_coupled` is true: other groups change an output in some trial of a router that is coupled, and in none of others."
)
def batch_coupling(subject: Subject) -> None:
    for what, layers in _settings(subject):
        declared = layers[0].evaluation_coupled if what == "in evaluation" else layers[0].batch_coupled
        _compare(what, "other groups of the batch", declared, layers, "others", must_be_seen=what == "without capacity")


def _settings(subject: Subject) -> Iterator[tuple[str, list[MixtureLayer]]]:
    """Layers around the router, one for each seed: as it is, in evaluation, and under capacity where that applies."""
    yield "without capacity", [subject.layer(seed, router={"positions": 12}) for seed in range(SEEDS)]
    yield "in evaluation", [subject.layer(seed, router={"positions": 12}).eval() for seed in range(SEEDS)]
    if isinstance(subject.router()(RouterInput(*tokens(1, 4))).plan, (TopK, Ragged)):
        for group in ("sequence", "batch"):
            options: dict[str, Any] = {"capacity_factor": 0.75, "capacity_group": group}
            yield f"with capacity per {group}", [subject.layer(seed, **options) for seed in range(SEEDS)]


def _compare(
    what: str, cause: str, declared: bool, layers: list[MixtureLayer], part: Literal["later", "others"], must_be_seen: bool
) -> None:
    changes = [reacts(layer, seed, part) for seed, layer in enumerate(layers)]
    seen = sum(change > _ROUNDING for change in changes)
    if not declared:
        require(not seen, f"{what} {cause} changed an output in {seen} of {SEEDS} trials, by up to {max(changes):.2g}, and it is "
                f"declared that they do not")  # fmt: skip
    # What capacity couples may not show where choices do not hang on the tokens at all.
    if declared and must_be_seen:
        require(seen, f"{what} {cause} are declared to change outputs, and did so in none of {SEEDS} trials")
