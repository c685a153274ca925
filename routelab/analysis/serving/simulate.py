"""What it costs to serve a mixture whose experts do not all fit in memory, as plain data.

Axes: N examples, B examples at a time, S positions, P of them in the prompt, E experts, L mixture layers, V outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.analysis.serving.cache_trace import (
    Trace,
    by_batch,
    fewest_misses,
    hit_rate,
    in_use,
    misses_of,
    shuffled,
    trace_of,
)
from routelab.analysis.serving.serving_options import Options, Served, held_to, how_served, most_slots
from routelab.analysis.serving.step_timing import timed_steps
from routelab.analysis.trained_run import TrainedRun
from routelab.core.errors import UsageError
from routelab.core.intervals import Interval, grouped_interval
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.offload import ExpertFile, write_experts
from routelab.experts.zero_compute import split
from routelab.routers.base import Routing
from routelab.routers.plans import Blend, PerExpert, Plan, Slots, share_TE

Array = NDArray[Any]

BATCH_SIZES = (1, 8, 64)
ALL_SLOTS = 16
"""Up to so many units every number of slots is tried, beyond it some."""
_CHUNK_TOKENS = 4096


def serve_cost(
    run: TrainedRun, folder: Path, options: Options, watch: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """All measures of one run on its sample, for every batch size that fills a batch. folder: on the disk that experts are read
    from; the file is removed again. watch: told the share of the work that is done."""
    layers = run.arm.mixtures
    how = how_served(run, options)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, torch.random.fork_rng():
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))) / "experts.safetensors"
        try:
            write_experts([layer.experts for layer in layers], place, whole_model=how.whole_model)
        except ValueError as error:
            raise UsageError(f"{run.name} cannot be served from one file: {error}") from None
        device = next(run.arm.parameters()).device
        file = ExpertFile(place, cold=options.cold, device=device)
        stack.callback(file.close)
        most = most_slots(run, options)
        slots = slots_to_try(most) if options.slots is None else [number for number in options.slots if number <= most]
        chosen, loss = _choices(run, how)
        sizes = [size for size in BATCH_SIZES if size <= len(run.sample)]
        block_N, _ = run.blocks()
        rows = []
        for number, size in enumerate(sizes):
            counted = _counted(chosen, size, how, file, slots, options, block_N)
            timed: dict[int, dict[str, Any]] = {}
            if options.steps:
                timed = timed_steps(run, how, file, few(slots), options, size)
            rows += [{"batch": size, **row, **timed.get(row["slots"], {})} for row in counted]
            watch((number + 1) / len(sizes))
        experts = sum(value.nbytes for layer in layers for value in layer.experts.own_parameters().values())
        return {
            "run": {key: run.record.get(key) for key in ("arm", "seed", "data", "metric")}
            | {"cell": (run.record.get("provenance") or {}).get("cell"), "folder": str(run.folder), "mlflow": run.run_id},
            "sample": {"examples": len(run.sample), "of": len(run.data.test), "positions": chosen[0].shape[1]},
            "mode": how.mode,
            "prompt": how.prompt,
            "unit": "adapter" if how.whole_model else "expert",
            "per_text": how.per_text,
            "needs_all": all(bool(each.all()) for each in chosen),
            "layers": len(layers),
            "experts": file.experts,
            "in_use": float(np.mean([in_use(each) for each in chosen])),
            "units": len(file.units),
            "unit_bytes": file.unit_bytes,
            "expert_bytes": experts,
            "other_bytes": sum(value.nbytes for value in (*run.arm.parameters(), *run.arm.buffers())) - experts,
            "per_layer": options.per_layer,
            "cold": options.cold,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "loss": grouped_interval(loss, block_N).as_dict(),
            "rows": rows,
        }


def slots_to_try(most: int) -> list[int]:
    """From one to all: every number up to `ALL_SLOTS`, else powers of two and quarters of all."""
    if most <= ALL_SLOTS:
        return list(range(1, most + 1))
    powers = {2**power for power in range(most.bit_length())}
    return sorted({number for number in powers if number < most} | {most * quarter // 4 for quarter in (1, 2, 3, 4)})


def few(slots: Sequence[int]) -> list[int]:
    """Those that are timed: the fewest and the most, and of those between them the nearest below each quarter of the most."""
    most = slots[-1]
    return sorted({max((number for number in slots if number <= most * quarter / 4), default=slots[0]) for quarter in range(5)})


@torch.inference_mode()
def _choices(run: TrainedRun, how: Served) -> tuple[list[Array], Array]:
    """Which experts each token needs, (N, S, E) bool for each layer, and each example's loss, (N,): after its prompt where there is
    one. A text whose prompt chooses has that choice throughout.

    One pass over whole texts finds what decoding them token by token finds, up to rounding where two experts tie.
    """
    layers = run.arm.mixtures
    found: list[list[Array]] = [[] for _ in layers]
    losses = []
    size = max(1, _CHUNK_TOKENS // run.arm.network.positions)
    for number, part in enumerate(torch.arange(len(run.sample)).split(size)):
        batch = run.sample.select(part).to(next(run.arm.parameters()).device)
        needed: list[Array] = []
        hooks = [layer.register_forward_hook(_note(needed, len(batch))) for layer in layers]
        try:
            with ExitStack() as stack:
                if how.per_text:
                    _, routings = run.arm.network(batch.inputs[:, : how.prompt])
                    needed.clear()
                    stack.enter_context(held_to(layers, routings, len(batch)))
                torch.manual_seed(number)
                outputs, _ = run.arm.network(batch.inputs, batch.mask)
        finally:
            for hook in hooks:
                hook.remove()
        for parts, each in zip(found, needed, strict=True):
            parts.append(each)
        targets = batch.targets
        if how.mode == "decode":
            outputs, targets = outputs[:, how.prompt :], targets[:, how.prompt :]
        losses.append(run.arm.task.loss(outputs, targets).double().cpu())
    return [np.concatenate(parts) for parts in found], torch.cat(losses).numpy()


def _note(found: list[Array], examples: int) -> Callable[[MixtureLayer, tuple[Any, ...], tuple[Tensor, Routing]], None]:
    """A hook that appends what of the bank each token needs: (N, S, E) bool."""

    def note(layer: MixtureLayer, args: tuple[Any, ...], result: tuple[Tensor, Routing]) -> None:
        if args[0].ndim == 2:
            return  # It calls itself again, with the batch as one group.
        groups, positions, _ = args[0].shape
        plan: Plan = result[1].plan
        if layer.zero_compute is not None:
            plan = split(plan, layer.experts.num_experts)[0]
        needed = share_TE(plan, groups, positions, kept=True) > 0
        if isinstance(plan, (Blend, Slots, PerExpert)):
            # Rectangular: every expert runs on its rows, whatever they weigh.
            needed = torch.ones_like(needed)
        found.append(needed.view(examples, -1, plan.num_experts).cpu().numpy())

    return note


def _counted(
    chosen: list[Array], size: int, how: Served, file: ExpertFile, slots: list[int], options: Options, block_N: Array
) -> list[dict[str, Any]]:
    """Bytes and hit rates for each number of slots, from the choices alone."""

    def traced(chosen: list[Array]) -> Trace:
        return trace_of(chosen, size, how.prompt, file.unit, at_once=how.mode == "pass")

    trace = traced(chosen)
    by_chance, within = (traced(shuffled(chosen, how.prompt, how.whole_model, seed=0, within=each)) for each in (False, True))
    # A batch of several examples holds windows of as many documents.
    block_B = np.unique(block_N, return_inverse=True)[1] if size == 1 else np.arange(len(block_N) // size)
    rows = []
    for number in slots:
        read, least, drawn, mixed = (
            find(of, number, file.units, options.per_layer)
            for find, of in ((misses_of, trace), (fewest_misses, trace), (misses_of, by_chance), (misses_of, within))
        )
        taken = by_batch(trace, read) * file.unit_bytes
        prompts = by_batch(trace, read, counted=False) * file.unit_bytes
        held = number * (trace.layers if options.per_layer else 1)
        rows.append({
            "slots": number,
            "resident": held,
            "resident_bytes": held * file.unit_bytes,
            "resident_share": held / len(file.units),
            "bytes_per_token": _bytes(taken / trace.tokens, block_B).as_dict(),
            "bytes_per_example": _bytes((taken + prompts) / size, block_B).as_dict(),
            "hit_rate": hit_rate(trace, read, block_B).as_dict(),
            "optimum": hit_rate(trace, least, block_B).mean,
            "chance": hit_rate(by_chance, drawn, block_B).mean,
            "within": hit_rate(within, mixed, block_B).mean,
        })  # fmt: skip
    return rows


def _bytes(values: Array, block_B: Array) -> Interval:
    """Their mean over batches, and its interval over blocks of them; at least 0."""
    found = grouped_interval(values, block_B)
    return replace(found, low=max(found.low, 0.0))
