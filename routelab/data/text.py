"""From documents to windows of bytes: whole documents held out, packed with a separator, a domain to every window.

Axes: N windows, S bytes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.core.seeds import key
from routelab.data.base import DataSet
from routelab.data.compression_baselines import text_yardsticks
from routelab.data.task import Batch, InputSpec, Task

SEPARATOR = b"\0"
"""Stands after every document; no document contains it."""

EXCERPT = 16_384
"""Bytes that a long document gives at most while others can still fill the split."""

_CLOSED = 0.8


@dataclass(frozen=True)
class Document:
    """One text. group: documents of one group are near duplicates of each other and are never parted. size: in bytes, about.
    read: gives the text in UTF-8; called only for documents that are used."""

    name: str
    group: str
    size: int
    read: Callable[[], bytes]

    @classmethod
    def of(cls, name: str, group: str, text: str) -> Document:
        """A document that is in memory already."""
        content = text.encode()
        return cls(name, group, len(content), lambda: content)


@dataclass(frozen=True)
class Stream:
    """Concatenated documents, with the unit of each document.

    Attributes:
        text: The bytes.
        ends: Positions after each document's separator, ascending, (P,).
        unit: Number of each document's unit, from 0 within the stream, (P,). Near duplicates are one unit, as they are not
            independent.
    """

    text: bytes
    ends: NDArray[np.int64]
    unit: NDArray[np.int32]

    @classmethod
    def join(cls, documents: Iterable[tuple[str | bytes, bytes]]) -> Stream:
        """Return documents one after another, each followed by the separator.

        Args:
            documents: pairs of the name of a document's unit, and its bytes.
        """
        numbers: dict[str | bytes, int] = {}
        contents, unit = [], []
        for name, content in documents:
            contents.append(content + SEPARATOR)
            unit.append(numbers.setdefault(name, len(numbers)))
        ends = np.cumsum([len(content) for content in contents], dtype=np.int64)
        return cls(b"".join(contents), ends, np.array(unit, np.int32))

    def __len__(self) -> int:
        return len(self.text)

    def cut(self, length: int) -> Stream:
        """Return a stream of the first bytes.

        Args:
            length: Number of bytes.
        """
        count = int(np.searchsorted(self.ends, length)) + 1
        return Stream(self.text[:length], np.minimum(self.ends[:count], length), self.unit[:count])

    def unit_of_bytes(self) -> NDArray[np.int32]:
        """Return the number of the unit that every byte belongs to; a separator belongs to the document that it ends."""
        return np.repeat(self.unit, np.diff(self.ends, prepend=0))

    @property
    def has_groups(self) -> bool:
        """Return whether some unit has several documents."""
        return len(np.unique(self.unit)) < len(self.unit)


@dataclass(frozen=True)
class Splits:
    """What is trained on, validated on and tested on; no item is in two of them."""

    train: list[Document]
    validation: list[Document]
    test: list[Document]


def check_shares(validation: float, test: float) -> None:
    """ValueError unless both are above 0 and leave something to train on."""
    if not (validation > 0 and test > 0 and validation + test <= 0.5):
        raise ValueError(f"validation={validation} and test={test} must be above 0 and together at most 0.5")


def hold_out(documents: Sequence[Document], validation: float, test: float, salt: str) -> Splits:
    """Split by groups, in an order that depends on their names and `salt` alone: about `test` of all bytes, then about
    `validation`; the rest is for training. A group that is larger than what a split still wants goes on to the next."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    total = sum(document.size for document in documents)
    room = {"test": test * total, "validation": validation * total}
    wanted, found = dict(room), {"test": list[Document](), "validation": list[Document](), "train": list[Document]()}
    for name in sorted(groups, key=lambda name: key(salt, name)):
        size = sum(document.size for document in groups[name])
        # A split that is nearly full is closed: what still fitted would be small texts only.
        open_ = (s for s in room if size <= room[s] and room[s] > (1 - _CLOSED) * wanted[s])
        split = next(open_, "train")
        found[split] += groups[name]
        if split != "train":
            room[split] -= size
    return Splits(found["train"], found["validation"], found["test"])


def stream(documents: Sequence[Document], limit: float | None, salt: str) -> Stream:
    """Documents one after another in an order drawn from their names, each followed by the separator, until `limit` bytes. A
    group is a unit.

    With a limit, a document gives at most an excerpt of `EXCERPT` bytes, from a place drawn from its name, so that many
    documents take part; the excerpts grow if they would not reach the limit.
    """
    excerpt = EXCERPT
    if limit is not None:
        largest = max((document.size for document in documents), default=0)
        while sum(min(document.size, excerpt) for document in documents) < limit and excerpt < largest:
            excerpt *= 2
    parts: list[tuple[str, bytes]] = []
    length = 0
    for document in sorted(documents, key=lambda document: key(salt, "order", document.name)):
        if limit is not None and length >= limit:
            break
        content = document.read().replace(SEPARATOR, b"").replace(b"\r\n", b"\n")
        if limit is not None and len(content) > excerpt:
            start = key(salt, "excerpt", document.name) % (len(content) - excerpt)
            # From the start of a line, unless lines are longer than excerpts.
            start = content.find(b"\n", start, start + excerpt // 2) + 1 or start
            content = content[start : start + excerpt]
        parts.append((document.group, content))
        length += len(content) + len(SEPARATOR)
    return Stream.join(parts)


def windows(text: bytes, window: int, most: int | None = None) -> Tensor:
    """Consecutive windows with the byte that follows each: (N, S + 1) uint8. The last byte of one is the first of the next,
    so that every byte but the first is predicted once; an incomplete window is left out."""
    number = max(0, (len(text) - 1) // window)
    number = number if most is None else min(number, most)
    if not number:
        return torch.zeros(0, window + 1, dtype=torch.uint8)
    flat = torch.frombuffer(bytearray(text[: number * window + 1]), dtype=torch.uint8)
    return flat.unfold(0, window + 1, window).contiguous()


def target_units(stream: Stream, window: int, number: int) -> Tensor:
    """Return the unit of every target of the first `number` windows of a stream: (N, S) int32."""
    unit = stream.unit_of_bytes()[1 : number * window + 1]
    return torch.from_numpy(unit).view(number, window)


def batch_of(parts: Sequence[Tensor], units: Sequence[Tensor] | None = None) -> Batch:
    """One batch from the windows of each domain, (N, S + 1), taken in turn so that any stretch of it holds all domains.

    units: the unit of every target, (N, S) for each domain, or None.
    """
    domain = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    place = torch.cat([(torch.arange(len(part)) + 0.5) / max(1, len(part)) for part in parts])
    order = torch.argsort(place, stable=True)
    rows = torch.cat(list(parts))[order]
    unit = None if units is None else torch.cat(list(units))[order]
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), domain=domain[order], unit=unit)


def text_data(
    name: str, streams: Mapping[str, tuple[Stream, Stream, Stream]], window: int, source: str, *, balanced: bool = False
) -> DataSet:
    """A language-modelling data set from (train, validation, test) streams per domain.

    Every target of the test split keeps the number of its unit, through windows and packing. No unit is in two domains.

    balanced: every domain gives as many windows to a split as the smallest does. ValueError if a split has no window.
    """
    if window < 2:
        raise ValueError(f"window is {window}; it must be at least 2 bytes")
    batches = []
    for place, split in enumerate(("train", "validation", "test")):
        parts = [windows(texts[place].text, window) for texts in streams.values()]
        if balanced:
            least = min(len(part) for part in parts)
            parts = [part[:least] for part in parts]
        if not sum(len(part) for part in parts):
            sizes = ", ".join(f"{domain} {len(texts[place])}" for domain, texts in streams.items())
            raise ValueError(f"window={window} is longer than the {split} split of a domain (bytes: {sizes})")
        tests = [texts[place] for texts in streams.values()]
        batches.append(batch_of(parts, _units_of(tests, parts, window) if split == "test" else None))
    train, validation, test = batches
    counts = torch.bincount(train.inputs.flatten().long(), minlength=256)
    unit = "document group" if any(texts[2].has_groups for texts in streams.values()) else "document"
    task = Task(name, "language", InputSpec("text", (window,), vocab_size=256), 256, counts, unit=unit)
    return DataSet(
        task, train, validation, test, source, domain_names=tuple(streams), yardsticks=partial(text_yardsticks, train, test)
    )


def _units_of(streams: Sequence[Stream], parts: Sequence[Tensor], window: int) -> list[Tensor]:
    """Return the unit of every target of each domain's windows, numbered across domains."""
    first, units = 0, []
    for text, part in zip(streams, parts, strict=True):
        units.append(target_units(text, window, len(part)) + first)
        first += int(text.unit.max(initial=-1)) + 1
    return units


def documents(data: DataSet) -> NDArray[np.int64] | None:
    """Which document each example of the test split begins in, (N,); None where examples are no windows of longer texts.

    Windows of a domain lie in a split in the order of the text, and a zero byte ends each document.
    """
    test = data.test
    if data.task.kind != "language" or data.task.inputs.vocab_size != 256:
        return None
    ends = (test.inputs == SEPARATOR[0]).sum(1).numpy()
    if not ends.any():
        return None
    domain = np.zeros(len(test), dtype=np.int64) if test.domain is None else test.domain.numpy()
    document = np.zeros(len(test), dtype=np.int64)
    for number in np.unique(domain):
        mine = domain == number
        document[mine] = np.cumsum(ends[mine]) - ends[mine]
    return domain * (int(document.max()) + 1) + document
