"""What a comparison trains: every arm at its matched size, the dense ladder beside it, and both at shares of the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from routelab.baselines.build import make_arm
from routelab.comparison.matching import Matched, match_arms, reference_of
from routelab.config.arm_grid import ArmChoice
from routelab.config.run_options import Budget
from routelab.config.schema import Config
from routelab.core.errors import UsageError
from routelab.data.base import DataSet
from routelab.data.task import Task
from routelab.experts.feed_forward import FeedForward

ISOFLOP_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
ISOFLOP_BUDGETS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """One thing that is trained on every seed.

    label: its name in tables and records. arm: the arm it belongs to. size: its feed-forward's width (of a routed arm: that of
    the dense model it is matched to) over the reference's. share: of the budget, with a schedule of its own.
    """

    label: str
    matched: Matched
    arm: str
    budget: Budget
    size: float = 1.0
    share: float = 1.0

    @property
    def is_main(self) -> bool:
        """Whether it is an arm as the configuration names it, at the whole budget."""
        return self.size == self.share == 1.0


def rows_of(config: Config, data: DataSet, choices: Sequence[ArmChoice]) -> tuple[list[Row], str | None]:
    """All rows of these arms, the main ones first, and the label of the reference; UsageError if an arm cannot be sized."""
    reference = reference_of(choices, config.match)
    main = match_arms(choices, data.task, config.match)
    iso = config.isoflop
    ladder = config.dense_ladder or (list(ISOFLOP_SIZES) if iso else [])
    shares = config.budget_ladder or (list(ISOFLOP_BUDGETS) if iso else [1.0])
    sized = [(1.0, main)]
    if ladder:
        if reference is None:
            raise UsageError(f"dense_ladder={ladder} needs the reference {config.match.reference!r} among the arms")
        for size in ladder:
            if size != 1.0:
                rung = _rung(reference, size, data.task)
                # In an IsoFLOP grid every arm has every size: it is matched to the rung instead of to the reference.
                arms = [rung, *(choice for choice in choices if choice is not reference)] if iso else [rung]
                sized.append((size, match_arms(arms, data.task, replace(config.match, reference=rung.label))))
    if config.dense_budgets and reference is None:
        raise UsageError(f"dense_budgets={config.dense_budgets} needs the reference {config.match.reference!r} among the arms")
    rows = []
    for share in dict.fromkeys([1.0, *shares, *config.dense_budgets]):
        # Where all sizes are to spend the same, it is FLOPs that they spend.
        whole = Budget(flops=_total(config, main, reference, data)) if iso else config.budget
        for size, matched in sized:
            for each in matched:
                name = (
                    reference.label if reference and each.choice.label == _sized(reference.label, size) else each.choice.label
                )
                if share not in (1.0, *shares) and reference and name != reference.label:
                    continue
                label = _sized(name, size) + (f" b{share:g}" if share != 1.0 else "")
                labelled = replace(each, choice=replace(each.choice, label=label))
                rows.append(Row(label, labelled, name, whole.times(share * each.choice.times), size, share))
    labels = [row.label for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"two rows are labelled {label!r}; rename the arm, or leave out the ladder's rung of that name")
    return rows, reference.label if reference else None


def ladder_rows(rows: Sequence[Row], reference: str) -> Iterator[Row]:
    """The dense models of the ladder, every size and share, the reference among them."""
    return (row for row in rows if row.arm == reference)


def described(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Every row as plain data: label -> the arm it belongs to, its size and its share of the budget."""
    return {row.label: {"arm": row.arm, "size": row.size, "budget": row.share} for row in rows}


def _sized(label: str, size: float) -> str:
    return label if size == 1.0 else f"{label}@{size:g}"


def _rung(reference: ArmChoice, size: float, task: Task) -> ArmChoice:
    """The reference with its feed-forward's width multiplied."""
    arm = make_arm(reference.spec, task, 0, sizing=True)
    if arm.knobs != ("backbone.hidden",):
        raise UsageError(f"dense_ladder needs a dense reference; match.reference is {reference.label!r}")
    width = next((module.d_hidden for module in arm.modules() if isinstance(module, FeedForward)), None)
    if width is None:
        raise UsageError(
            f"dense_ladder needs feed-forwards with a width; experts.kind={reference.spec.experts['kind']} has none"
        )
    spec = reference.spec.with_value("backbone.hidden", max(1, round(width * size)))
    return replace(reference, label=_sized(reference.label, size), spec=spec)


def _total(config: Config, main: Sequence[Matched], reference: ArmChoice | None, data: DataSet) -> float:
    """FLOPs that the reference's training takes under the configured budget; UsageError if those are not known beforehand."""
    if config.budget.flops is not None:
        return config.budget.flops
    if reference is None:
        raise UsageError(f"isoflop needs the reference {config.match.reference!r} among the arms, or budget.flops")
    found = next(each for each in main if each.choice.label == reference.label)
    flops = training_flops(config, found, config.budget, data)
    if flops is None:
        raise UsageError(
            f"isoflop needs a budget in flops, steps or epochs; budget.seconds={config.budget.seconds} has no FLOPs"
        )
    return flops


def training_flops(config: Config, matched: Matched, budget: Budget, data: DataSet) -> float | None:
    """What a run will take, as far as its budget says so: None for a budget in seconds, or an arm without FLOPs."""
    if budget.flops is not None:
        return budget.flops
    if budget.seconds is not None or matched.train_flops_per_example is None:
        return None
    if budget.epochs is not None:
        return matched.train_flops_per_example * budget.epochs * len(data.train)
    assert budget.steps is not None
    return matched.train_flops_per_example * budget.steps * config.trainer.batch_size * config.trainer.accumulate


def check_batch(config: Config, data: DataSet) -> None:
    """UsageError if a batch is larger than the training split."""
    size = config.trainer.batch_size
    if size > len(data.train):
        raise UsageError(f"trainer.batch_size={size} must be at most the {len(data.train)} training examples")
