"""The loss of a trained model with its routing changed: which expert matters, and does it matter who does the work?

Axes: N examples, L mixture layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from routelab.analysis.routing import interventions
from routelab.analysis.routing.routing_capture import predict, rerouted
from routelab.analysis.routing.token_labels import Label
from routelab.analysis.trained_run import TrainedRun
from routelab.core.intervals import grouped_interval
from routelab.routers.plans import Plan

Array = NDArray[Any]
Change = Callable[[Plan, int, int], Plan]


@dataclass(frozen=True)
class Ablation:
    """One changed pass. kind: without, only, random, swapped or even. layer: which one, None = all of them. expert: of
    without and only. loss (N,): the examples' losses."""

    kind: str
    layer: int | None
    expert: int | None
    loss: Array

    def row(self, plain: Array, labels: list[Label], block_N: Array) -> dict[str, Any]:
        """The rise over the losses `plain` (N,), paired by example: mean and 95% t-interval over blocks of examples that hang
        together, of all and of each group of every label of whole examples."""
        rise = self.loss - plain
        by = {
            label.name: {
                name: grouped_interval(rise[label.value == number], block_N[label.value == number]).as_dict()
                for number, name in enumerate(label.names)
                if (label.value == number).any()
            }
            for label in labels
            if not label.of_tokens
        }
        return {
            "kind": self.kind,
            "layer": self.layer,
            "expert": self.expert,
            "loss": float(self.loss.mean()),
            "rise": grouped_interval(rise, block_N).as_dict(),
            "by": by,
        }


def ablations(run: TrainedRun, experts: list[int], watch: Callable[[float], None] = lambda share: None) -> Iterator[Ablation]:
    """Every expert of every layer switched off, then alone; then random, swapped and even routing, in each layer and in all.

    Weights and everything else stay as they were trained, so this says what the trained model leans on, not what a model
    trained without that expert would lose.
    """
    layers: list[int | None] = [*range(len(experts)), *([None] if len(experts) > 1 else [])]
    jobs: list[tuple[str, int | None, int | None]] = []
    for kind in ("without", "only"):
        # Where there is one expert, it is alone already.
        jobs += [
            (kind, layer, expert)
            for layer, count in enumerate(experts)
            for expert in range(count)
            if kind == "without" or count > 1
        ]
    jobs += [(kind, layer, None) for kind in ("random", "swapped", "even") for layer in layers]
    for done, (kind, layer, expert) in enumerate(jobs, start=1):
        yield Ablation(kind, layer, expert, _losses(run, _change(kind, expert), layer))
        watch(done / len(jobs))


def _change(kind: str, expert: int | None) -> Change:
    if kind == "random":
        return partial(interventions.random, generator=torch.Generator().manual_seed(0))
    if kind == "swapped":
        return interventions.swapped
    if kind == "even":
        return lambda plan, groups, positions: interventions.even(plan)
    assert expert is not None
    if kind == "without":
        return lambda plan, groups, positions: interventions.without(plan, expert)
    return lambda plan, groups, positions: interventions.only(plan, expert, groups, positions)


@torch.inference_mode()
def _losses(run: TrainedRun, change: Change, layer: int | None) -> Array:
    chosen = run.arm.mixtures if layer is None else [run.arm.mixtures[layer]]
    losses = []
    with ExitStack() as stack:
        for each in chosen:
            stack.enter_context(rerouted(each, change))
        for number, batch in enumerate(run.batches()):
            losses.append(run.arm.task.loss(predict(run.arm, batch, number).outputs, batch.targets).double().cpu())
    return np.asarray(torch.cat(losses))
