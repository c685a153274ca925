"""Runs without training, whose losses by test unit come from a model with known effects of seeds and units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from routelab.comparison.execute import Event
from routelab.data.unit_table import UnitTable
from routelab.records.json_io import write_json
from routelab.records.unit_file import UNITS, units_digest, write_units

NUMERATORS = {"accuracy": "correct", "bits_per_byte": "bytes", "r2": "squared_error_0"}


@dataclass
class World:
    """Effects on log losses.

    Attributes:
        gain: Label of an arm -> its effect.
        seed_sd: Standard deviation of the effects of an arm's seeds.
        unit_sd: Standard deviation of the effects that a unit has on an arm.
        units: Number of test units; half of them are of the domain "a".
        metric: Metric of the records.
        diverged: Pairs of a label and a seed on which training diverges.
        with_units: Whether runs record test units.
        constant: Labels of arms whose results do not depend on the seed.
        validation: Learning rate -> validation loss by seed; without an entry it is 1.
        trained: Pairs of a label and a seed that were trained, in order.
    """

    gain: Mapping[str, float] = field(default_factory=dict)
    seed_sd: float = 0.01
    unit_sd: float = 0.2
    units: int = 60
    metric: str = "accuracy"
    diverged: tuple[tuple[str, int], ...] = ()
    with_units: bool = True
    constant: tuple[str, ...] = ()
    validation: Mapping[float, Sequence[float]] = field(default_factory=dict)
    trained: list[tuple[str, int]] = field(default_factory=list)

    def table(self, label: str, seed: int) -> UnitTable:
        """Return the sums of a run by test unit."""
        common = np.random.default_rng(0)
        count = np.floor(np.exp(common.normal(1.5, 0.7, self.units))) + 1
        level = common.normal(0, 0.5, self.units)
        unit_effect = np.random.default_rng([1, *label.encode()]).normal(0, self.unit_sd, self.units)
        draw = np.random.default_rng([2, 0 if label in self.constant else seed, *label.encode()])
        effect = (
            self.gain.get(label, 0.0) + level + unit_effect + draw.normal(0, self.seed_sd) + draw.normal(0, 0.02, self.units)
        )
        loss = count * np.exp(effect)
        sums = {"count": count, "loss": loss}
        if self.metric == "accuracy":
            sums["correct"] = np.floor(count * np.exp(-np.exp(effect) / 3))
        elif self.metric == "bits_per_byte":
            sums["bytes"] = 4 * count
        else:
            target = common.normal(0, 2, self.units) * np.sqrt(count)
            sums |= {"squared_error_0": loss, "target_0": target, "target_square_0": target**2 + 3 * count}
        domain = np.where(np.arange(self.units) % 2 == 0, "a", "b")
        return UnitTable(np.arange(self.units), domain, sums)

    def run_jobs(self, jobs: list[Any], workers: int) -> Iterator[Event]:
        """Stand in for `routelab.comparison.execute.run_jobs`."""
        for job in jobs:
            label, seed = job.spec.label, job.spec.seed
            validation = self.validation.get(job.spec.optimizer.lr)
            self.trained.append((label, seed))
            record: dict[str, Any] = {
                "arm": label, "seed": seed, "data": "digits", "metric": self.metric, "config": job.spec.plain(), "curve": [],
                "provenance": {"cell": job.key, "data_digest": "d161"}, "seconds": 1.0 + 0.1 * (seed % 3), "causal": True,
                "flops_per_example": 1e6, "active_params": 1000, "total_params": 1000, "load_cv": 0.1, "drop_rate": 0.0,
            }  # fmt: skip
            if (label, seed) in self.diverged:
                record |= {"status": "failed", "diverged": True, "error": "train/loss was nan at step 3", "test": {}}
            else:
                table = self.table(label, seed)
                loss = validation[seed] if validation else 1.0
                size = (job.spec.arm.backbone.get("hidden") or 64) / 64
                flops = 1e9 * size * job.spec.budget.steps / 40
                record |= {
                    "status": "ok", "test": metrics(table.sums, self.metric), "validation": {"loss": loss}, "flops_model": flops,
                    "flops_executed": flops, "by_domain": {
                        name: metrics({key: sums[table.domain == name] for key, sums in table.sums.items()}, self.metric)
                        for name in ("a", "b")
                    },
                }  # fmt: skip
                if self.with_units:
                    write_units(job.folder / UNITS, table)
                    record["provenance"]["units_sha256"] = units_digest(job.folder / UNITS)
                    record["units"] = {"unit": "document", "number": self.units, "pooled": False}
            write_json(job.folder / "record.json", record)
            yield Event(job, 1.0, record=record)


def metrics(sums: Mapping[str, np.ndarray], metric: str) -> dict[str, float]:
    """Return the mean loss and the metric of some units."""
    total = {name: float(values.sum()) for name, values in sums.items()}
    loss = total["loss"] / total["count"]
    value: Callable[[], float] = {
        "accuracy": lambda: total["correct"] / total["count"],
        "bits_per_byte": lambda: total["loss"] / math.log(2) / total["bytes"],
        "r2": lambda: 1 - total["squared_error_0"] / (total["target_square_0"] - total["target_0"] ** 2 / total["count"]),
    }[metric]
    return {"loss": loss, metric: value()}
