"""Samplers and pruners by name, with their options checked, and rungs that lie at shares of a trial's FLOPs."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna import pruners, samplers
from optuna.distributions import BaseDistribution

from routelab.core.errors import UsageError, unknown
from routelab.sweeps.distributions import points


class _Grid(samplers.GridSampler):
    """Optuna's grid, without its end of `Study.optimize`: a sweep counts for itself."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Nothing to do."""


SAMPLERS: dict[str, Any] = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "nsga2": samplers.NSGAIISampler,
    "nsga3": samplers.NSGAIIISampler,
    "qmc": samplers.QMCSampler,
    "grid": _Grid,
    "random": samplers.RandomSampler,
}
_ALIASES = {
    "cma-es": "cmaes",
    "cma_es": "cmaes",
    "nsga-ii": "nsga2",
    "nsgaii": "nsga2",
    "nsga-iii": "nsga3",
    "nsgaiii": "nsga3",
}
_SINGLE = ("cmaes",)
"""Samplers that know one objective only."""

_PRUNERS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "median": {"startup": 5},
    "successive_halving": {"reduction_factor": 3},
    "hyperband": {"reduction_factor": 3},
    "patient": {"patience": 2, "startup": 5},
}
"""Pruners, their options and defaults."""

_LOOKS = 5


def named(value: Any, key: str) -> tuple[str, dict[str, Any]]:
    """`tpe`, or a mapping with a name and options."""
    options = {str(name): each for name, each in value.items()} if isinstance(value, Mapping) else {"name": value}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"{key}={value!r} must be a name, or keys and values with a `name`")
    name = name.lower()
    return name.replace("-", "_").replace("__", "_") if key == "pruner" else _ALIASES.get(name, name), options


_IN_WORDS = {
    "bool": "true or false",
    "int": "a whole number of at least 0",
    "float": "a number",
    "str": "a word",
    "None": "null",
}


def _plain_options(sampler: Any) -> dict[str, list[str]]:
    """The options of a sampler that a configuration can write, and the names of their types."""
    found = {name: str(each.annotation).split(" | ") for name, each in inspect.signature(sampler.__init__).parameters.items()}
    return {name: kinds for name, kinds in found.items() if name not in ("self", "seed") and set(kinds) <= set(_IN_WORDS)}


def _is_a(kind: str, value: Any) -> bool:
    if kind in ("int", "float"):
        number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
        return number and (kind == "float" or value >= 0)
    return value is None if kind == "None" else isinstance(value, bool if kind == "bool" else str)


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler by name with its options; a new one is made for each trial, with a seed of the sweep's and the trial's own."""

    name: str
    options: Mapping[str, Any]
    seed: int

    @classmethod
    def of(cls, value: Any, seed: int, objectives: int) -> SamplerChoice:
        """UsageError for an unknown name or option, and for a sampler that cannot do so many objectives."""
        name, options = named(value, "sampler")
        if name not in SAMPLERS:
            raise unknown("sampler", name, SAMPLERS)
        if objectives > 1 and name in _SINGLE:
            able = ", ".join(each for each in SAMPLERS if each not in _SINGLE)
            raise UsageError(f"sampler={name} takes one objective, and objectives has {objectives}; these take several: {able}")
        known = _plain_options(SAMPLERS[name])
        for option, given in options.items():
            if option not in known:
                raise unknown(f"option of sampler {name!r}", option, known)
            if not any(_is_a(each, given) for each in known[option]):
                raise UsageError(f"sampler.{option}={given!r} must be {' or '.join(map(_IN_WORDS.__getitem__, known[option]))}")
        choice = cls(name, options, seed)
        try:
            choice.make("", 0, {})
        except ImportError as error:
            raise UsageError(f"sampler={name} needs a package that is not installed: {error}") from None
        except (TypeError, ValueError) as error:
            raise UsageError(f"sampler={name}: {error}") from None
        return choice

    def make(self, arm: str, trial: int, space: Mapping[str, BaseDistribution]) -> samplers.BaseSampler:
        """The sampler for one trial. What it draws depends on the seed, the arm, the trial's number and the trials so far."""
        each = int.from_bytes(hashlib.sha256(f"{self.seed}/{arm}/{trial}".encode()).digest()[:4], "big")
        if self.name == "grid":
            # The seed shuffles the grid, whose points go by their place in it.
            return _Grid(
                {key: points(distribution) or [] for key, distribution in space.items()}, seed=self.seed, **self.options
            )
        options = dict(self.options)
        if self.name == "qmc":
            # One scrambled sequence: a seed for each trial would be as many first points.
            options = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False, "scramble": True} | options
            each = self.seed
        if self.name in ("cmaes", "gp"):
            options = {"warn_independent_sampling": False} | options
        if self.name == "tpe":
            options = {"n_startup_trials": 10} | options
        sampler: samplers.BaseSampler = SAMPLERS[self.name](seed=each, **options)
        return sampler


@dataclass(frozen=True)
class PrunerChoice:
    """A pruner by name. rungs: how many there are before the end of a trial's budget."""

    name: str
    options: Mapping[str, Any]
    rungs: int

    @classmethod
    def of(cls, value: Any, rungs: Callable[[], int], objectives: int) -> PrunerChoice:
        """UsageError for an unknown name or option, and for a budget too short to prune in. rungs: asked only if needed."""
        name, options = named("none" if value is None else value, "pruner")
        name = {"sha": "successive_halving", "nop": "none"}.get(name, name)
        if name not in _PRUNERS:
            raise unknown("pruner", name, _PRUNERS)
        for option, number in options.items():
            if option not in _PRUNERS[name]:
                raise unknown(f"option of pruner {name!r}", option, _PRUNERS[name])
            least = 2 if option == "reduction_factor" else 0
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise UsageError(f"pruner.{option}={number!r} must be a whole number of at least {least}")
        if name == "none":
            return cls(name, options, 0)
        if objectives > 1 and name in ("patient", "hyperband"):
            raise UsageError(
                f"pruner={name} takes one objective, and objectives has {objectives}; use median or successive_halving"
            )
        found = rungs()
        least = {"patient": options.get("patience", 2) + 1, "hyperband": options.get("reduction_factor", 3)}.get(name, 1)
        if found < least:
            raise UsageError(
                f"pruner={name} needs {least} rung{'s' * (least > 1)} before the end of a trial, and the budget has {max(found, 0)}: "
                "a rung is a check (trainer.checks), and there is at most one for each optimizer step"
            )
        return cls(name, {**_PRUNERS[name], **options}, found)

    def make(self) -> pruners.BasePruner:
        """The pruner of a study with one objective; a step of it is a rung."""
        options = self.options
        if self.name == "median":
            return pruners.MedianPruner(n_startup_trials=options["startup"])
        if self.name == "patient":
            return pruners.PatientPruner(pruners.MedianPruner(n_startup_trials=options["startup"]), options["patience"])
        if self.name == "successive_halving":
            return pruners.SuccessiveHalvingPruner(1, options["reduction_factor"])
        if self.name == "hyperband":
            return pruners.HyperbandPruner(1, self.rungs + 1, options["reduction_factor"])
        return pruners.NopPruner()

    def asks(self, rung: int) -> bool:
        """Whether the pruner looks at a rung: those of successive halving, or about `_LOOKS` of all, since each is written to the
        storage."""
        if self.name in ("successive_halving", "hyperband"):
            return _is_power(rung, self.options["reduction_factor"])
        return rung % max(1, (self.rungs + 1) // _LOOKS) == 0

    def against_front(self, rung: int) -> tuple[float, int] | None:
        """With several objectives: the share that is kept at a rung, and the peers that it takes; None where nobody is pruned."""
        if self.name == "median":
            return 0.5, self.options["startup"]
        if self.name == "successive_halving":
            factor = self.options["reduction_factor"]
            return (1 / factor, factor - 1) if _is_power(rung, factor) else None
        return None


def _is_power(number: int, base: int) -> bool:
    return base ** round(math.log(number, base)) == number


def rung(flops: float, whole: float, checks: int) -> int:
    """The number of rungs that so many FLOPs have passed; rungs lie at equal shares of `whole`, the FLOPs of a trial."""
    return math.floor(checks * flops / whole + 1e-6)
