"""What a memory for a few experts has to read: the requests of a sample, replayed. Pure functions of choices.

Axes: N examples, S positions, E experts, L mixture layers. Units are what is read at once, see `routelab.experts.offload`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.core.intervals import Interval, ratio_interval
from routelab.experts.offload import Recent

Array = NDArray[Any]


@dataclass(frozen=True)
class Trace:
    """Requests in the order in which a server meets them. units: asked for at once, by one layer for all tokens of one step.
    batch: the number of the batch of examples that asks. counted: False in the prompt. layers: L, request i is of layer i % L.
    tokens: counted tokens of a batch."""

    units: list[list[int]]
    batch: Array
    counted: Array
    layers: int
    tokens: int

    @property
    def asked(self) -> Array:
        """Experts asked for by each request."""
        return np.array([len(units) for units in self.units])


def trace_of(
    chosen: Sequence[Array], size: int, prompt: int, unit: Callable[[int, int], int], *, at_once: bool = False
) -> Trace:
    """The requests of `size` examples at a time; examples that fill no batch are left out.

    chosen: which experts each token needs, (N, S, E) bool for each layer. prompt: positions that are computed in one step
    before the others, which follow one by one; at_once: all positions are one step, which counts. unit: (layer, expert) ->
    its unit.
    """
    count, positions, _ = chosen[0].shape
    steps = [slice(0, positions)] if at_once else [slice(0, prompt), *(slice(s, s + 1) for s in range(prompt, positions))]
    units, batches, counted = [], [], []
    for batch in range(count // size):
        examples = slice(batch * size, (batch + 1) * size)
        for number, step in enumerate(steps):
            for layer, chosen_NSE in enumerate(chosen):
                needed = np.flatnonzero(chosen_NSE[examples, step].any(axis=(0, 1)))
                units.append([unit(layer, int(expert)) for expert in needed])
                batches.append(batch)
                counted.append(at_once or number > 0)
    tokens = size * (positions if at_once else positions - prompt)
    return Trace(units, np.array(batches), np.array(counted), len(chosen), tokens)


def shuffled(chosen: Sequence[Array], prompt: int, together: bool, seed: int, *, within: bool = False) -> list[Array]:
    """The choices of all tokens dealt out anew: as many tokens with each set of experts as before, in no order. Those of
    prompts stay in prompts. together: layers that choose alike are dealt out alike; otherwise each by itself. within: those of
    a text stay in the text."""
    random = np.random.default_rng(seed)
    out = []
    for layer, chosen_NSE in enumerate(chosen):
        if together and layer:
            random = np.random.default_rng(seed)
        dealt = chosen_NSE.copy()
        for part in (slice(0, prompt), slice(prompt, None)):
            if within:
                order_NS = random.random(chosen_NSE[:, part].shape[:2]).argsort(1)
                dealt[:, part] = np.take_along_axis(chosen_NSE[:, part], order_NS[..., None], 1)
                continue
            flat = chosen_NSE[:, part].reshape(-1, chosen_NSE.shape[-1])
            dealt[:, part] = flat[random.permutation(len(flat))].reshape(dealt[:, part].shape)
        out.append(dealt)
    return out


def in_use(chosen_NSE: Array) -> float:
    """As many equally loaded experts as the load of one layer amounts to: exp of its entropy. 1 where one expert gets all."""
    load = chosen_NSE.sum((0, 1)) / max(1, chosen_NSE.sum())
    taken = load[load > 0]
    return float(np.exp(-(taken * np.log(taken)).sum()))


@dataclass(frozen=True)
class Replay:
    """misses: units read for each request. accesses: the unit of every single access in its order, and the request it is of."""

    misses: Array
    accesses: list[tuple[int, int]]


def replay(requests: Sequence[Sequence[int]], slots: int, start: Sequence[int] = ()) -> Replay:
    """Least recently used: what a server's memory of `slots` units does. start: see `routelab.experts.offload.Recent.warm`."""
    memory: Recent[None] = Recent(slots, lambda unit: None)
    memory.warm(start)
    misses, accesses = [], []
    for number, units in enumerate(requests):
        before = memory.misses
        for unit in memory.order(units):
            memory.get(unit)
            accesses.append((unit, number))
        misses.append(memory.misses - before)
    return Replay(np.array(misses, dtype=np.int64), accesses)


def optimum(accesses: Sequence[int], slots: int, start: Sequence[int] = ()) -> Array:
    """Which accesses miss, (len,) bool, if what makes room is always that which is needed again last (Belady 1966): no policy
    that loads on demand misses less often on these accesses in this order. start: in memory at first, as far as there is room."""
    # Not math.inf: what is never needed again goes first, and among those the order does not matter.
    never = len(accesses)
    following, seen = [never] * len(accesses), dict[int, int]()
    for place in range(len(accesses) - 1, -1, -1):
        following[place] = seen.get(accesses[place], never)
        seen[accesses[place]] = place
    held = {unit: seen.get(unit, never) for unit in start[:slots]}
    last = [(-needed, unit) for unit, needed in held.items()]
    heapq.heapify(last)
    missed = np.zeros(len(accesses), dtype=bool)
    for place, unit in enumerate(accesses):
        if unit not in held:
            missed[place] = True
            while len(held) >= slots:
                needed, other = heapq.heappop(last)
                # An entry is out of date where its unit has been asked for since.
                if held.get(other) == -needed:
                    del held[other]
        held[unit] = following[place]
        heapq.heappush(last, (-following[place], unit))
    return missed


def misses_of(trace: Trace, slots: int, start: Sequence[int], per_layer: bool = False) -> Array:
    """Units that LRU reads for each request of the trace. per_layer: each layer has the slots for itself, and units are numbered
    layer by layer."""
    read = np.zeros(len(trace.units), dtype=np.int64)
    for part, first in _parts(trace, start, per_layer):
        read[part] = replay(trace.units[part], slots, first).misses
    return read


def fewest_misses(trace: Trace, slots: int, start: Sequence[int], per_layer: bool = False) -> Array:
    """Likewise, what Belady's rule reads on the accesses that LRU makes."""
    read = np.zeros(len(trace.units), dtype=np.int64)
    for part, first in _parts(trace, start, per_layer):
        found = replay(trace.units[part], slots, first)
        missed = optimum([unit for unit, _ in found.accesses], slots, first)
        read[part] = np.bincount([number for _, number in found.accesses], missed, len(found.misses))
    return read


def _parts(trace: Trace, start: Sequence[int], per_layer: bool) -> Iterator[tuple[slice, Sequence[int]]]:
    if not per_layer:
        yield slice(None), start
        return
    each = math.ceil(len(start) / trace.layers)
    for layer in range(trace.layers):
        yield slice(layer, None, trace.layers), [unit for unit in start if unit // each == layer]


def by_batch(trace: Trace, values: Array, counted: bool = True) -> Array:
    """Sums over the requests of each batch of examples, those that count or those of the prompts."""
    which = trace.counted == counted
    return np.bincount(trace.batch[which], values[which], trace.batch.max() + 1)


def hit_rate(trace: Trace, misses: Array, block_B: Array) -> Interval:
    """The share of the requests that count that found their expert in memory; a request is one layer's for one expert in one step.
    misses: units read for each request of the trace. block_B: which batches of examples hang together, as numbers from 0.

    Its t-interval is over blocks (`ratio_interval`). Bounds lie between 0 and 1; NaN where nothing is asked for.
    """
    asked, missed = (np.bincount(block_B, by_batch(trace, values)) for values in (trace.asked, misses))
    found = ratio_interval(asked - missed, asked)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
