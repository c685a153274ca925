"""Initial values keyed by (seed, parameter name), so that arms which share a part start it alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn


def key(*parts: object) -> int:
    """A 63-bit number that depends on every part and on nothing else: the source of all randomness in routelab."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def initialise(root: nn.Module, seed: int) -> None:
    """Draw every parameter of `root` afresh.

    A module with `init_parameters(generator)` draws from generators of its own parameter names; any other that owns
    parameters and has `reset_parameters()` (torch's do) is reset under a seed of its module name. Parts come before the
    whole: what a module draws for its parts, such as a router for a linear layer inside it, stands. An expert bank takes
    the name of the dense feed-forward that it stands for: "blocks.0.feed_forward.experts" is keyed as
    "blocks.0.feed_forward".
    """
    for path, module in reversed(list(root.named_modules())):
        name = path.removesuffix(".experts")
        if hasattr(module, "init_parameters"):
            module.init_parameters(keyed(seed, name))
        elif hasattr(module, "reset_parameters"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(seed, name))
                module.reset_parameters()


def keyed(seed: int, name: str) -> Callable[[str], torch.Generator]:
    """Generators for the parameters of the module called `name`."""
    return lambda parameter: torch.Generator().manual_seed(key(seed, name, parameter))
