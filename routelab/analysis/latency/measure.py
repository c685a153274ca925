"""How long predictions take: a trained mixture and dense models side by side, from one example at once to thousands.

Axes: B sequences, S positions, V vocabulary.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from routelab.analysis.latency.dense_counterparts import MIXTURE, rivals_of
from routelab.analysis.latency.inference_precision import PRECISIONS, in_precision, usual
from routelab.analysis.latency.profiler import Stopwatch, clock_of, timed_parts
from routelab.analysis.trained_run import TrainedRun
from routelab.backbones.decoder import Decoder
from routelab.baselines.backbone_arm import SingleBackbone
from routelab.core.errors import UsageError
from routelab.core.intervals import median_interval
from routelab.data.task import Batch
from routelab.records.run_lookup import spec_of
from routelab.training.memory import Footprint

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
ROUNDS = 15
LONGEST = 3.0

WHOLE, TOKEN = "whole", "token"

_FEWEST_ROUNDS = 6
"""Fewer have no 95% interval of their median."""
_SHORTEST = 0.02
"""Seconds that one reading lasts at least: shorter passes are repeated within it."""
_PASSES = 20
"""The most passes that are taken apart."""
_PER_SIZE = 30.0
"""Seconds of one size after which there are only `_FEWEST_ROUNDS`."""
_TOKENS = 8
"""Tokens that are decoded in one pass, after a context of half a window."""
_FULL = ("DefaultCPUAllocator", "ALLOC_FAILED")
"""What errors say that have no type of their own where memory is out: torch on a CPU, and NVIDIA's libraries. The word memory alone
would take an illegal access to it for one."""
_ROOM = 0.8
"""Part of the free memory that a pass may be expected to take."""


@dataclass(frozen=True)
class Timed:
    """What is timed: `once()`, which takes `steps` steps (tokens, or one whole batch); seconds: of a warm call."""

    once: Callable[[], None]
    steps: int = 1
    seconds: float = math.nan


@dataclass(frozen=True)
class Settings:
    """sizes: of the batches, in examples. rounds: in each, all models take a turn. longest: seconds of one pass beyond which a
    model is not timed in larger batches. cpu_time: on one thread, whose time at work is counted instead of the time that passes,
    for a machine that does other work too. precision: of `PRECISIONS`; None is the device's `usual` one."""

    sizes: Sequence[int] = SIZES
    rounds: int = ROUNDS
    longest: float = LONGEST
    cpu_time: bool = False
    precision: str | None = None


def clock(
    run: TrainedRun, settings: Settings | None = None, watch: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Latency of the run's arm and of dense models with equal FLOPs and with equal parameters, as plain data.

    rows: for each `mode` ("whole": an example; "token": one more token of each text, with a cache of keys and values), `batch` and
    `arm`: `seconds` of a step (median over rounds with its interval), `per_second` (tokens of text, else examples), `parts` (shares
    of the time), and `ratio`: the mixture's time over this arm's, of the same round each. stopped: why a model has no rows from some
    size on. undecoded: why there is no mode "token".
    """
    settings = settings or Settings()
    device = next(run.arm.parameters()).device
    if settings.cpu_time and device.type == "cuda":
        raise UsageError("--cpu-time counts the work of a CPU; the run would be timed on a GPU here")
    before = torch.get_num_threads()
    torch.set_num_threads(1 if settings.cpu_time else before)
    try:
        return _clock(run, settings, device, watch)
    finally:
        torch.set_num_threads(before)


def _clock(run: TrainedRun, settings: Settings, device: torch.device, watch: Callable[[float], None]) -> dict[str, Any]:
    spec, task = spec_of(run.record), run.data.task
    precision = settings.precision or usual(device)
    arms = {name: in_precision(arm, precision) for name, arm in {MIXTURE: run.arm, **rivals_of(spec, task, device)}.items()}
    reason = _undecodable(run.arm)
    found: dict[str, Any] = {
        "run": {key: run.record.get(key) for key in ("arm", "seed", "data")} | {"folder": str(run.folder), "mlflow": run.run_id},
        "machine": {"device": str(device), "name": _name_of(device), "threads": torch.get_num_threads(),
                    "torch": torch.__version__, "precision": precision,
                    "clock": "cpu time" if settings.cpu_time else "wall"},
        "arms": {
            name: {"flops_per_example": arm.flops_per_example(), "total_params": arm.total_params, "active_params": arm.active_params,
                   "trained": name == MIXTURE}
            for name, arm in arms.items()
        },
        "positions": task.inputs.shape[0] if task.inputs.kind == "text" else None,
        "rounds": settings.rounds, "rows": [], "stopped": [], "undecoded": reason,
    }  # fmt: skip
    modes = [WHOLE] if reason else [WHOLE, TOKEN]
    for number, mode in enumerate(modes):
        left = dict(arms)
        for place, size in enumerate(settings.sizes):
            if MIXTURE in left:
                _at(found, run, left, mode, size, settings)
            watch((number * len(settings.sizes) + place + 1) / (len(modes) * len(settings.sizes)))
    return found


def _at(
    found: dict[str, Any], run: TrainedRun, left: dict[str, SingleBackbone], mode: str, size: int, settings: Settings
) -> None:
    """Add the rows of one size; takes those away from `left` that no larger one is to be tried with."""
    device = next(run.arm.parameters()).device
    now = clock_of(device, settings.cpu_time)
    batch = run.data.test.select(torch.arange(size) % len(run.data.test)).to(device)
    if batch.inputs.is_floating_point():
        batch = replace(batch, inputs=batch.inputs.to(PRECISIONS[found["machine"]["precision"]]))
    timed: dict[str, Timed] = {}
    for name, arm in list(left.items()):
        smaller = [row for row in found["rows"] if (row["mode"], row["arm"]) == (mode, name)]
        tried: Timed | str | None = _expected(smaller[-1], size, device, settings.longest) if smaller else None
        if tried is None:
            tried = _warm(arm, batch, mode, now, settings.longest)
        if isinstance(tried, Timed):
            timed[name] = tried
        else:
            found["stopped"].append({"mode": mode, "arm": name, "batch": size, "reason": tried})
            del left[name]
    if MIXTURE not in timed:
        return
    times = _rounds(timed, now, settings.rounds)
    tokens = (found["positions"] or 1) if mode == WHOLE else 1
    for name, each in timed.items():
        seconds = median_interval(times[name])
        ratio = median_interval([ours / theirs for ours, theirs in zip(times[MIXTURE], times[name], strict=True)])
        parts, held = _parts(left[name], each, device, now)
        found["rows"].append(
            {"mode": mode, "batch": size, "arm": name, "seconds": seconds.as_dict(), "per_second": size * tokens / seconds.mean,
             "ratio": None if name == MIXTURE else ratio.as_dict(), "parts": parts, "bytes": held, "steps": each.steps}
        )  # fmt: skip


def _warm(arm: SingleBackbone, batch: Batch, mode: str, now: Callable[[], float], longest: float) -> Timed | str:
    """A model and a batch, ready to be timed; or why they are not to be."""
    try:
        timed = _whole(arm, batch) if mode == WHOLE else _token(arm, batch)
        timed.once()
        started = now()
        timed.once()
        taken = now() - started
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(each in str(error) for each in _FULL):
            raise
        return "memory is out"
    return f"a pass takes {taken:.1f} s, longer than {longest:g} s" if taken > longest else replace(timed, seconds=taken)


def _expected(smaller: Mapping[str, Any], size: int, device: torch.device, longest: float) -> str | None:
    """Why this size need not be tried, from what a smaller one took."""
    more = size / smaller["batch"]
    seconds, needed = smaller["seconds"]["mean"] * smaller["steps"] * more, (smaller["bytes"] or 0) * more
    # Up to twice as long is worth a try: batches are worked off faster the larger they are.
    if seconds > 2 * longest:
        return f"a pass would take about {seconds:.0f} s, longer than {longest:g} s"
    free = _free(device)
    if free is not None and needed > _ROOM * free:
        return f"a pass would take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    return None


def _rounds(timed: Mapping[str, Timed], now: Callable[[], float], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, one reading of every model a round; the model that begins is another one each round."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    names, began = list(timed), now()
    for turn in range(rounds):
        if turn >= _FEWEST_ROUNDS and now() - began > _PER_SIZE:
            break
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            each = timed[name]
            repeats = max(1, math.ceil(_SHORTEST / each.seconds))
            started = now()
            for _ in range(repeats):
                each.once()
            times[name].append((now() - started) / (repeats * each.steps))
    return times


def _parts(
    arm: SingleBackbone, timed: Timed, device: torch.device, now: Callable[[], float]
) -> tuple[dict[str, float], int | None]:
    """Shares of the time by part, in passes of their own, and the bytes that a pass took beyond what was held."""
    watch, footprint = Stopwatch(now), Footprint()
    with timed_parts(arm.network, watch):
        for _ in range(max(2, min(_PASSES, math.ceil(_PASSES * _SHORTEST / timed.seconds)))):
            watch.start()
            timed.once()
            watch.stop()
    return watch.shares, footprint.peak(device)


def _whole(arm: SingleBackbone, batch: Batch) -> Timed:
    @torch.inference_mode()
    def run_once() -> None:
        arm.network(batch.inputs, batch.mask)

    return Timed(run_once)


@torch.inference_mode()
def _token(arm: SingleBackbone, batch: Batch) -> Timed:
    """Decoding as `Decoder.generate` does it, greedily: a token after a context of half a window, `_TOKENS` of them a pass."""
    network = arm.network
    assert isinstance(network, Decoder)
    context = max(1, network.positions // 2)
    tokens, caches = min(_TOKENS, network.positions - context), network.caches()
    first_B1 = network(batch.inputs[:, :context], None, caches)[0][:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def run_once() -> None:
        fresh_B1 = first_B1
        for cache in caches:
            cache.length = context
        for _ in range(tokens):
            fresh_B1 = network(fresh_B1, None, caches)[0][:, -1].argmax(-1, keepdim=True)

    return Timed(run_once, tokens)


def _undecodable(arm: SingleBackbone) -> str | None:
    if not isinstance(arm.network, Decoder):
        return "it does not generate text"
    if arm.network.positions < 2:
        return "a window holds one token"
    if not arm.network.cacheable:
        return "its choices for a token hang on others, so that no cache of keys and values serves it"
    return None


def _free(device: torch.device) -> int | None:
    """Bytes that a pass could still take; None where nobody says."""
    if device.type == "cuda":
        # What torch keeps of freed tensors is taken from the device, but free for the next ones.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
