"""Random tokens for probes, and calls that repeat their random numbers.

Axes: G groups, S positions, D features, V token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from routelab.routers.base import Routing

VOCABULARY, WIDTH = 50, 8


def tokens(
    groups: int, positions: int, seed: int = 0, width: int = WIDTH, vocabulary: int = VOCABULARY
) -> tuple[Tensor, Tensor]:
    """Return random tokens.

    Args:
        groups: G.
        positions: S.
        seed: seed of their values.
        width: D.
        vocabulary: V.

    Returns:
        x (G, S, D), and token ids (G, S) below V.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, positions, width, generator=generator)
    return x, torch.randint(0, vocabulary, (groups, positions), generator=generator)


def seeded(
    layer: Callable[..., tuple[Tensor, Routing]], x: Tensor, ids: Tensor, mask: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Routing]:
    """Call a layer once, with torch's random state set before the call."""
    torch.manual_seed(seed)
    out, routing = layer(x, ids, mask)
    return out, routing


def draws_random_numbers(call: Callable[[], Any]) -> bool:
    """Return True if a call draws numbers from torch's global random state."""
    before = torch.random.get_rng_state()
    call()
    return not torch.equal(torch.random.get_rng_state(), before)
