"""What is to be learned: the shape of the inputs, the loss, and the metrics.

Axes: B examples, S positions, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

TaskKind = Literal["classification", "regression", "language"]

_REGRESSION_SUMS = ("squared_error", "target", "target_square")


@dataclass(frozen=True)
class Batch:
    """inputs (B, ...), targets (B,), (B, K) or (B, S), mask (B, S) where positions may be padding, domain (B,) numbers of
    the sources that examples come from, where there are several. Labels are int64, a text's ids of any integer type.

    unit: (B,) or, for text, (B, S) numbers from 0 of the units that examples, or the targets of positions, belong to; see
    `Task.unit`. None: every example is a unit of its own. Only the test split has it.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None
    domain: Tensor | None = None
    unit: Tensor | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def select(self, which: Tensor | slice | int) -> Batch:
        """The examples at these positions; a number takes one part off where the leading axis counts parts."""
        return self._each(lambda part: part[which])

    def to(self, device: torch.device) -> Batch:
        """The same examples on another device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(part) for name, part in given.items() if part is not None})


@dataclass(frozen=True)
class Task:
    """inputs: what an example looks like. outputs: K, the classes or the regression targets.

    kind: "classification" (cross-entropy, accuracy), "regression" (mean squared error, R^2), "language" (cross-entropy
    over the next byte, bits per byte; causal).
    """

    name: str
    kind: TaskKind
    inputs: InputSpec
    outputs: int
    token_counts: Tensor | None = None
    """Frequencies (V,) of the training split's tokens, where there are any; hash routing packs its bins by them."""
    domains: int = 0
    """How many sources the examples come from, which `Batch.domain` numbers; 0 = nobody says. A data set with
    `domain_names` sets it."""
    unit: str = "example"
    """The noun for what the test split is a sample of: "document", "day", "speaker"; see `Batch.unit`."""

    @property
    def causal(self) -> bool:
        """Whether an output may depend on earlier positions only."""
        return self.kind == "language"

    @property
    def metric(self) -> str:
        """The name of the quality metric that stands beside the loss."""
        return {"classification": "accuracy", "regression": "r2", "language": "bits_per_byte"}[self.kind]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss per example, (B,), in nats (or squared units), float32."""
        outputs = outputs.float()
        if self.kind == "regression":
            return (outputs - targets.view_as(outputs)).square().flatten(1).mean(1)
        if self.kind == "language":
            # Flat: a softmax over a strided axis is slower. Texts are stored as bytes, targets are int64 here only.
            each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long(), reduction="none")
            return each.view(targets.shape).mean(1)
        return F.cross_entropy(outputs, targets, reduction="none")

    def statistics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch, float64, from which `summary` computes the metrics of any number of batches."""
        loss = self.loss(outputs, targets).double()
        sums = {"count": torch.full_like(loss.sum(), loss.numel()), "loss": loss.sum()}
        if self.kind == "classification":
            sums["correct"] = (outputs.argmax(-1) == targets).double().sum()
        elif self.kind == "regression":
            flat = targets.double().reshape(len(targets), self.outputs)
            sums |= {"target": flat.mean(1).sum(), "square": flat.square().mean(1).sum()}
        return sums

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """Return the names of the sums that `unit_sums` returns, in the same order."""
        if self.kind == "classification":
            return ("count", "loss", "correct")
        if self.kind == "language":
            return ("count", "loss", "bytes")
        columns = (f"{name}_{column}" for column in range(self.outputs) for name in _REGRESSION_SUMS)
        return ("count", "loss", *columns)

    def unit_sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the numerators and denominators of every metric, which add up by unit.

        Args:
            outputs: (B, K), or (B, S, K) for text.
            targets: (B,), (B, K), or (B, S) for text.

        Returns:
            Tensors (T,), float64; T = B, or B x S for text, whose positions come in the order of `targets.flatten()`.
            "count" is 1 and "loss" the loss. "correct" is 1 or 0 (classification), "bytes" the number of bytes that a
            position predicts (language), "squared_error_K", "target_K" and "target_square_K" belong to column K (regression).
        """
        if self.kind == "language":
            logits = outputs.float().flatten(0, -2)
            loss = F.cross_entropy(logits, targets.flatten().long(), reduction="none").double()
            return {"count": torch.ones_like(loss), "loss": loss, "bytes": torch.ones_like(loss)}
        loss = self.loss(outputs, targets).double()
        sums = {"count": torch.ones_like(loss), "loss": loss}
        if self.kind == "classification":
            return sums | {"correct": (outputs.argmax(-1) == targets).double()}
        target_BK = targets.reshape(len(targets), self.outputs)
        error_BK = (outputs.float().view_as(target_BK) - target_BK).square().double()
        for column in range(self.outputs):
            target = target_BK[:, column].double()
            values = (error_BK[:, column], target, target.square())
            sums |= {f"{name}_{column}": value for name, value in zip(_REGRESSION_SUMS, values, strict=True)}
        return sums

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """`loss` and the metric, from summed statistics."""
        count, total = float(sums["count"]), float(sums["loss"])
        mean = total / count
        if self.kind == "classification":
            return {"loss": mean, "accuracy": float(sums["correct"]) / count}
        if self.kind == "language":
            return {"loss": mean, "bits_per_byte": mean / math.log(2)}
        spread = float(sums["square"]) / count - (float(sums["target"]) / count) ** 2
        return {"loss": mean, "r2": 1 - mean / spread if spread > 0 else math.nan}


@dataclass(frozen=True)
class InputSpec:
    """What one example looks like: kind and shape ("image": channels, height, width; "table": features), and ids where
    there are any.

    categories: for a table, one entry per feature: 0 = a number, n = a code from 0 to n - 1, kept as a float in the same
    tensor; () = all are numbers.
    """

    kind: Literal["image", "table", "text"]
    shape: tuple[int, ...]
    vocab_size: int | None = None
    categories: tuple[int, ...] = ()
