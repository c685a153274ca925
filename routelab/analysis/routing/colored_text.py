"""Texts of the sample, every byte in the colour of its expert.

Axes: N examples, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.data.task import Batch

Array = NDArray[Any]

COLOURS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00")
"""Backgrounds for dark text that colour-blind readers can tell apart (Paul Tol's scheme "light"). Experts beyond the eighth
begin again, with a line below: dotted, dashed, then double."""

LINES = ("none", "dotted", "dashed", "double")
NO_EXPERT = "#DDDDDD"


@dataclass(frozen=True)
class Run:
    """Bytes beside each other with one expert (-1: none), as text that can be shown."""

    expert: int
    text: str


def shown_byte(byte: int) -> str:
    r"""Printable ASCII as it is; line ends as an arrow and a line end; other bytes as `\x` and two digits."""
    if byte == 10:
        return "\u21b5\n"
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


def coloured(bytes_S: Sequence[int], first_S: Sequence[int]) -> list[Run]:
    """One window's bytes, cut where the expert changes."""
    pairs = zip(bytes_S, first_S, strict=True)
    return [
        Run(int(expert), "".join(shown_byte(int(byte)) for byte, _ in part))
        for expert, part in groupby(pairs, lambda pair: pair[1])
    ]


def example_texts(sample: Batch, first_NS: Array, names: Sequence[str], most: int = 6) -> list[tuple[str, list[Run]]]:
    """Up to `most` windows, one of each domain first: (the domain's name or "", its runs)."""
    domain = np.zeros(len(sample), dtype=np.int64) if sample.domain is None else sample.domain.numpy()
    firsts = [int(np.flatnonzero(domain == number)[0]) for number in np.unique(domain)]
    rest = [place for place in range(len(sample)) if place not in firsts]
    chosen = [*firsts, *rest][:most] if len(firsts) == 1 else firsts[:most]
    return [
        (names[domain[place]] if names else "", coloured(sample.inputs[place].tolist(), first_NS[place].tolist()))
        for place in chosen
    ]
