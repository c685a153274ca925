"""Runs that other runs build on: found by the names that a configuration has for them, and held against its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from routelab.baselines.build import arm_class, make_arm
from routelab.baselines.distilled import Distilled
from routelab.baselines.run_reference import Recorded, digest_of, read_weights, teacher_of
from routelab.baselines.upcycling import taken
from routelab.config.arm_grid import ArmChoice, arm_choices
from routelab.config.run_options import Budget
from routelab.config.run_spec import WEIGHTS, RunSpec
from routelab.config.schema import Config
from routelab.core.errors import PluginError, UsageError
from routelab.core.plugins import load_plugin
from routelab.data.base import DataSet
from routelab.records.run_lookup import RunStore, find_record, folder_of, spec_of

SEED = "{seed}"
"""Stands in a run's name for the seed of the run that builds on it, so that seeds are paired from the first step on."""


@dataclass(frozen=True)
class Found:
    """A run as the others take it, its record, and the plugins that its arm needs."""

    recorded: Recorded
    record: dict[str, Any]
    plugins: tuple[str, ...]


@dataclass(frozen=True)
class Origins:
    """Looks runs up for one configuration: by folder, by address in `results`/cells, or in a store."""

    config: Config
    data: DataSet
    store: RunStore | None
    results: Path
    known: dict[str, Found] = field(default_factory=dict)
    taught: dict[str, Found] = field(default_factory=dict)
    _fitting: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, config: Config, data: DataSet, store: RunStore | None) -> Origins:
        """Where a configuration's runs are looked for: beside its own output."""
        return cls(config, data, store, Path(config.output).parent if config.output else Path("results"))

    def choices(self, arms: Sequence[Any], seed: int) -> list[ArmChoice]:
        """`arm_choices`, with every teacher looked up, whose cost decides that of its student. seed: one of those to come."""
        return [self._with_teacher(choice, seed) for choice in arm_choices(self.config, arms)]

    def spec(self, choice: ArmChoice, seed: int, budget: Budget | None = None) -> RunSpec:
        """The run of one arm and seed, with the runs that it builds on. UsageError, naming the arm, if one cannot be built on.

        budget: instead of the configuration's.
        """
        spec = RunSpec.of(self.config, self._with_teacher(choice, seed), seed)
        spec = spec if budget is None else replace(spec, budget=budget)
        teacher = teacher_of(spec.arm)
        if teacher is not None:
            spec = replace(spec, plugins=_merged(spec.plugins, self.find(teacher.run, seed, choice.label).plugins))
        if choice.init is None:
            return spec
        found = self.find(choice.init, seed, choice.label)
        if choice.take == "weights":
            self._must_fit(choice, found)
            return replace(spec, init=found.recorded)
        if spec.budget.flops is None:
            raise UsageError(
                f"arm {choice.label!r}: init.take=flops adds the run's training FLOPs to budget.flops, which is not set"
            )
        return replace(spec, budget=replace(spec.budget, flops=spec.budget.flops + found.recorded.flops))

    def find(self, run: str, seed: int, label: str) -> Found:
        """A run that arm `label` builds on; UsageError if it failed, left no weights, or was trained on other data."""
        name = run.replace(SEED, str(seed))
        if name not in self.known:
            try:
                self.known[name] = self._look_up(run, name)
            except UsageError as error:
                raise UsageError(f"arm {label!r}: {error}") from None
        return self.known[name]

    def _look_up(self, run: str, name: str) -> Found:
        record = find_record(name, self.store, self.results)
        if record.get("status") != "ok":
            raise UsageError(f"run {name!r} failed, so there is nothing to build on: {record.get('error')}")
        spec = spec_of(record)
        for plugin in spec.plugins:
            load_plugin(plugin)
        if arm_class(spec.arm.name).fit_outside_loop:
            raise UsageError(
                f"run {name!r} is a reference, {spec.arm.name!r}, that trains outside the loop and leaves no weights"
            )
        trained_on = (record.get("provenance") or {}).get("data_digest")
        if trained_on != self.data.digest:
            raise UsageError(
                f"run {name!r} was trained on other data ({record.get('data')}, digest {trained_on}) than this one's "
                f"({self.data.task.name}, digest {self.data.digest}), whose test split it may have seen"
            )
        weights = folder_of(name, record, self.store, self.results) / WEIGHTS
        digest = digest_of(read_weights(weights, f"run {name!r}"))
        flops = float(record["flops_model"]) + float(record.get("initial_flops") or 0.0)
        arm = spec.plain()["arm"]
        return Found(Recorded(run, arm, spec.seed, str(weights.resolve()), digest, flops), record, spec.plugins)

    def _with_teacher(self, choice: ArmChoice, seed: int) -> ArmChoice:
        """The option `teacher`, a name or what an earlier seed found, as what this seed finds."""
        if not issubclass(arm_class(choice.spec.name), Distilled):
            return choice
        known = teacher_of(choice.spec)
        run = known.run if known else choice.spec.options.get("teacher")
        if not isinstance(run, str):
            return choice  # It will say so itself, when it is built.
        found = self.find(run, seed, choice.label)
        self.taught[run.replace(SEED, str(seed))] = found
        return replace(choice, spec=choice.spec.with_value("options.teacher", found.recorded.plain()))

    def _must_fit(self, choice: ArmChoice, found: Found) -> None:
        """UsageError unless the arm can begin from the run's weights: before any work, not when its turn comes."""
        fitting = (repr(choice.spec), found.recorded.digest)
        if fitting in self._fitting:
            return
        try:
            taken(make_arm(choice.spec, self.data.task, 0, sizing=True), found.recorded.state(), found.recorded.run)
        except PluginError:
            return  # It will say so itself, when it is its turn.
        except UsageError as error:
            raise UsageError(f"arm {choice.label!r}: {error}") from None
        self._fitting.add(fitting)

    def teachers(self) -> list[dict[str, Any]]:
        """What the teachers that were looked up reach on the test split, as yardsticks (name, metric, value, note)."""
        metric, found = self.data.task.metric, []
        for name, each in self.taught.items():
            test, spent = each.record["test"], each.recorded.flops
            if not test:
                continue  # A trial of a sweep, which leaves the test split unread.
            note = f"{each.record['arm']}, seed {each.recorded.seed}: test loss {test['loss']:.4f} after {spent:.3g} training FLOPs"
            found.append({"name": f"the teacher {name}", "metric": metric, "value": test[metric], "note": note})
        return found


def _merged(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))
