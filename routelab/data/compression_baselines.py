"""What a language model's bits per byte are held against: a general compressor, and a model that counts.

Axes: N windows, S predicted bytes of a window, C contexts.
"""

from __future__ import annotations

import lzma

import numpy as np
from numpy.typing import NDArray

from routelab.data.base import Yardstick
from routelab.data.task import Batch

ORDER = 5
VOCABULARY = 256
LARGEST_TRAIN, LARGEST_TEST = 8 * 2**20, 2 * 2**20
"""Bytes that are counted or compressed at most; of more, windows at equal distances."""


def text_yardsticks(train: Batch, test: Batch) -> list[Yardstick]:
    """Bits per byte on the test split: xz alone, xz given the training split, and the order-5 byte model."""
    learnt, train_note = _rows(train, LARGEST_TRAIN, "training")
    asked, test_note = _rows(test, LARGEST_TEST, "test")
    size = asked[:, 1:].size
    alone, primed = xz_bits(asked[:, 1:].tobytes()), xz_bits(asked[:, 1:].tobytes(), learnt[:, 1:].tobytes())
    order = WittenBell(learnt, ORDER).bits(asked)
    return [
        Yardstick("xz -9", "bits_per_byte", alone / size, f"LZMA, preset 9, on {test_note} in one stream"),
        Yardstick(
            "xz -9 after training data",
            "bits_per_byte",
            primed / size,
            f"size of {train_note} and {test_note} in one stream, less the size of the former",
        ),
        Yardstick(
            f"order-{ORDER} byte model",
            "bits_per_byte",
            float(order.mean()),
            f"interpolated Witten-Bell counts of {train_note}, on {test_note}, window by window",
        ),
    ]


def _rows(split: Batch, most: int, name: str) -> tuple[NDArray[np.uint8], str]:
    """Windows with the byte before them, (N, S + 1), one domain after another, and words for how much of the split it is."""
    inputs, targets = split.inputs.cpu().numpy(), split.targets.cpu().numpy()
    rows = np.concatenate([inputs[:, :1], targets], axis=1).astype(np.uint8)
    if split.domain is not None:
        rows = rows[np.argsort(split.domain.cpu().numpy(), kind="stable")]
    wanted = max(1, most // targets.shape[1])
    if len(rows) <= wanted:
        return rows, f"all {targets.size:,} bytes of the {name} split"
    return rows[np.linspace(0, len(rows) - 1, wanted).astype(int)], f"{wanted * targets.shape[1]:,} bytes of the {name} split"


def xz_bits(text: bytes, before: bytes = b"") -> int:
    """Size in bits of what `xz -9` makes of `text`, or, after `before`, by how much `text` makes that larger."""

    def size(content: bytes) -> int:
        return len(lzma.compress(content, format=lzma.FORMAT_XZ, preset=9))

    return 8 * (size(before + text) - size(before) if before else size(text))


class WittenBell:
    """A byte model of a fixed order with interpolated Witten-Bell smoothing (Witten and Bell 1991, method C; in the recursive
    form of Chen and Goodman 1998, §2.5, eq. 16-17), which blends every order as PPM does without its exclusions:

        P_n(b | c) = (count(c b) + T(c) P_{n-1}(b | c')) / (N(c) + T(c)),    P_{-1}(b) = 1 / 256

    c: the last n bytes; c': the last n - 1; N(c): how often c was followed by any byte; T(c): by how many different ones. A
    context that never occurred has N = T = 0 and leaves the word to the shorter one.

    A window is all that the model sees, as it is all that a decoder sees: position t, counted from 0, has contexts of up to
    t + 1 bytes, in training as in test.
    """

    def __init__(self, rows: NDArray[np.uint8], order: int) -> None:
        """rows: (N, S + 1) training windows, the first byte of each being context only. order: at most 6."""
        if not 0 <= order <= 6:
            raise ValueError(f"order is {order}; it must be between 0 and 6")
        self.order = order
        self.tables = [_Table(_packed(rows, length)) for length in range(order + 1)]

    def bits(self, rows: NDArray[np.uint8]) -> NDArray[np.float64]:
        """-log2 P of every byte but the first of each row, under the longest context that its window has: (N, S)."""
        probability = np.full((len(rows), rows.shape[1] - 1), 1 / VOCABULARY)
        for length, table in enumerate(self.tables):
            first = max(length - 1, 0)
            count, total, distinct = table.look_up(_packed(rows, length))
            shorter = probability[:, first:]
            known = total + distinct
            mixed = (count + distinct * shorter) / np.maximum(known, 1)
            probability[:, first:] = np.where(known > 0, mixed, shorter)
        return -np.log2(probability)


class _Table:
    """Counts of one order: sorted codes of (context, byte) and of contexts, with how often each occurred."""

    def __init__(self, codes: NDArray[np.uint64]) -> None:
        self.pair, self.count = np.unique(codes, return_counts=True)
        self.context, start = np.unique(self.pair >> np.uint64(8), return_index=True)
        self.distinct = np.diff(np.append(start, len(self.pair)))
        self.total = np.add.reduceat(self.count, start) if len(start) else self.count

    def look_up(self, codes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """count(c b), N(c) and T(c) for every code; 0 where it did not occur."""
        pair, context = _find(self.pair, codes), _find(self.context, codes >> np.uint64(8))
        return (
            np.where(pair < 0, 0, np.append(self.count, 0)[pair]),
            np.where(context < 0, 0, np.append(self.total, 0)[context]),
            np.where(context < 0, 0, np.append(self.distinct, 0)[context]),
        )


def _find(values: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each wanted value stands in the sorted `values`, or -1."""
    if not len(values):
        return np.full(wanted.shape, -1)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[place] == wanted, place, -1)


def _packed(rows: NDArray[np.uint8], length: int) -> NDArray[np.uint64]:
    """Every byte that has `length` bytes before it in its row, packed with them into one number: (N, S + 1 - max(length, 1))."""
    first = max(length, 1)
    code = np.zeros((len(rows), rows.shape[1] - first), np.uint64)
    for offset in range(first - length, first + 1):
        code = (code << np.uint64(8)) | rows[:, offset : offset + code.shape[1]]
    return code
