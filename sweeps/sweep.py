"""A sweep: a configuration made ready to tune, and its studies, opened, created, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch

from routelab.baselines.build import make_arm
from routelab.comparison.grid import check_batch
from routelab.comparison.matching import check_reference, match_arms, reference_of
from routelab.config.arm_grid import ArmChoice
from routelab.config.resolve import Resolved, check_optimizer, resolve, seed_list
from routelab.config.run_spec import RunSpec
from routelab.config.schema import Config
from routelab.core.errors import UsageError, unknown
from routelab.data.base import DataSet, load
from routelab.records.json_io import check_writable
from routelab.records.lineage import Origins
from routelab.records.run_cache import code_digest
from routelab.sweeps.arm_settings import Settings, apply
from routelab.sweeps.distributions import points
from routelab.sweeps.samplers import PrunerChoice, SamplerChoice
from routelab.sweeps.search_overrides import wishes
from routelab.sweeps.search_space import Space, check_keys, check_values, space_of
from routelab.sweeps.storage import Store, open_store
from routelab.sweeps.studies import Studies, changed, leave_word
from routelab.sweeps.study_status import ArmStudy
from routelab.tracking.artifacts import store_at
from routelab.tracking.uri import absolute, shown

OBJECTIVES = ("loss", "flops", "seconds")
_TRIALS_PER_ARM = 10
_FREE = ("checkpoint_seconds", "accelerator")
"""Trainer options that may differ between the workers of a sweep: they change no value."""


@dataclass(frozen=True)
class SweepArm:
    """An arm to tune: its configured self, and its search space (name -> distribution)."""

    label: str
    choice: ArmChoice
    space: Space
    dimensions: Mapping[str, Any]

    @property
    def size(self) -> int:
        """How many points a grid over the space has."""
        return math.prod(len(points(each) or []) for each in self.dimensions.values())


class Sweep:
    """A checked sweep. UsageError, and nothing written, if the configuration is wrong."""

    def __init__(self, resolved: Resolved) -> None:
        config = resolved.config
        if "arm" in resolved.sources and "arms" not in resolved.sources:
            config.arms = [config.arm]
        _check(config)
        self.name = config.study or f"{resolved.name}-sweep"
        self.config, self.output = config, Path(config.output or f"results/{self.name}")
        self.resolved = replace(resolved, name=self.name)
        self.url = config.storage or str(self.output / "study.journal")
        self.objectives = [str(each) for each in config.objectives]
        self.data: DataSet = load(**config.data)
        check_batch(config, self.data)
        self.sampler = SamplerChoice.of(config.sampler, config.seed, len(self.objectives))
        wanted = wishes(config.search)
        self.origins = Origins.of(config, self.data, store_at(config.tracking.uri))
        self.choices = self.origins.choices(config.arms, config.seed)
        if any(choice.times != 1 or choice.take == "flops" for choice in self.choices):
            raise UsageError(
                "budget.times and init.take=flops give an arm a budget of its own; a sweep tunes all with the same one"
            )
        check_keys(wanted, self.choices)
        check_reference(self.choices, config.match)
        self.reference = reference_of(self.choices, config.match)
        grid = self.sampler.name == "grid"
        spaces = [space_of(choice, wanted, grid, self._refusal) for choice in self.choices]
        check_values(wanted, spaces)
        spaces = [space.narrowed() for space in spaces]
        every = [SweepArm(space.choice.label, space.choice, space, space.dimensions()) for space in spaces]
        self.arms = [arm for arm in every if arm.dimensions]
        self.fixed = [arm for arm in every if not arm.dimensions]
        if not self.arms:
            raise UsageError(
                "the search space of every arm is empty: search pins all there is; leave a name free, or give it a list or low and high"
            )
        self._matched: dict[str, ArmChoice] = {}
        for arm in every:
            # A space that no arm can be built from is seen before any work; the others are seen by their trials.
            choice = self.settled(arm, self.first(arm))
            for seed in (*self.seeds, *self.fresh_seeds):
                self.origins.spec(choice, seed)  # A run that it builds on may be missing.
        self.pruner = PrunerChoice.of(config.pruner, lambda: min(self._rungs(arm) for arm in self.arms), len(self.objectives))
        self.targets = self._targets()

    def first(self, arm: SweepArm) -> Settings:
        """The settings of an arm with nothing sampled: the configuration's own where they are inside the space."""
        start = {key: value for starts in arm.space.starts()[:1] for key, value in starts.items()}

        def ask(key: str, distribution: Any) -> Any:
            return start.get(
                key, getattr(distribution, "low", None) if not hasattr(distribution, "choices") else distribution.choices[0]
            )

        return arm.space.suggest(ask)

    def _refusal(self, choice: ArmChoice) -> str | None:
        """Why the parts of an arm do not take its settings; None if they do."""
        try:
            check_optimizer(choice.optimizer)
            make_arm(choice.spec, self.data.task, 0, sizing=True)
        except UsageError as error:
            return str(error)
        return None

    def settled(self, arm: SweepArm, settings: Settings) -> ArmChoice:
        """The arm with these settings, and its widths matched to the reference. UsageError if that cannot be."""
        choice = apply(arm.choice, settings)
        key = repr(choice)
        if key not in self._matched:
            check_optimizer(choice.optimizer)
            others = [self.reference] if self.reference is not None and self.reference.label != arm.label else []
            matched = match_arms([*others, choice], self.data.task, self.config.match)[-1]
            if matched.error:
                raise UsageError(f"arm {arm.label!r}: {matched.error}")
            self._matched[key] = matched.choice
        return self._matched[key]

    def specs(self, arm: SweepArm, settings: Settings, halvings: int = 0) -> list[RunSpec]:
        """The runs of a trial, one for each of its seeds. halvings: how often the batch did not fit into memory."""
        choice, config = self.settled(arm, settings), self.config
        if halvings:
            trainer = config.trainer
            size, parts = trainer.batch_size >> halvings, trainer.accumulate << halvings
            config = replace(config, trainer=replace(trainer, batch_size=size, accumulate=parts))
        return [replace(self.origins.spec(choice, seed), trainer=config.trainer) for seed in self.seeds]

    @property
    def seeds(self) -> list[int]:
        """The seeds of every trial."""
        return [self.config.seed + i for i in range(self.config.trial_seeds)]

    @property
    def fresh_seeds(self) -> list[int]:
        """The seeds of the final comparison: as many as `seeds` says, none of which a trial has seen."""
        wanted = seed_list(self.config)
        if isinstance(self.config.seeds, int):
            return [seed for seed in range(len(wanted) + len(self.seeds) + self.config.seed) if seed not in self.seeds][
                : len(wanted)
            ]
        return wanted

    def whole(self, arm: SweepArm) -> float:
        """Training FLOPs of a trial with the arm's first settings: the end of the scale that rungs lie on."""
        return self._scale(arm)[0]

    def _scale(self, arm: SweepArm) -> tuple[float, float]:
        """FLOPs and optimizer steps of a trial."""
        budget, trainer = self.config.budget, self.config.trainer
        built = make_arm(self.settled(arm, self.first(arm)).spec, self.data.task, 0, sizing=True)
        per_step = (built.train_flops_per_example() or 0.0) * trainer.batch_size * trainer.accumulate
        if budget.seconds is not None or not per_step:
            raise UsageError(
                f"pruner={self.config.pruner!r}: rungs lie at FLOPs, and "
                + (
                    f"arm {arm.label!r} counts none"
                    if budget.seconds is None
                    else "budget.seconds says none; use budget.flops or steps"
                )
            )
        if budget.flops is not None:
            return budget.flops, budget.flops / per_step
        if budget.epochs is not None:
            steps = math.ceil(budget.epochs * len(self.data.train) / (trainer.batch_size * trainer.accumulate))
        else:
            steps = budget.steps or 0
        return steps * built.rounds * per_step, steps * built.rounds

    def _rungs(self, arm: SweepArm) -> int:
        """Checks before the last, of which there is at most one for each step."""
        return math.floor(min(self.config.trainer.checks, self._scale(arm)[1])) - 1

    def _targets(self) -> list[int | None]:
        """Complete trials for each arm: equal shares of `trials`, the first arms taking what does not divide."""
        arms, trials = self.arms, self.config.trials
        if self.config.tuning_flops is not None:
            return [None] * len(arms)
        grid = self.sampler.name == "grid"
        if trials is None:
            return [arm.size if grid else _TRIALS_PER_ARM for arm in arms]
        if trials < len(arms):
            raise UsageError(f"trials={trials} is fewer than the {len(arms)} arms that are tuned, which share them equally")
        shares = [trials // len(arms) + (i < trials % len(arms)) for i in range(len(arms))]
        return [min(share, arm.size) if grid else share for share, arm in zip(shares, arms, strict=True)]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a trial's value; the trials of two sweeps may be mixed only if it is equal."""
        config = asdict(self.config)
        kept = ("data", "budget", "match", "optimizer", "seed", "trial_seeds", "search")
        trainer = {key: value for key, value in config["trainer"].items() if key not in _FREE}
        specs = [spec for arm in [*self.arms, *self.fixed] for spec in self.specs(arm, self.first(arm))[:1]]
        return {
            "arms": {arm.label: asdict(arm.choice.spec) for arm in self.arms},
            "objectives": self.objectives,
            **{key: config[key] for key in kept},
            "trainer": trainer,
            "data_digest": self.data.digest,
            "code": f"{code_digest(specs)} on torch {torch.__version__.partition('+')[0]}",
        }

    def open(self) -> Studies:
        """The sweep's studies: taken up if they are there, or made. UsageError, nothing changed, if they are another sweep's."""
        check_writable(self.output)
        store = open_store(self.url, create=True)
        with store.claiming():
            found = Studies.load(self.name, store)
            if found is not None:
                self.check(found)
            self._make(store, {arm.label: arm for arm in found.arms} if found is not None else {})
        leave_word(self.name, self.output, self.url)
        studies = Studies.load(self.name, store)
        assert studies is not None
        return studies

    def check(self, studies: Studies) -> None:
        """UsageError unless the trials of `studies` are of this sweep and this code."""
        old, new = studies.identity, self.identity
        for what in ("arms", "objectives"):
            before, now = list(old[what]), list(new[what])
            if before != now:
                raise UsageError(
                    f"study={self.name!r} exists with {what} {', '.join(before)}, and this call has {', '.join(now)}; "
                    "give the new one a study=NAME of its own"
                )
        if old["code"] != new["code"]:
            raise UsageError(
                f"study={self.name!r} was begun with code {old['code']}, and here is code {new['code']}: their trials are not "
                "comparable; run the same version everywhere, or begin a new study"
            )
        key = changed(old, new)
        if key is not None:
            raise UsageError(
                f"study={self.name!r} exists with another {key} ({_at(old, key)!r}, and this call has {_at(new, key)!r}); "
                "give the new one a study=NAME of its own"
            )

    def _make(self, store: Store, known: Mapping[str, ArmStudy]) -> None:
        config = asdict(replace(self.config, study=self.name, output=str(self.output), storage=self.url))
        for position, (arm, target) in enumerate(zip(self.arms, self.targets, strict=True)):
            about = {
                "sweep": self.name, "arm": arm.label, "position": position, "target": target, "flops": self.config.tuning_flops,
                "size": arm.size if self.sampler.name == "grid" else None, "config": config, "identity": self.identity,
            }  # fmt: skip
            if arm.label in known:
                if known[arm.label].study.user_attrs["routelab.sweep"] != about:
                    known[arm.label].study.set_user_attr("routelab.sweep", about)
                continue
            # A study that a killed process left without its attributes has no trials: it is filled in.
            study = optuna.create_study(
                study_name=f"{self.name}/{arm.label}",
                storage=store.optuna,
                directions=["minimize"] * len(self.objectives),
                load_if_exists=True,
            )
            study.set_metric_names(self.objectives)
            if self.sampler.name != "grid" and not study.get_trials(deepcopy=False):
                for start in arm.space.starts()[:target]:
                    study.enqueue_trial(start)
            study.set_user_attr("routelab.sweep", about)


def open_sweep(studies: Studies) -> Sweep:
    """The sweep behind studies, for a worker or to go on. UsageError if this machine's code or data differ."""
    found = resolve(studies.config)
    sweep = Sweep(found)
    sweep.check(studies)
    return sweep


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _database(uri: str) -> str:
    """What a URI points at, whatever driver it names."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", absolute(uri))


def _check(config: Config) -> None:
    objectives = config.objectives
    for each in objectives:
        if each not in OBJECTIVES:
            raise unknown("objective", each, OBJECTIVES)
    if objectives[:1] != ["loss"] or len(set(objectives)) < len(objectives):
        raise UsageError(f"objectives={list(objectives)} must begin with loss, and name none twice")
    for key in ("flops", "seconds"):
        if key in objectives and getattr(config.budget, key) is not None:
            raise UsageError(f"objectives names {key}, which budget.{key} makes equal for every trial; use budget.steps")
    if config.trials is not None and config.trials < 1:
        raise UsageError(f"trials={config.trials} must be at least 1")
    if config.trials is not None and config.tuning_flops is not None:
        raise UsageError("trials and tuning_flops are both set; the budget of a sweep is one of them")
    if config.tuning_flops is not None and not 0 < config.tuning_flops < math.inf:
        raise UsageError(f"tuning_flops={config.tuning_flops} must be above 0 and finite")
    if config.storage and config.tracking.uri and _database(config.storage) == _database(config.tracking.uri):
        raise UsageError(
            f"storage and tracking.uri name one database, {shown(config.storage)!r}; Optuna and MLflow need one each"
        )
    if config.seeds == "auto":
        raise UsageError("seeds=auto is not for sweeps: name how many fresh seeds the best settings are compared on")
    if config.trial_seeds < 1:
        raise UsageError(f"trial_seeds={config.trial_seeds} must be at least 1")
    if config.study is not None and (not config.study.strip(" .") or "/" in config.study):
        raise UsageError(f"study={config.study!r} must be a name without '/'")
    tuned = {config.seed + i for i in range(config.trial_seeds)}
    if isinstance(config.seeds, list) and (shared := tuned & set(seed_list(config))):
        raise UsageError(
            f"seeds={config.seeds} holds seed {min(shared)}, which the trials are tuned on; settings are judged by fresh seeds"
        )
