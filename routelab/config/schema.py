"""Schema of the configuration: its keys and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from routelab.config.run_options import Budget, Optimizer, TrainerOptions

EXPERT_KEYS = ("count", "hidden", "shared", "kind", "bias", "rank", "zero", "copy", "constant")
MATCHES = ("flops_per_example", "total_params", "active_params", "train_flops", "none")
TAKES = ("weights", "flops")
DEFAULT_STEPS = 300


@dataclass
class Match:
    """What is made equal between arms, and how nearly. reference: the arm that the others are matched to.

    on: forward FLOPs per example, total or active parameters, or train_flops, FLOPs of training per example drawn, which is
    training FLOPs at equal steps.
    """

    on: str = "flops_per_example"
    tolerance: float = 0.02
    reference: str = "dense"


@dataclass
class Tracking:
    """The MLflow store; uri: null = none. experiment: null = the name of the comparison."""

    uri: str | None = "sqlite:///results/mlflow.db"
    experiment: str | None = None


UNCERTAINTY = ("seeds", "examples")
"""Sources of uncertainty that intervals can cover."""


@dataclass
class StatisticsOptions:
    """Options of the statistics: which uncertainty intervals cover, and the levels that claims are held to.

    Attributes:
        uncertainty: What an interval covers: "seeds" (training seeds), "examples" (units of the test split), or both.
        alpha: Level of all differences from the reference together, of all equivalences together, and of each of the two in
            `pairs`. With seeds=auto it is the level of differences and equivalences together.
        margin: Difference in log loss below which two arms count as equivalent.
        min_seeds: Seeds of every arm at the start, with seeds=auto.
        max_seeds: Largest number of seeds, with seeds=auto.
        pairs: Pairs of labels. The first arm of each pair is also judged against the second.
    """

    uncertainty: list[str] = field(default_factory=lambda: list(UNCERTAINTY))
    alpha: float = 0.05
    margin: float = 0.01
    min_seeds: int = 5
    max_seeds: int = 20
    pairs: list[Any] = field(default_factory=list)


FORMER_KEYS = {
    "verdict.level": "statistics.alpha",
    "verdict.margin": "statistics.margin",
    "verdict.first": "statistics.min_seeds",
    "verdict.most": "statistics.max_seeds",
    "verdict.pairs": "statistics.pairs",
    "verdict": "statistics",
}
"""Former name of a key -> its present name."""


@dataclass
class Config:
    """Everything a comparison or a run can be told. The defaults are the quickstart.

    dense_ladder: the dense reference's feed-forward at these multiples of its width, for a frontier of dense models.
    budget_ladder: shares of the budget that everything is trained with as well, each with a schedule of its own. dense_budgets:
    shares that only the dense models are trained with, which is what an arm's leverage at its own loss needs. isoflop: every
    arm at every size of the ladder, all with the same training FLOPs.

    init: `from`, a run whose weights every arm begins from (`{seed}` in its name is the run's seed), null = none. `take`: "flops"
    takes nothing of it but its training FLOPs, which are added to budget.flops.

    backbone: without a name it is the one for the data's kind (`routelab.backbones.backbone_registry.DEFAULT_FOR`).
    """

    arms: list[Any] = field(
        default_factory=lambda: [
            "dense", "switch", "top2", "expert_choice", "hash", "soft", "bagging", "gradient_boosting", "gated_mixture",
        ]
    )  # fmt: skip
    arm: Any = "switch"
    seeds: Any = 5
    seed: int = 0
    data: dict[str, Any] = field(default_factory=lambda: {"name": "digits"})
    backbone: dict[str, Any] = field(default_factory=dict)
    router: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(
        default_factory=lambda: {
            "count": 8,
            "hidden": None,
            "shared": None,
            "kind": "gelu",
            "bias": False,
            "rank": None,
            "zero": None,
            "copy": None,
            "constant": None,
        }
    )
    init: dict[str, Any] = field(default_factory=lambda: {"from": None, "take": "weights"})
    budget: Budget = field(default_factory=Budget)
    match: Match = field(default_factory=Match)
    dense_ladder: list[float] = field(default_factory=list)
    budget_ladder: list[float] = field(default_factory=list)
    dense_budgets: list[float] = field(default_factory=list)
    isoflop: bool = False
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    tracking: Tracking = field(default_factory=Tracking)
    output: str | None = None
    workers: int = 0
    plugins: list[str] = field(default_factory=list)
    # Of `routelab sweep` alone; see docs/sweeps.md.
    study: str | None = None
    storage: str | None = None
    trials: int | None = None
    tuning_flops: float | None = None
    trial_seeds: int = 1
    objectives: list[str] = field(default_factory=lambda: ["loss"])
    sampler: Any = "tpe"
    pruner: Any = "none"
    search: dict[str, Any] = field(default_factory=dict)
