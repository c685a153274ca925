"""What it costs to serve a mixture whose experts do not all fit in memory, as plain data.

Axes: N examples, B examples at a time, S positions, P of them in the prompt, E experts, L mixture layers, V outputs.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.task import Batch
from experts.mixture import MixtureLayer
from experts.offload import ExpertFile, Offloaded, write_experts
from experts.zero_compute import split
from routelab.analysis.observe import rerouted
from routelab.analysis.runs import TrainedRun
from routelab.analysis.trace import by_batch, fewest_misses, in_use, misses_of, shuffled, trace_of
from routelab.backbones.attention import KeyValues
from routelab.backbones.decoder import Decoder
from routelab.comparison.statistics import Interval, mean_interval, median_interval
from routers.contract import RouterInput, Routing, routed
from routers.errors import UsageError
from routers.plans import Blend, PerExpert, Plan, Slots, TopK, share_TE

Array = NDArray[Any]

BATCH_SIZES = (1, 8, 64)
ALL_SLOTS = 16
"""Up to so many units every number of slots is tried, beyond it some."""
_LONGEST = 20.0
"""Seconds of timing beyond which no further batch is begun."""
_WARM = 8
"""Steps before the clock starts."""
_CHUNK_TOKENS = 4096
_PROBED = 32


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


def serve_cost(
    run: TrainedRun, folder: Path, options: Options, watch: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """All measures of one run on its sample, for every batch size that fills a batch. folder: on the disk that experts are read
    from; the file is removed again. watch: told the share of the work that is done."""
    layers = run.arm.mixtures
    how = _how(run, options)
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
        most = _most(run, options)
        slots = slots_to_try(most) if options.slots is None else [number for number in options.slots if number <= most]
        chosen, loss = _choices(run, how)
        expert_bytes = file.unit_bytes // (len(layers) if how.whole_model else 1)
        sizes = [size for size in BATCH_SIZES if size <= len(run.sample)]
        rows = []
        for number, size in enumerate(sizes):
            counted = _counted(chosen, size, how, file, slots, options, expert_bytes)
            timed: dict[int, dict[str, Any]] = {}
            if options.steps:
                timed = _timed(run, how, file, few(slots), options, size)
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
            "loss": mean_interval(loss.tolist()).as_dict(),
            "rows": rows,
        }


def check_slots(runs: Sequence[TrainedRun], options: Options) -> None:
    """UsageError unless every number of slots is possible for one of the runs at least, and drops can be asked for."""
    if options.steps < 0:
        raise UsageError(f"--steps is {options.steps}; it must be at least 0")
    if options.cold and not (hasattr(os, "posix_fadvise") and hasattr(mmap, "MADV_DONTNEED")):
        raise UsageError("--cold needs a system that can be told to drop pages of a file, such as Linux")
    units = [_most(run, options) for run in runs]
    for number in options.slots or ():
        if not 1 <= number <= max(units):
            of = runs[units.index(max(units))].name
            per = " per layer" if options.per_layer else ""
            raise UsageError(f"--slots is {number}; it must be between 1 and the {max(units)} experts{per} of {of}")


def _most(run: TrainedRun, options: Options) -> int:
    """Units of a run, or where every layer has slots of its own, of a layer."""
    layers = run.arm.mixtures
    return layers[0].experts.num_experts * (1 if options.per_layer or _whole_model(layers) else len(layers))


def _whole_model(layers: Sequence[MixtureLayer]) -> bool:
    return len(layers) > 1 and all(getattr(layer.router, "whole_model", False) for layer in layers)


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


def _how(run: TrainedRun, options: Options) -> Served:
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


@torch.no_grad()
def _one_choice(layer: MixtureLayer) -> bool:
    """Whether all tokens of a group go to the same experts with the same weights. Asked of the router on random tokens, so that it
    holds for any router; a layer that takes the choice of another was asked there."""
    router = layer.router
    if router.follows and getattr(router, "whole_model", False):
        return True
    device = next(layer.experts.parameters()).device
    x = torch.randn(2, _PROBED, router.d_model, generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.arange(2 * _PROBED, device=device).view(2, -1) % (getattr(router, "vocab_size", None) or 256)
    plan = routed(router, RouterInput(x, ids)).plan
    if not isinstance(plan, TopK):
        return False
    parts = (value.view(2, _PROBED, -1) for value in (plan.expert, plan.weight))
    return layer.eval_capacity_factor is None and all(bool((part == part[:, :1]).all()) for part in parts)


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
                    stack.enter_context(_held_to(layers, routings, len(batch)))
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


def _held_to(layers: Sequence[MixtureLayer], routings: Sequence[Routing], examples: int) -> ExitStack:
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


def _counted(
    chosen: list[Array], size: int, how: Served, file: ExpertFile, slots: list[int], options: Options, expert_bytes: int
) -> list[dict[str, Any]]:
    """Bytes and hit rates for each number of slots, from the choices alone."""
    at_once = how.mode == "pass"
    trace = trace_of(chosen, size, how.prompt, file.unit, at_once=at_once)
    dealt = shuffled(chosen, how.prompt, how.whole_model, seed=0)
    by_chance = trace_of(dealt, size, how.prompt, file.unit, at_once=at_once)
    chance_asked = by_batch(by_chance, by_chance.asked) * expert_bytes
    asked = by_batch(trace, trace.asked) * expert_bytes
    rows = []
    for number in slots:
        read, least, drawn = (
            find(of, number, file.units, options.per_layer)
            for find, of in ((misses_of, trace), (fewest_misses, trace), (misses_of, by_chance))
        )
        taken = by_batch(trace, read) * file.unit_bytes
        prompts = by_batch(trace, read, counted=False) * file.unit_bytes
        held = number * (trace.layers if options.per_layer else 1)
        rows.append({
            "slots": number,
            "resident": held,
            "resident_bytes": held * file.unit_bytes,
            "resident_share": held / len(file.units),
            "bytes_per_token": mean_interval((taken / trace.tokens).tolist()).as_dict(),
            "bytes_per_example": mean_interval(((taken + prompts) / size).tolist()).as_dict(),
            "hit_rate": _rate(taken, asked).as_dict(),
            "optimum": _rate(by_batch(trace, least) * file.unit_bytes, asked).mean,
            "chance": _rate(by_batch(by_chance, drawn) * file.unit_bytes, chance_asked).mean,
        })  # fmt: skip
    return rows


def _rate(taken: Array, asked: Array) -> Interval:
    """The share of the bytes asked for that need not be read, over batches."""
    return mean_interval((1 - taken / np.maximum(asked, 1)).tolist())


@dataclass
class _Setting:
    """One way to run the model. served: None is the model as it is. seconds: of each timed step; work: of the processor, in the same
    step; prompts: of each timed prompt. stored: bytes that timed steps had fetched from storage."""

    served: Offloaded | None
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    stored: int = 0

    def step(self, call: Callable[[], Any], timed: bool) -> Any:
        """`call()` in this setting."""
        before = _storage_bytes() if timed else 0
        out, seconds, work = self._run(call)
        if timed:
            self.seconds.append(seconds)
            self.work.append(work)
            self.stored += _storage_bytes() - before
        return out

    def prompt(self, call: Callable[[], Any], timed: bool) -> Any:
        """Likewise, of what comes before the steps."""
        out, seconds, _ = self._run(call)
        if timed:
            self.prompts.append(seconds)
        return out

    def _run(self, call: Callable[[], Any]) -> tuple[Any, float, float]:
        with self.served.serving() if self.served is not None else nullcontext():
            started, worked = time.perf_counter(), time.process_time()
            out = call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return out, time.perf_counter() - started, time.process_time() - worked


@torch.inference_mode()
def _timed(
    run: TrainedRun, how: Served, file: ExpertFile, slots: list[int], options: Options, size: int
) -> dict[int, dict[str, Any]]:
    """By number of slots the seconds of a step, against the model with all experts in memory, side by side: at every step
    all settings take turns. The first batch warms up."""
    layers = run.arm.mixtures

    def offloaded(number: int) -> _Setting:
        return _Setting(Offloaded(layers, file, number, per_layer=options.per_layer))

    # What is on disk is held to what comes from the same file with nothing left on disk.
    plain, whole = _Setting(None), offloaded(file.experts if options.per_layer else len(file.units))
    settings = [offloaded(number) for number in slots]
    everyone = [plain, whole, *settings]
    apart, equal, began = 0.0, True, time.monotonic()
    for number, batch in enumerate(_batches(run, size)):
        if len(plain.seconds) >= options.steps or (number > 1 and time.monotonic() - began > _LONGEST):
            break
        for outputs in _steps(run, how, batch, everyone, number, timed=number > 0, limit=options.steps):
            equal = equal and all(torch.equal(other, outputs[1]) for other in outputs[2:])
            apart = max(apart, float((outputs[0] - outputs[1]).abs().max()))
    base, tokens = np.array(plain.seconds), 1 if how.mode == "decode" else run.arm.network.positions
    rows: dict[int, dict[str, Any]] = {}
    for number, setting in zip(slots, settings, strict=True):
        taken = np.array(setting.seconds)
        rows[number] = {
            "milliseconds": 1e3 * float(np.median(taken)),
            "milliseconds_p95": 1e3 * float(np.quantile(taken, 0.95)),
            "in_memory_milliseconds": 1e3 * float(np.median(base)),
            "ratio": median_interval((taken / base).tolist()).as_dict(),
            "work_ratio": median_interval((np.array(setting.work) / np.array(plain.work)).tolist()).as_dict(),
            "ratio_p95": float(np.quantile(taken, 0.95) / np.quantile(base, 0.95)),
            "prompt_milliseconds": 1e3 * float(np.median(setting.prompts)) if setting.prompts else None,
            "steps": len(taken),
            "outputs_equal": equal,
            "outputs_apart": apart,
            "storage_bytes_per_token": setting.stored / (len(taken) * size * tokens) if options.cold else None,
        }
    return rows


def _batches(run: TrainedRun, size: int) -> Iterator[Batch]:
    """Over and over, so that there is a first one to warm up with."""
    device = next(run.arm.parameters()).device
    while True:
        for first in range(0, len(run.sample) - size + 1, size):
            yield run.sample.select(slice(first, first + size)).to(device)


def _steps(
    run: TrainedRun, how: Served, batch: Batch, settings: list[_Setting], number: int, *, timed: bool, limit: int
) -> Iterator[list[Tensor]]:
    """The outputs of every setting at every step of one batch, settings taking turns in an order that shifts by one each step."""
    network, layers = run.arm.network, run.arm.mixtures

    def turns(step: int) -> list[int]:
        shift = (number + step) % len(settings)
        return [*range(shift, len(settings)), *range(shift)]

    outputs: list[Tensor] = [torch.empty(0)] * len(settings)
    if how.mode == "pass":
        for place in turns(0):
            torch.manual_seed(number)
            outputs[place] = settings[place].step(lambda: network(batch.inputs, batch.mask)[0], timed)
        yield outputs
        return
    assert isinstance(network, Decoder)
    caches: list[list[KeyValues]] = [network.caches() for _ in settings]
    routings: list[list[Routing]] = [[] for _ in settings]

    def call(place: int, positions: slice) -> Callable[[], tuple[Tensor, list[Routing]]]:
        return lambda: network(batch.inputs[:, positions], None, caches[place])

    for place in turns(0):
        outputs[place], routings[place] = settings[place].prompt(call(place, slice(0, how.prompt)), timed)
    yield outputs
    for step in range(how.prompt, network.positions):
        if len(settings[0].seconds) >= limit or (not timed and step >= how.prompt + _WARM):
            return
        for place in turns(step):
            with _held_to(layers, routings[place], len(batch)) if how.per_text else nullcontext():
                outputs[place], _ = settings[place].step(call(place, slice(step, step + 1)), timed)
        yield outputs


def _storage_bytes() -> int:
    """What this process has had fetched from storage so far; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next((line.split()[1] for line in lines if line.startswith("read_bytes")), 0))
