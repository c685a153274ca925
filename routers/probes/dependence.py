"""Probes of dependence: later tokens, other groups of the batch, other tokens of a sequence.

Axes: G groups, S positions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.plans import Slots, TopK, share_TE
from routelab.routers.probes.random_tokens import seeded, tokens

_POSITIONS = 32


def reacts(layer: Callable[..., tuple[Tensor, Routing]], seed: int, part: Literal["later", "others"]) -> float:
    """Measure how far outputs change when other tokens change. Both calls draw the same random numbers.

    Args:
        layer: a layer of `random_tokens.WIDTH` features.
        seed: seed of the tokens and of the calls.
        part: "later" exchanges the second half of the last of three groups and compares its first half; "others" exchanges
            the groups before the last one and compares the last one.

    Returns:
        The largest absolute change of an output.
    """
    (x, ids), (other, other_ids) = tokens(3, 12, seed), tokens(3, 12, seed + 1000)
    before = seeded(layer, x, ids, seed=seed)[0]
    exchanged = (slice(2, 3), slice(6, None)) if part == "later" else (slice(0, 2), slice(None))
    x, ids = x.clone(), ids.clone()
    x[exchanged], ids[exchanged] = other[exchanged], other_ids[exchanged]
    after = seeded(layer, x, ids, seed=seed)[0]
    compared = slice(0, 6) if part == "later" else slice(None)
    return float((after[2, compared] - before[2, compared]).detach().abs().max())


def routes_tokens_alone(router: Router, vocab_size: int, device: torch.device) -> bool:
    """Return True if a router in evaluation routes each token as it routes a sequence of that token alone.

    The probe routes random tokens twice: as one sequence, and as sequences of one token each.

    Args:
        router: the router.
        vocab_size: token ids are below this number.
        device: device of the router.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, _POSITIONS, router.d_model, generator=random).to(device)
    ids = torch.randint(0, vocab_size, (1, _POSITIONS), generator=random).to(device)
    was_training = router.training
    router.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            together = router(RouterInput(x, ids)).plan
            alone = router(RouterInput(x.transpose(0, 1), ids.transpose(0, 1))).plan
    finally:
        router.train(was_training)
    if isinstance(together, Slots):
        return False  # A slot reads a mixture of all tokens, although each token combines slots by itself.
    weights = [plan.weight.flatten() for plan in (together, alone)]
    fractions = share_TE(together, 1, _POSITIONS), share_TE(alone, _POSITIONS, 1)
    return weights[0].shape == weights[1].shape and all(torch.allclose(a, b, atol=1e-5) for a, b in (fractions, weights))


def routes_groups_alike(router: Router) -> bool:
    """Return True if in evaluation all tokens of a group go to the same experts with the same weights, on random tokens."""
    plan = router.probe_plan(2, _POSITIONS)
    if not isinstance(plan, TopK):
        return False
    parts = (value.view(2, _POSITIONS, -1) for value in (plan.expert, plan.weight))
    return all(bool((part == part[:, :1]).all()) for part in parts)
