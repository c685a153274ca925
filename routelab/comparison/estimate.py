"""What a comparison will cost, and what it can show, before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from routelab.baselines.base import Arm
from routelab.baselines.build import make_arm
from routelab.comparison.execute import default_workers, gpus
from routelab.comparison.grid import Row, training_flops
from routelab.comparison.prepared_comparison import Plan
from routelab.comparison.statistics.power import detectable_effect
from routelab.core.errors import PluginError, UsageError
from routelab.data.task import Batch
from routelab.records.run_cache import finished

_PILOT_STEPS = 2
_PILOT_FLOPS = 2e10
"""Of a step: beyond, timing a few of each arm beforehand would itself take long."""


@dataclass(frozen=True)
class Outlook:
    """runs: to train, of which `uncounted` have a cost that is not known beforehand (references, budgets in seconds). flops:
    model FLOPs of the others; seconds: of those on all workers together, None where it is not known.

    effect: the smallest difference from the reference that as many seeds find 8 times in 10, in standard deviations between
    seeds, with the level shared among the arms; None with one seed.
    """

    runs: int
    uncounted: int
    flops: float
    seconds: float | None
    effect: float | None


def outlook(ready: Plan) -> Outlook:
    """Look ahead. Times a few steps of every arm, where there is no GPU and steps are small."""
    config = ready.resolved.config
    rows = {row.label: row for row in ready.rows}
    todo = [(rows[job.spec.label], job.spec.budget) for job in ready.jobs if finished(ready.resolved.output, job.key) is None]
    costs = [(row, training_flops(config, row.matched, budget, ready.data)) for row, budget in todo]
    counted = [(row, cost) for row, cost in costs if cost is not None]
    workers = config.workers or default_workers(config.trainer)
    seconds: float | None = None
    if config.budget.seconds is not None:
        seconds = sum(budget.seconds or 0.0 for _, budget in todo) / workers
    elif not gpus(config.trainer):
        pace = {label: _seconds_per_flop(row, ready) for label, row in {row.label: row for row, _ in counted}.items()}
        if None not in pace.values():
            seconds = sum((pace[row.label] or 0.0) * cost for row, cost in counted) / workers
    seeds = len(ready.seeds)
    others = max(1, len(ready.labels) - 1)
    effect = detectable_effect(seeds, alpha=config.statistics.alpha / others) if seeds > 1 else None
    return Outlook(len(todo), len(todo) - len(counted), sum(cost for _, cost in counted), seconds, effect)


def _seconds_per_flop(row: Row, ready: Plan) -> float | None:
    """Of a whole run. Timed on one thread, as a worker has, forward and backward."""
    size = ready.resolved.config.trainer.batch_size
    per_example = row.matched.train_flops_per_example
    if per_example is None or per_example * size > _PILOT_FLOPS:
        return None
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    try:
        arm = make_arm(row.matched.choice.spec, ready.data.task, 0)
        (batch, index), times = first_batch(arm, ready.data.train, size), []
        for _ in range(1 + _PILOT_STEPS):
            started = time.perf_counter()
            arm.loss(batch, index).total.backward()
            times.append(time.perf_counter() - started)
    except (PluginError, UsageError, RuntimeError, ValueError, TypeError, AttributeError, LookupError):
        # It will say so itself, when it is its turn.
        return None
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    # Both count every round of an arm whose members train one after another.
    return min(times[1:]) * arm.rounds / (per_example * size)


def first_batch(arm: Arm, train: Batch, size: int) -> tuple[Batch, Tensor]:
    """Prepare the arm for its first stage; a batch as `Arm.loss` takes it, of the first `size` examples, and their positions.

    Where members see batches of their own, all of them are given this one.
    """
    arm.prepare(train)
    arm.begin(0)
    arm.train()
    index = torch.arange(size)
    if arm.streams:
        index = index.expand(len(arm.streams), size)
    return train.select(index), index
