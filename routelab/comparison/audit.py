"""Three counts of one training step of every arm: comparisons per FLOP are worth what their agreement is worth.

The ledger charges by formulas; torch's counter watches the operations; and the rows that really entered the experts' kernels are
counted there, and multiplied by what torch's counter says of one row (accounting.md §1).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from routelab.baselines.base import Arm, StepLoss
from routelab.baselines.build import make_arm
from routelab.comparison.estimate import first_batch
from routelab.comparison.prepared_comparison import Plan
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.training.ledger import counter_formulas

TOLERANCE = 0.01

_PRODUCT = re.compile(r"mm|matmul|conv|einsum|linear|bilinear|attention|cdist|mv$|outer|fft|baddb")
"""Names of operations that multiply matrices. A product of two vectors is as many FLOPs as a sum, which nobody counts."""

_NO_WORK = re.compile(r"linear_backward|upsample|linspace|logsumexp")
_ROWS = 16


@dataclass(frozen=True)
class Audit:
    """Executed FLOPs of one training step of an arm. ledger: by formula; counter: torch's; rows: with rows counted at the
    kernels, None where there are no experts' kernels. unknown: operations that multiply and that the counter does not know.
    skipped: why there is nothing to audit."""

    arm: str
    ledger: float = 0.0
    counter: float = 0.0
    rows: float | None = None
    unknown: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def worst(self) -> float:
        """The largest relative difference from torch's count."""
        others = [self.ledger, *([] if self.rows is None else [self.rows])]
        if not self.counter:
            return math.inf if any(others) else 0.0
        return max(abs(value / self.counter - 1) for value in others)

    @property
    def passed(self) -> bool:
        """Whether all counts agree within a percent, and nothing that multiplies went uncounted."""
        return self.skipped is not None or (not self.unknown and self.worst <= TOLERANCE)


def audit(ready: Plan) -> list[Audit]:
    """Audit one training step of every row of a planned comparison."""
    found = []
    for row in ready.rows:
        if row.matched.error:
            found.append(Audit(row.label, skipped=row.matched.error))
            continue
        arm = make_arm(row.matched.choice.spec, ready.data.task, 0)
        if arm.fit_outside_loop:
            found.append(Audit(row.label, skipped="a reference outside the loop, whose FLOPs nobody counts"))
            continue
        size = min(ready.resolved.config.trainer.batch_size, len(ready.data.train))
        found.append(audit_step(row.label, arm, ready.data.train, size))
    return found


def audit_step(label: str, arm: Arm, train: Any, size: int) -> Audit:
    """Audit one training step of a freshly built arm on the first `size` examples; every stage's last step is the same work."""
    batch, index = first_batch(arm, train, size)

    def step() -> StepLoss:
        arm.zero_grad()
        torch.manual_seed(0)
        loss = arm.loss(batch, index)
        loss.total.backward()
        return loss

    step()  # the first call counts the router's cost by running it
    seen = _Seen()
    with _counted_rows(arm) as rows, seen, FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        loss = step()
    ledger = float(loss.flops.executed)
    layers = [module for module in arm.modules() if isinstance(module, MixtureLayer)]
    by_rows = None
    if rows and len(layers) == len(loss.routings):
        by_rows = ledger
        for layer, routing in zip(layers, loss.routings, strict=True):
            if isinstance(layer.experts, ExpertBank) and routing.work is not None:
                by_rows -= float(routing.work.executed) * layer.experts.row_cost.training
                by_rows += rows.get(layer.experts, 0) * _row_flops(layer.experts)
    return Audit(label, ledger, float(counter.get_total_flops()), by_rows, tuple(sorted(seen.unknown)))


class _Seen(TorchDispatchMode):
    """Remembers operations that multiply and that the counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()
        self._known = {*flop_registry, *counter_formulas()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        name = packet.__name__
        if packet not in self._known and _PRODUCT.search(name) and not _NO_WORK.search(name):
            self.unknown.add(str(packet))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _counted_rows(arm: Arm) -> Iterator[dict[ExpertBank, int]]:
    """Counts the rows that enter the kernels of every bank, by their shapes."""
    rows: dict[ExpertBank, int] = {}
    banks = [module for module in arm.modules() if isinstance(module, ExpertBank)]

    def counting(bank: ExpertBank, kernel: Callable[..., Any], size: Callable[[Sequence[Any]], int]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            rows[bank] = rows.get(bank, 0) + size(args)
            return kernel(*args, **options)

        return run

    sizes: dict[str, Callable[[Sequence[Any]], int]] = {
        "grouped": lambda args: int(args[1].sum()),
        "loop": lambda args: int(args[1].sum()),
        "batched": lambda args: args[0].shape[0] * args[0].shape[1],
        "fused": lambda args: sum(args[2].sizes),
    }
    for bank in banks:
        for name, size in sizes.items():
            setattr(bank, name, counting(bank, getattr(bank, name), size))
    try:
        yield rows
    finally:
        for bank in banks:
            for name in sizes:
                delattr(bank, name)


def _row_flops(bank: ExpertBank) -> float:
    """What torch's counter says of one row through one expert, forward and backward."""
    x = torch.randn(_ROWS, bank.d_model, requires_grad=True)
    count = torch.zeros(bank.num_experts, dtype=torch.int64)
    count[0] = _ROWS
    with FlopCounterMode(display=False) as counter:
        bank.loop(x, count).sum().backward()
    bank.zero_grad()
    return counter.get_total_flops() / _ROWS
