"""Gradient checkpointing: the selection of the first pass is replayed, not made again.

`torch.utils.checkpoint(layer, x, ..., use_reentrant=False)` calls the layer a second time during backward. Were the router
asked again, rounding or noise could choose other experts than those whose outputs were used, and a router that counts its
load would count twice. So the first pass keeps the routing, and the second is handed it. What is kept is the plan and what
the router needs for its own gradient, (T, D) and (T, E) tensors; the rows of the experts are recomputed.

The older `use_reentrant=True` runs the first pass without gradients and has torch restore the random state: nothing is
kept, the router is asked twice, and counts once, in the pass with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from routelab.routers.base import Routing


@dataclass
class _Kept:
    """The routings of one module's calls in one checkpointed region, and how many were handed out in each backward."""

    routings: list[Routing] = field(default_factory=list)
    given: dict[Any, int] = field(default_factory=dict)


# By region, which lives as long as its graph: nothing is kept once the backward pass is over.
_KEPT: WeakKeyDictionary[Any, WeakKeyDictionary[nn.Module, _Kept]] = WeakKeyDictionary()


def routed_once(module: nn.Module, route: Callable[[], Routing]) -> Routing:
    """`route()`; in the recomputation of a checkpointed region, what it returned in the first pass, detached."""
    region, recomputing = _region()
    if region is None:
        return route()
    kept = _KEPT.setdefault(region, WeakKeyDictionary()).setdefault(module, _Kept())
    if recomputing is not None:
        number = kept.given.get(recomputing, 0)
        kept.given[recomputing] = number + 1
        return kept.routings[number]
    # Saved as they are: left to the checkpoint, they would be waited for in a recomputation that never makes them.
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        routing = route()
    kept.routings.append(_detached(routing))
    return routing


def _region() -> tuple[Any, Any]:
    """The checkpointed region that this code runs in, and, if it is being recomputed, the number of the backward pass.

    torch has no public way to ask. What answers is the pair of hooks that its checkpoint puts around saved tensors.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None, None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    pack = getattr(hooks[0], "__wrapped__", hooks[0]) if hooks else None
    if getattr(pack, "__module__", "") != "torch.utils.checkpoint":
        return None, None
    code, cells = pack.__code__, pack.__closure__ or ()
    inside = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    target = inside.get("target_frame_ref")
    if isinstance(target, ref):
        return target(), inside.get("gid")
    return inside.get("frame"), None


def _detached(routing: Routing) -> Routing:
    """The same values in a plan without a graph; what is saved from it must need a gradient where it did before."""
    plan = routing.plan
    values = {name: value for name, value in vars(plan).items() if isinstance(value, Tensor)}
    plain: dict[str, Any] = {name: value.detach().requires_grad_(value.requires_grad) for name, value in values.items()}
    losses = {name: loss.detach() for name, loss in routing.losses.items()}
    return replace(routing, plan=replace(plan, **plain), losses=losses)
