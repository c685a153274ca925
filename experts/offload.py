"""Experts that stay on disk: one file, a memory that holds a few of them, and a bank that asks it for one expert at a time.

Axes: R rows, E experts, D features.

What is read at once is a *unit*: one expert of one layer, or, where all layers choose alike, the experts of one number in all
layers, which is an adapter where experts are of low rank. Everything else of a model stays in memory.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer

T = TypeVar("T")
Weights = Mapping[int, Mapping[str, Tensor]]
"""Of one unit: layer -> name -> the expert's part of that parameter."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Recent(Generic[T]):
    """At most `slots` units at once; the one that was not asked for longest makes room (LRU), before another is loaded.

    load: unit -> what is held of it. hits and misses count what was asked for by `get`. ValueError for less than one slot.
    """

    def __init__(self, slots: int, load: Callable[[int], T]) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be at least 1, as an expert must be in memory to run")
        self.slots, self._load = slots, load
        self._held: OrderedDict[int, T] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._held)

    def warm(self, units: Iterable[int]) -> None:
        """Hold the first `slots` of `units`, and nothing else, the first one as the most recent; counted nowhere."""
        self._held.clear()
        for unit in reversed(list(units)[: self.slots]):
            self._held[unit] = self._load(unit)

    def order(self, units: Iterable[int]) -> list[int]:
        """Units that are asked for in no particular order: those that are held come first, so that none of them has to make
        room for another before its turn. By number otherwise."""
        return sorted(units, key=lambda unit: (unit not in self._held, unit))

    def get(self, unit: int) -> T:
        """What is held of the unit, loaded if need be."""
        if unit in self._held:
            self.hits += 1
            self._held.move_to_end(unit)
            return self._held[unit]
        self.misses += 1
        while len(self._held) >= self.slots:
            self._held.popitem(last=False)
        held = self._held[unit] = self._load(unit)
        return held


class ExpertFile:
    """The experts of several banks in one safetensors file, mapped into memory; a unit is one contiguous piece of it.

    `unit(layer, expert)`: the number of the unit that holds an expert. `whole_model`: units are the experts of one number in
    all layers. `unit_bytes`: of each unit, in bytes, all alike. `bytes_read` counts what `read` has copied from the map. The kernel
    may hold pages of the file in memory by itself (the page cache), in which case no disk is read; cold: it is told to drop
    them all before every read, and then to fetch the unit alone (Linux).
    """

    def __init__(self, path: Path, *, cold: bool = False, device: torch.device | None = None) -> None:
        self.cold, self.device, self.bytes_read = cold, torch.device("cpu") if device is None else device, 0
        with path.open("rb") as file:
            # The format: the header's length in 8 bytes, the header in JSON, the tensors.
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            # A private map: torch takes no memory that it must not write to. It is never written to.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._file = os.dup(file.fileno())
        about = header.pop("__metadata__")
        self.layers, self.experts = int(about["layers"]), int(about["experts"])
        self.whole_model = about["whole_model"] == "true"
        self._parts: dict[int, list[tuple[int, str, torch.dtype, list[int], int, int]]] = {}
        for key, each in header.items():
            unit, layer, name = key.split(".")
            first, last = (start + offset for offset in each["data_offsets"])
            self._parts.setdefault(int(unit), []).append((int(layer), name, _DTYPES[each["dtype"]], each["shape"], first, last))
        (self.unit_bytes,) = {last - first for first, last in map(self._span, self._parts)}

    def close(self) -> None:
        """Give the map and the file back."""
        self._map.close()
        os.close(self._file)

    @property
    def units(self) -> list[int]:
        """All units: the first experts of all layers, then the second ones, and so on."""
        if self.whole_model:
            return sorted(self._parts)
        return [self.unit(layer, expert) for expert in range(self.experts) for layer in range(self.layers)]

    def unit(self, layer: int, expert: int) -> int:
        return expert if self.whole_model else layer * self.experts + expert

    def read(self, unit: int) -> Weights:
        """A copy of the unit's weights, on the device."""
        first, last = self._span(unit)
        if self.cold:
            self._forget(first, last)
        whole = torch.frombuffer(self._map, dtype=torch.uint8, count=last - first, offset=first).to(self.device, copy=True)
        self.bytes_read += last - first
        found: dict[int, dict[str, Tensor]] = {}
        for layer, name, dtype, shape, begin, end in self._parts[unit]:
            found.setdefault(layer, {})[name] = whole[begin - first : end - first].view(dtype).view(shape)
        return found

    def _span(self, unit: int) -> tuple[int, int]:
        parts = self._parts[unit]
        return min(part[-2] for part in parts), max(part[-1] for part in parts)

    def _forget(self, first: int, last: int) -> None:
        # All of the file: pages beside a unit may have come with it when it was read.
        self._map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        # Of what is asked for, all at once, and nothing that the kernel would read ahead.
        self._map.madvise(mmap.MADV_RANDOM)
        page = first - first % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, last - page)


def write_experts(banks: Sequence[ExpertBank], path: Path, *, whole_model: bool = False) -> None:
    """What the experts of `banks`, one for each layer, have to themselves, as `ExpertFile` reads it.

    ValueError unless all banks have as many experts of one size.
    """
    shapes = {tuple((name, value.shape, value.dtype) for name, value in bank.own_parameters().items()) for bank in banks}
    if len(shapes) != 1:
        raise ValueError(f"the experts of the {len(banks)} layers differ in number, size or type; they must be alike")
    experts = banks[0].num_experts
    tensors = {}
    for layer, bank in enumerate(banks):
        for name, value in bank.own_parameters().items():
            for expert, part in enumerate(value.detach().cpu().unbind(0)):
                unit = expert if whole_model else layer * experts + expert
                # The format sorts tensors of one type by name, so that those of a unit lie together.
                tensors[f"{unit:06d}.{layer:04d}.{name}"] = part.contiguous()
    about = {"layers": str(len(banks)), "experts": str(experts), "whole_model": str(whole_model).lower()}
    save_file(tensors, path, about)
    # Pages that were not written yet cannot be dropped, which a cold read asks for.
    with path.open("rb") as file:
        os.fsync(file.fileno())


class DiskBank(ExpertBank):
    """Stands in for `bank` without its experts: `fetch` brings their weights, one after another.

    fetch: numbers of experts -> (number, its part of the bank's own parameters by name) of each, in any order. What the experts
    share (with a rank) is the very parameter of `bank`; their own parameters stay on the meta device. It runs by `loop` alone,
    and gives the outputs of the bank's own loop to the bit.
    """

    def __init__(self, bank: ExpertBank, fetch: Callable[[list[int]], Iterator[tuple[int, Mapping[str, Tensor]]]]) -> None:
        with torch.device("meta"):
            super().__init__(
                bank.kind_name,
                num_experts=bank.num_experts,
                d_model=bank.d_model,
                d_hidden=bank.d_hidden,
                bias=bank.bias,
                init_scale=bank.init_scale,
                rank=bank.kind.rank,
            )
        self.fetch = fetch
        for name in self._shared:
            self.register_parameter(name, getattr(bank, name))

    def loop(self, rows: Tensor, count: Tensor) -> Tensor:
        """As the bank's; experts without a row are not fetched."""
        sizes = count.tolist()
        parts = rows[: sum(sizes)].split(sizes)
        done: dict[int, Tensor] = {}
        for expert, own in self.fetch([expert for expert, size in enumerate(sizes) if size]):
            done[expert] = self.one(parts[expert], own)
            del own  # Else it would be in memory still while the next one is read.
        out = [done[expert] for expert in sorted(done)] or [rows[:0]]
        return torch.cat([*out, out[0].new_zeros(rows.shape[0] - sum(sizes), rows.shape[1])])


class Offloaded:
    """The mixture layers of a model served from an `ExpertFile`, with `slots` units in memory, all layers together, or
    with per_layer each layer by itself.

    `with offloaded.serving():` the layers run with the experts of the file instead of their own; their outputs equal to the bit
    those of `kernel="loop"`. Plans that need every expert for every token (Slots, Blend) run as well, and read all of them.
    ValueError for slots per layer where one unit belongs to all layers.
    """

    def __init__(self, layers: Sequence[MixtureLayer], file: ExpertFile, slots: int, *, per_layer: bool = False) -> None:
        if per_layer and file.whole_model:
            raise ValueError("experts of all layers are read together, so no layer has slots of its own")
        self.layers, self.file = list(layers), file
        self.memories = [Recent(slots, file.read) for _ in (layers if per_layer else [None])]
        for number, memory in enumerate(self.memories):
            memory.warm(unit for unit in file.units if not per_layer or unit // file.experts == number)
        self.banks = [DiskBank(layer.experts, self._fetch(number)) for number, layer in enumerate(layers)]

    @property
    def resident(self) -> int:
        """Units in memory."""
        return sum(map(len, self.memories))

    @property
    def misses(self) -> int:
        """Units that were read since the memory was filled first."""
        return sum(memory.misses for memory in self.memories)

    def _fetch(self, layer: int) -> Callable[[list[int]], Iterator[tuple[int, Mapping[str, Tensor]]]]:
        memory = self.memories[layer % len(self.memories)]

        def fetch(experts: list[int]) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
            numbers = {self.file.unit(layer, expert): expert for expert in experts}
            for unit in memory.order(numbers):
                yield numbers[unit], memory.get(unit)[layer]

        return fetch

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside the block the layers run from the file."""
        own = [(layer.experts, layer.kernel) for layer in self.layers]
        for layer, bank in zip(self.layers, self.banks, strict=True):
            layer.experts, layer.kernel = bank, "loop"
        try:
            yield
        finally:
            for layer, (experts, kernel) in zip(self.layers, own, strict=True):
                layer.experts, layer.kernel = experts, kernel
