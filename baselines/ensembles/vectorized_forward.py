"""One call for M networks of one shape, and what it costs.

Axes: M members, B examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from routelab.backbones.attention import SelfAttention
from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.ensembles.batched_parameters import places_of, run_stacked, run_with
from routelab.core.flops import Flops
from routelab.data.task import Batch, InputSpec


class Together:
    """Calls a network with parameters (M, ...), by name, for a batch that all members see or for one for each.

    By stacked parameters where the network takes them, which is tried once, on random parameters and inputs: they must give
    what torch's `vmap` gives. Else, and under torch.compile, by `vmap`, which takes any network and several times the time for
    a small one. template: one member, which knows the inputs and what a member costs; no module of this object's.
    """

    def __init__(self, network: nn.Module, template: SingleBackbone) -> None:
        self.network, self.template = network, template
        self.places = places_of(network)
        self._attends = any(isinstance(module, SelfAttention) for module in network.modules())
        self.below = self._how_stacks_lie()
        self._known: dict[tuple[int, bool], Flops] = {}

    def __call__(self, parameters: Mapping[str, Tensor], batch: Batch, apart: bool) -> Tensor:
        """Outputs (M, B, ...)."""
        if self._stacked:
            inputs, mask = batch.inputs, batch.mask
            if not apart:
                members = len(next(iter(parameters.values())))
                inputs = inputs.expand(members, *inputs.shape)
                mask = None if mask is None else mask.expand(members, *mask.shape)
            return run_stacked(self.network, self.places, parameters, inputs, mask, bool(self.below))
        return self._by_map(parameters, batch.inputs, batch.mask, apart)

    def flops(self, values: Tensor, training: bool) -> Flops:
        """What a call cost that gave these outputs (M, B, ...): so many times one member's, which is the same for every
        batch of one size."""
        members, examples = values.shape[:2]
        if (examples, training) not in self._known:
            self._known[examples, training] = self.template.flops(examples, [], training=training)
        one = self._known[examples, training]
        # Mapped over members on a CPU, nothing of the attention is computed twice.
        once = not self._stacked and values.device.type == "cpu"
        return Flops(members * one.model, members * (one.model if once else one.executed))

    @property
    def _stacked(self) -> bool:
        return self.below is not None and not torch.compiler.is_compiling()

    def _by_map(self, parameters: Mapping[str, Tensor], inputs: Tensor, mask: Tensor | None, apart: bool) -> Tensor:
        def call(values: dict[str, Tensor], inputs: Tensor, mask: Tensor | None) -> Tensor:
            return run_with(self.network, self.places, values, inputs, mask)

        batched = 0 if apart else None
        run = vmap(call, in_dims=(0, batched, None if mask is None else batched), randomness="different")
        # The CPU's fused attention has no batching rule, so each member would run by itself.
        unfused = sdpa_kernel(SDPBackend.MATH) if self._attends and inputs.device.type == "cpu" else nullcontext()
        with unfused:
            out: Tensor = run(dict(parameters), inputs, mask)
        return out

    @torch.no_grad()
    def _how_stacks_lie(self) -> bool | None:
        """The first `below` of `run_stacked` that gives what `vmap` does, or None."""
        random = torch.Generator().manual_seed(0)
        parameters = {}
        for name, parameter in self.network.named_parameters():
            spread = 1.0 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameters[name] = spread * torch.randn(2, *parameter.shape, generator=random)
        inputs = random_inputs(self.template.task.inputs, (2, 3), random)
        with torch.random.fork_rng(devices=[]):
            expected = self._by_map(parameters, inputs, None, True)
            for below in (False, True):
                # Whatever does not know stacked parameters fails in a way of its own.
                with suppress(Exception):
                    found = run_stacked(self.network, self.places, parameters, inputs, None, below)
                    if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
                        return below
        return None


def random_inputs(spec: InputSpec, lead: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Inputs (*lead, ...) of this kind: random numbers, codes, ids."""
    if spec.vocab_size is not None:
        return torch.randint(spec.vocab_size, (*lead, *spec.shape), generator=random)
    values = torch.randn(*lead, *spec.shape, generator=random)
    for place, size in enumerate(spec.categories):
        if size:
            values[..., place] = torch.randint(size, lead, generator=random).float()
    return values
