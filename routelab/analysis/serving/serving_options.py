"""How a run is served when not all of its experts fit in memory: what is asked for, and what its router allows.

Axes: N examples, S positions, P of them in the prompt, E experts, L mixture layers.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torch import Tensor

from routelab.analysis.routing.routing_capture import rerouted
from routelab.analysis.trained_run import TrainedRun
from routelab.backbones.decoder import Decoder
from routelab.core.errors import UsageError
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Routing
from routelab.routers.plans import Plan, TopK
from routelab.routers.probes.dependence import routes_groups_alike


@dataclass(frozen=True)
class Options:
    """slots: numbers of units in memory (None: from one to all). per_layer: each layer has so many. cold: drop the kernel's copy
    before every read. prompt: positions before the first that is decoded (None: half of them). steps: timed for each setting;
    0 times nothing."""

    slots: Sequence[int] | None = None
    per_layer: bool = False
    cold: bool = False
    prompt: int | None = None
    steps: int = 64


@dataclass(frozen=True)
class Served:
    """How a run is served. mode: "decode" (after a prompt token by token, with the cache of keys and values), or "pass" (all
    positions at once). per_text: every token of a text goes to the same experts, which the prompt chooses. whole_model: and all
    layers choose alike. prompt: P; 0 in passes."""

    mode: str
    per_text: bool
    whole_model: bool
    prompt: int


def check_slots(runs: Sequence[TrainedRun], options: Options) -> None:
    """UsageError unless every number of slots is possible for one of the runs at least, and drops can be asked for."""
    if options.steps < 0:
        raise UsageError(f"--steps is {options.steps}; it must be at least 0")
    if options.cold and not (hasattr(os, "posix_fadvise") and hasattr(mmap, "MADV_DONTNEED")):
        raise UsageError("--cold needs a system that can be told to drop pages of a file, such as Linux")
    units = [most_slots(run, options) for run in runs]
    for number in options.slots or ():
        if not 1 <= number <= max(units):
            of = runs[units.index(max(units))].name
            per = " per layer" if options.per_layer else ""
            raise UsageError(f"--slots is {number}; it must be between 1 and the {max(units)} experts{per} of {of}")


def most_slots(run: TrainedRun, options: Options) -> int:
    """Units of a run, or where every layer has slots of its own, of a layer."""
    layers = run.arm.mixtures
    return layers[0].experts.num_experts * (1 if options.per_layer or _whole_model(layers) else len(layers))


def _whole_model(layers: Sequence[MixtureLayer]) -> bool:
    return len(layers) > 1 and all(layer.router.whole_model for layer in layers)


def how_served(run: TrainedRun, options: Options) -> Served:
    """How this run can be served; UsageError for options that it cannot be served with."""
    layers, network = run.arm.mixtures, run.arm.network
    whole_model = _whole_model(layers)
    if whole_model and options.per_layer:
        raise UsageError(
            f"--per-layer does not go with {run.name}: its layers share one choice, and what is read is an expert of all layers"
        )
    decodes = isinstance(network, Decoder) and run.sample.mask is None
    per_text = decodes and all(map(_one_choice, layers))
    if not (isinstance(network, Decoder) and decodes and (per_text or network.cacheable)):
        return Served("pass", False, whole_model, 0)
    positions = network.positions
    prompt = max(1, positions // 2) if options.prompt is None else options.prompt
    if not 1 <= prompt < positions:
        raise UsageError(f"--prompt is {prompt}; it must be between 1 and {positions - 1}, as texts have {positions} positions")
    return Served("decode", per_text, whole_model, prompt)


def _one_choice(layer: MixtureLayer) -> bool:
    """Return True if all tokens of a group share a choice; a layer that takes the choice of another shares it too."""
    return layer.eval_capacity_factor is None and routes_groups_alike(layer.router)


def held_to(layers: Sequence[MixtureLayer], routings: Sequence[Routing], examples: int) -> ExitStack:
    """A context in which every token of an example goes where its first one went in `routings`."""
    stack = ExitStack()
    for layer, routing in zip(layers, routings, strict=True):
        plan = routing.plan
        assert isinstance(plan, TopK)
        expert, weight = (value.view(examples, -1, value.shape[-1])[:, 0] for value in (plan.expert, plan.weight))

        def held(plan: Plan, groups: int, positions: int, expert: Tensor = expert, weight: Tensor = weight) -> Plan:
            assert isinstance(plan, TopK)
            return replace(plan, expert=expert.repeat_interleave(positions, 0), weight=weight.repeat_interleave(positions, 0))

        stack.enter_context(rerouted(layer, held))
    return stack
