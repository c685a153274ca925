"""What tokens and examples can be told apart by: domain, class, the quarter that a target lies in, the kind of a byte.

Axes: N examples, S positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.data.base import DataSet
from routelab.data.task import Batch

Array = NDArray[Any]

BYTE_CLASSES = (
    "lower case",
    "upper case",
    "digit",
    "space",
    "line end",
    "punctuation",
    "other ASCII",
    "beyond ASCII",
    "text end",
)


@dataclass(frozen=True)
class Label:
    """name: "domain", "class", "target" or "byte". names: what the numbers mean. value: (N,) of whole examples, or (N, S) of
    tokens."""

    name: str
    names: tuple[str, ...]
    value: Array

    @property
    def of_tokens(self) -> bool:
        """Whether every token has its own."""
        return self.value.ndim == 2


def byte_class(byte: int) -> int:
    """The number in `BYTE_CLASSES` of one byte. Bytes of 128 and above are parts of letters beyond ASCII; 0 ends a document."""
    text = chr(byte)
    rules = (
        byte < 128 and text.islower(), byte < 128 and text.isupper(), byte < 128 and text.isdigit(), text in " \t", text in "\n\r",
        32 < byte < 127, 0 < byte < 128, byte >= 128, byte == 0,
    )  # fmt: skip
    return rules.index(True)


def labels_of(data: DataSet, sample: Batch) -> list[Label]:
    """The labels that there are for examples of this data set."""
    found, task = [], data.task
    if sample.domain is not None and len(data.domain_names) > 1:
        found.append(Label("domain", data.domain_names, sample.domain.numpy()))
    if task.kind == "classification":
        found.append(Label("class", tuple(map(str, range(task.outputs))), sample.targets.numpy()))
    if task.kind == "regression" and sample.targets[0].numel() == 1:
        target = sample.targets.reshape(-1).numpy()
        edges = np.quantile(data.train.targets.reshape(-1).numpy(), [0.25, 0.5, 0.75])
        found.append(Label("target", ("lowest quarter", "second", "third", "highest quarter"), np.digitize(target, edges)))
    given = bytes_of(data, sample)
    if given is not None:
        table = np.array([byte_class(byte) for byte in range(256)])
        found.append(Label("byte", BYTE_CLASSES, table[given]))
    return found


def bytes_of(data: DataSet, sample: Batch) -> Array | None:
    """The bytes of texts, (N, S); None for anything else."""
    inputs = data.task.inputs
    return sample.inputs.long().numpy() if inputs.kind == "text" and inputs.vocab_size == 256 else None
