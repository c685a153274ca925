"""Seeds derived from names: the source of all randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch


def key(*parts: object) -> int:
    """A 63-bit number that depends on every part and on nothing else: the source of all randomness in routelab."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def keyed(seed: int, name: str) -> Callable[[str], torch.Generator]:
    """Generators for the parameters of the module called `name`."""
    return lambda parameter: torch.Generator().manual_seed(key(seed, name, parameter))
