"""Initial weights from a trained run: a run goes on from another, and a dense model becomes a mixture.

Axes: E experts, D features, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import Arm
from routelab.core.errors import UsageError
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer


@torch.no_grad()
def begin_from(arm: Arm, state: Mapping[str, Tensor], run: str) -> None:
    """Fill a built arm with the weights of `run`, as `taken` says; what stays is as it was drawn.

    Tables that a router reads off the embeddings are read off those of the run.
    """
    found, own = taken(arm, state, run), arm.state_dict()
    for name, value in found.items():
        # One source stands for all experts.
        own[name].copy_(value.expand_as(own[name]) if value.ndim < own[name].ndim else value)
    assert isinstance(arm, SingleBackbone)
    arm.calibrate(layer for prefix, layer in _mixtures(arm).items() if not _below(f"{prefix}.router.", found))


def taken(arm: Arm, state: Mapping[str, Tensor], run: str) -> dict[str, Tensor]:
    """What each of the arm's values is taken from, by its name (Komatsuzaki et al. 2022, Sparse Upcycling).

    Values of the same name and shape are those of the run. Where a dense feed-forward of the run has become a mixture, `up`
    (D, H) and the like are the source of all experts' (E, D, H). A layer's router is the run's if that has the same values, by
    name and shape; else it is drawn afresh, and so are the low-rank updates of experts that share the run's feed-forward.
    Nothing is copied here, so that an arm on the meta device will do.

    UsageError, naming the first value that does not fit, if there is anything else in the arm, or anything but a router left
    over in the run.
    """
    if not isinstance(arm, SingleBackbone):
        raise UsageError(
            f"init.from={run!r}: arm {arm.spec.name!r} is not one backbone, dense or routed; give that arm init.from: null"
        )
    layers, own = _mixtures(arm), arm.state_dict()
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for prefix in layers:
        routers = [_below(f"{prefix}.router.", values) for values in (own, state)]
        if {name: value.shape for name, value in routers[0].items()} == {n: value.shape for n, value in routers[1].items()}:
            found |= routers[1]
    for name, value in own.items():
        place = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), "")
        if name in found or (place and name.startswith(f"{place}.router.")):
            continue
        bank = layers[place].experts if place and name.startswith(f"{place}.experts.") else None
        if name in state:
            found[name] = _same_shape(name, value, state[name], run)
        elif isinstance(bank, ExpertBank):
            own_name = name.removeprefix(f"{place}.experts.")
            dense = f"{place}.{own_name}"
            if dense in state:
                found[name] = _copied(name, value, state[dense], run)
                used.add(dense)
            elif bank.kind.rank is None or own_name not in bank.own_parameters():
                raise _missing(name, value, run)
        else:
            raise _missing(name, value, run)
    for name, value in state.items():
        if name not in used and name not in found and ".router." not in name:
            raise UsageError(f"init.from={run!r}: the run's {name!r} of shape {tuple(value.shape)} has no place in this arm")
    return found


def _mixtures(arm: Arm) -> dict[str, MixtureLayer]:
    return {name: module for name, module in arm.named_modules() if isinstance(module, MixtureLayer)}


def _below(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name.startswith(prefix)}


def _same_shape(name: str, value: Tensor, source: Tensor, run: str) -> Tensor:
    if source.shape != value.shape:
        raise UsageError(
            f"init.from={run!r}: {name!r} has the shape {tuple(value.shape)} here and {tuple(source.shape)} in the run; "
            "they must be equal"
        )
    return source


def _copied(name: str, value: Tensor, source: Tensor, run: str) -> Tensor:
    """The source of every expert's values, or of those that the experts share."""
    if source.shape not in (value.shape, value.shape[1:]):
        dense = tuple(source.shape)
        raise UsageError(
            f"init.from={run!r}: {name!r} has the shape {tuple(value.shape[1:])} in each expert and {dense} in the run's dense "
            "feed-forward; copied experts are as wide as that: set experts.hidden to its width, and match.on=none"
        )
    return source


def _missing(name: str, value: Tensor, run: str) -> UsageError:
    return UsageError(f"init.from={run!r}: {name!r} of shape {tuple(value.shape)} is nowhere in the run")
