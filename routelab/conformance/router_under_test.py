"""The router under test: how it is built, the layer around it, and random tokens for it.

Axes: G groups, S positions, D features, E experts, V token ids.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch

from routelab.core.errors import UsageError
from routelab.core.initialisation import initialise
from routelab.core.options import check_options
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.base import Router, RouterInput
from routelab.routers.probes.random_tokens import VOCABULARY, WIDTH, draws_random_numbers, tokens
from routelab.routers.router_registry import ROUTERS

HIDDEN = 12
_COUNTS = (4, 8, 16, 32, 64)


class Subject:
    """A router with its options.

    router: a registered name or a class. options: those of its constructor; what a routed arm would offer beside them
    (`positions`, `vocab_size`) is offered here as well. num_experts: None takes the first of 4, 8, 16, 32 and 64 that the
    constructor accepts. UsageError if it accepts none.
    """

    def __init__(
        self, router: str | type[Router], options: Mapping[str, Any] | None = None, num_experts: int | None = None
    ) -> None:
        self.made: type[Router] = ROUTERS.get(router) if isinstance(router, str) else router
        self.name = router if isinstance(router, str) else router.__name__
        self.options = dict(options or {})
        check_options(f"router {self.name!r}", self.made, self.options)
        self.num_experts = num_experts or self._first(_COUNTS)
        self.fewest = self._first(range(1, self.num_experts + 1))

    def router(
        self, seed: int = 0, *, d_model: int = WIDTH, num_experts: int | None = None, positions: int = 8, **options: Any
    ) -> Router:
        """A router of this seed with weights so large that its choices are clear."""
        made = self._construct(d_model, num_experts or self.num_experts, positions, options)
        initialise(made, seed)
        made.calibrate(
            token_counts=torch.arange(1, VOCABULARY + 1),
            embeddings=torch.randn(VOCABULARY, d_model, generator=torch.Generator().manual_seed(seed)),
        )
        for name, parameter in made.named_parameters():
            # As they start, many choices would lie within rounding. Scales, temperatures and biases stay as they are.
            if parameter.ndim > 1:
                generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
                value = torch.randn(parameter.shape, generator=generator) * (8 / parameter.shape[-1]) ** 0.5
                with torch.no_grad():
                    parameter.copy_(value)
        return made

    def layer(self, seed: int = 0, *, router: Mapping[str, Any] | None = None, **options: Any) -> MixtureLayer:
        """A mixture layer around such a router. router: what `router` takes; options: those of the layer, dropless if none."""
        made = self.router(seed, **(router or {}))
        free = made.zero_compute or 0
        bank = ExpertBank("gelu", num_experts=made.num_experts - free, d_model=made.d_model, d_hidden=HIDDEN)
        beside = ZeroCompute(made.d_model, list(islice(cycle(("zero", "copy", "constant")), free))) if free else None
        layer = MixtureLayer(made, bank, zero_compute=beside, **{"capacity_factor": None, **options})
        for part in filter(None, (bank, beside)):
            initialise(part, seed)
        return layer

    @property
    def noiseless(self) -> dict[str, Any] | None:
        """Options that take the noise out of training; None if it has noise that none takes out."""
        for options in ({}, dict(self.made.noiseless)):
            router = self.router(**options)
            if not draws_random_numbers(partial(router, RouterInput(*tokens(2, 4)))):
                return options
        return None

    def _construct(
        self, d_model: int, num_experts: int, positions: int = 8, options: Mapping[str, Any] | None = None
    ) -> Router:
        offered = {"positions": positions, "vocab_size": VOCABULARY}
        wanted = {name: value for name, value in offered.items() if name in inspect.signature(self.made).parameters}
        return self.made(d_model, num_experts, **{**wanted, **self.options, **(options or {})})

    def _first(self, counts: Any) -> int:
        """The first number of experts that the constructor accepts."""
        refusal: Exception = ValueError("no number of experts to try")
        for count in counts:
            try:
                self._construct(WIDTH, count)
                return int(count)
            except ValueError as error:
                refusal = error
        raise UsageError(f"router {self.name!r} cannot be built with {', '.join(map(str, counts))} experts: {refusal}")
