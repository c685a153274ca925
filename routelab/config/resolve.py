"""Configuration: dataclasses, merged by OmegaConf from defaults, a YAML file and `key=value` words.

Every wrong word is a UsageError in one sentence; `sources` remembers where each value came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from routelab.config.run_options import PRECISIONS, SCHEDULES, Budget, Optimizer
from routelab.config.schema import DEFAULT_STEPS, EXPERT_KEYS, FORMER_KEYS, MATCHES, TAKES, UNCERTAINTY, Config
from routelab.core.errors import UsageError, unknown

_MOST_SEEDS = 10_000

_LARGEST_SEED = 2**63 - 1
"""Largest number of the column of seeds in units.parquet."""


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, its name, and where each dotted key came from."""

    config: Config
    name: str
    sources: Mapping[str, str]

    @property
    def output(self) -> Path:
        """The folder that results go to."""
        return Path(self.config.output or f"results/{self.name}")

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.config.tracking.experiment or self.name

    def rows(self) -> list[dict[str, Any]]:
        """Every dotted key with its value and the source of it."""
        return [
            {"name": key, "value": value, "source": self._source(key)} for key, value in flatten(asdict(self.config)).items()
        ]

    def describe(self) -> str:
        """The configuration as YAML-like lines, each with its source."""
        lines = {f"{row['name']}: {'null' if row['value'] is None else row['value']}": row["source"] for row in self.rows()}
        width = min(70, max(map(len, lines)))
        return "\n".join(f"{line:<{width}}  # {source}" for line, source in lines.items())

    def _source(self, key: str) -> str:
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            found = self.sources.get(".".join(parts[:length]))
            if found:
                return found
        return "default"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def resolve(
    config: str | Path | Mapping[str, Any] | Sequence[str] = (), overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Resolved:
    """Merge defaults, `config` (a path, a dict, or words) and `overrides`, and check the result. plugins: more of them."""
    layers: list[tuple[str, dict[str, Any]]] = []
    name = None
    if isinstance(config, Mapping):
        layers.append(("dict", dict(config)))
    elif isinstance(config, (str, Path)):
        layers.append((str(config), _read(Path(config))))
        name = Path(config).stem
    else:
        overrides = [*config, *overrides]
    layers += [("command line", _parse(word)) for word in overrides]
    merged = OmegaConf.structured(Config)
    sources: dict[str, str] = {}
    for source, given in layers:
        layer = _long_form(given)
        _check_keys(layer, Config, "", source)
        if layer.get("budget"):
            merged.budget = Budget()
            sources = {key: value for key, value in sources.items() if not key.startswith("budget")}
        for part in ("arm", "arms"):
            if part in layer:
                sources[part] = source
        _merge(merged, layer, source)
        sources |= dict.fromkeys(flatten(layer), source)
    typed: Any = OmegaConf.to_object(merged)
    final: Config = typed
    if all(value is None for value in asdict(final.budget).values()):
        final.budget.steps = DEFAULT_STEPS
    final.plugins = list(dict.fromkeys([*final.plugins, *plugins]))
    for plugin in final.plugins:
        from routelab.core.plugins import load_plugin

        load_plugin(plugin)
    _name_backbone(final, sources)
    _check_values(final)
    return Resolved(final, name or str(final.data.get("name")), sources)


def _name_backbone(config: Config, sources: dict[str, str]) -> None:
    """Where no backbone is named, the one for the data's kind."""
    from routelab.backbones.backbone_registry import DEFAULT_FOR
    from routelab.data.base import DATA, kind_of

    if config.backbone.get("name") is None and config.data.get("name") in DATA:
        kind = kind_of(**config.data)
        config.backbone = {**config.backbone, "name": DEFAULT_FOR[kind]}
        sources["backbone.name"] = f"default for data of the kind {kind!r}"


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        near = sorted(str(found) for found in Path("configs").glob("*.yaml"))
        raise unknown("configuration file", path, near) from None
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # OmegaConf's own, for a file that holds one number.
            raise UsageError(f"configuration file {str(path)!r} must hold keys and values; it holds a single value") from None
        raise UsageError(f"configuration file {str(path)!r} cannot be read: {type(error).__name__}") from None
    except InterpolationKeyError as error:
        raise UsageError(f"configuration file {str(path)!r}: {str(error).splitlines()[0]}") from None
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise UsageError(f"configuration file {str(path)!r} is not valid YAML{where}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"configuration file {str(path)!r} must hold keys and values; it holds a {type(tree).__name__}")
    if not tree:
        raise UsageError(f"configuration file {str(path)!r} is empty")
    return {str(key): value for key, value in _spelled(tree).items()}


def _spelled(tree: Any) -> Any:
    """The same tree with `on` for the key that YAML 1.1 takes for the truth, as in match.on."""
    if isinstance(tree, list):
        return [_spelled(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    return {"on" if key is True else key: _spelled(value) for key, value in tree.items()}


def _parse(word: str) -> dict[str, Any]:
    key, equals, _ = word.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"argument {word!r} is neither a configuration file nor key=value")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=True)
    except Exception:
        raise UsageError(f"argument {word!r} cannot be parsed as key=value") from None
    assert isinstance(tree, dict)
    return {str(name): value for name, value in tree.items()}


def _long_form(layer: dict[str, Any]) -> dict[str, Any]:
    """`data=digits` is short for `data.name=digits`, and likewise backbone. YAML reads an unquoted `on` as true."""
    long = {
        key: {"name": value} if key in ("data", "backbone") and isinstance(value, str) else value
        for key, value in layer.items()
    }
    if isinstance(long.get("match"), Mapping):
        long["match"] = {"on" if key is True else key: value for key, value in long["match"].items()}
    return long


def _check_keys(layer: Mapping[str, Any], schema: Any, prefix: str, source: str) -> None:
    known = {item.name: item for item in fields(schema)}
    for key, value in layer.items():
        if key not in known:
            if f"{prefix}{key}" in FORMER_KEYS:
                raise _renamed(f"{prefix}{key}", value, source)
            raise unknown(f"key ({source})", f"{prefix}{key}", [f"{prefix}{name}" for name in known])
        default = known[key].default_factory
        made = default() if callable(default) else None
        if isinstance(made, dict) and not isinstance(value, Mapping):
            raise UsageError(f"{prefix}{key}={value!r} ({source}) must hold keys and values, such as {prefix}{key}.KEY=VALUE")
        if isinstance(made, list) and isinstance(value, Mapping):
            raise UsageError(f"{prefix}{key}={value!r} ({source}) must be a list, such as [a,b]")
        inner = default if isinstance(default, type) and is_dataclass(default) else None
        if inner is not None:
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{prefix}{key}={value!r} ({source}) must hold keys: {', '.join(f.name for f in fields(inner))}"
                )
            _check_keys(value, inner, f"{prefix}{key}.", source)


def _merge(merged: Any, layer: dict[str, Any], source: str) -> None:
    try:
        merged.merge_with(layer)
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        value = flatten(layer).get(key, layer.get(key))
        allowed = {
            "to Integer": "a whole number", "to Float": "a number", "to Boolean": "true or false", "to String": "text",
            "valid bool": "true or false",
            "is not a ListConfig": "a list, such as [a,b]", "for field of type 'str'": "text", "is not Optional": "set to something",
        }  # fmt: skip
        kinds = (text for mark, text in allowed.items() if mark in str(error.msg))
        words = next(kinds, f"of another type ({str(error.msg).splitlines()[0]})")
        raise UsageError(f"{key}={value!r} ({source}) must be {words}") from None


def _check_values(config: Config) -> None:
    """Values that no type can refuse."""
    budget = {key: value for key, value in asdict(config.budget).items() if value is not None}
    if len(budget) > 1:
        raise UsageError(f"budget has {', '.join(budget)} set; it must be one of flops, steps, epochs, seconds")
    for key, value in budget.items():
        if not 0 < value < math.inf:
            raise UsageError(f"budget.{key}={value} must be above 0{' and finite' if value > 0 else ''}")
    positive = {
        "trainer.batch_size": config.trainer.batch_size, "trainer.accumulate": config.trainer.accumulate,
        "trainer.checks": config.trainer.checks, "trainer.devices": config.trainer.devices,
        "match.tolerance": config.match.tolerance, "statistics.margin": config.statistics.margin,
        **{f"{name}[{i}]": value for name in ("dense_ladder", "budget_ladder", "dense_budgets")
           for i, value in enumerate(getattr(config, name))},
    }  # fmt: skip
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise UsageError(f"{name}={number} must be above 0{' and finite' if number > 0 else ''}")
    for name, number in {
        "workers": config.workers, "seed": config.seed, "trainer.checkpoint_seconds": config.trainer.checkpoint_seconds or 0,
    }.items():  # fmt: skip
        if not 0 <= number < math.inf:
            raise UsageError(f"{name}={number} must be at least 0{' and finite' if number > 0 else ''}")
    check_optimizer(config.optimizer)
    if not 0 < config.statistics.alpha < 1:
        raise UsageError(f"statistics.alpha={config.statistics.alpha} must lie between 0 and 1")
    sources = config.statistics.uncertainty
    for source in sources:
        if source not in UNCERTAINTY:
            raise unknown("statistics.uncertainty", source, UNCERTAINTY)
    if not sources or len(set(sources)) != len(sources):
        raise UsageError(f"statistics.uncertainty={sources} must be a list of one or both of {', '.join(UNCERTAINTY)}")
    if config.seeds == "auto" and "seeds" not in sources:
        raise UsageError(f"seeds=auto adds seeds, so statistics.uncertainty={sources} must contain seeds")
    for pair in config.statistics.pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or pair[0] == pair[1]
            or not all(isinstance(label, str) for label in pair)
        ):
            raise UsageError(f"statistics.pairs holds {pair!r}; each pair must be a list of two labels of arms that differ")
    if not 2 <= config.statistics.min_seeds <= config.statistics.max_seeds:
        raise UsageError(
            f"statistics.min_seeds={config.statistics.min_seeds} must be at least 2 and at most statistics.max_seeds={config.statistics.max_seeds}"
        )
    if config.trainer.batch_size % config.trainer.devices:
        raise UsageError(
            f"trainer.batch_size={config.trainer.batch_size} must be a multiple of trainer.devices={config.trainer.devices}: "
            "every process takes an equal share"
        )
    for name, value, allowed in (
        ("trainer.precision", config.trainer.precision, PRECISIONS),
        ("trainer.accelerator", config.trainer.accelerator, ("auto", "cpu", "gpu", "mps")),
        ("match.on", config.match.on, MATCHES),
    ):
        if value not in allowed:
            raise unknown(name, value, allowed)
    _check_accelerator(config.trainer.accelerator)
    from routelab.backbones.base import BACKBONES
    from routelab.data.base import DATA

    for section, registry in (("data", DATA), ("backbone", BACKBONES)):
        name = getattr(config, section).get("name")
        if name not in registry:
            raise unknown(f"{section}.name", name, registry.names())
    for key in config.experts:
        if key not in EXPERT_KEYS:
            raise unknown("key", f"experts.{key}", [f"experts.{name}" for name in EXPERT_KEYS])
    for key in config.init:
        if key not in ("from", "take"):
            raise unknown("key", f"init.{key}", ["init.from", "init.take"])
    check_init(config.init["from"], config.init["take"], "init")
    sizes = ("experts.count", "experts.hidden", "experts.rank", "backbone.hidden", "backbone.moe_every")
    for section, key in (name.split(".") for name in sizes):
        value = getattr(config, section).get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{section}.{key}={value!r} must be a whole number of at least 1")
    for key in ("shared", "zero", "copy", "constant"):
        value = config.experts.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"experts.{key}={value!r} must be a whole number of at least 0, or null for the router's own")
    bias = config.experts.get("bias", False)
    if not isinstance(bias, bool):
        raise UsageError(f"experts.bias={bias!r} must be true or false")
    seed_list(config)


def check_optimizer(optimizer: Optimizer) -> None:
    """UsageError for a value that the optimizer cannot have; `lr` may be a list."""
    rates_of(optimizer.lr, "optimizer.lr")
    for name, end in (("weight_decay", math.inf), ("clip", math.inf), ("warmup", 1), ("beta1", 1), ("beta2", 1)):
        value: Any = getattr(optimizer, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"optimizer.{name}={value!r} must be a number")
        if not 0 <= value < end:
            also = " and below 1" if end == 1 else " and finite" if value > 0 else ""
            raise UsageError(f"optimizer.{name}={value} must be at least 0{also}")
    if optimizer.schedule not in SCHEDULES:
        raise unknown("optimizer.schedule", optimizer.schedule, SCHEDULES)


def rates_of(value: Any, key: str) -> tuple[float, ...]:
    """One learning rate, or several to choose from."""
    given = value if isinstance(value, list) else [value]
    for rate in given:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise UsageError(f"{key}={value!r} must be a number above 0, or a list of such numbers")
    if not given or len(set(given)) < len(given):
        raise UsageError(f"{key}={value!r} must name at least one rate, and none twice")
    return tuple(float(rate) for rate in given)


def check_init(run: Any, take: Any, where: str) -> None:
    """UsageError unless `run` is a run's name, or None, and `take` what may be taken of it."""
    if run is not None and (not isinstance(run, str) or not run):
        raise UsageError(f"{where}.from={run!r} must be a run: its folder, its cell's address, or its id in MLflow; or null")
    if take not in TAKES:
        raise unknown(f"{where}.take", take, TAKES)


def _renamed(key: str, value: Any, source: str) -> UsageError:
    """Return the error for a former key, which names the present key of the first value below it."""
    former = next((name for name in flatten({key: value}) if name in FORMER_KEYS), key)
    return UsageError(f"key {former!r} ({source}) is now {FORMER_KEYS[former]!r}")


def _check_accelerator(name: str) -> None:
    """A device that is not there is an error of the call, not of each run."""
    if name in ("gpu", "mps"):
        import torch

        there = torch.cuda.is_available() if name == "gpu" else torch.backends.mps.is_available()
        if not there:
            raise UsageError(f"trainer.accelerator={name!r}, but this machine has none; use auto or cpu")


def seed_list(config: Config) -> list[int]:
    """The seeds of a comparison: a number n means 0 to n - 1; auto, the seeds that every arm begins with."""
    seeds = config.seeds
    if seeds == "auto":
        return list(range(config.statistics.min_seeds))
    if isinstance(seeds, bool) or not isinstance(seeds, (int, list)):
        raise UsageError(f"seeds={seeds!r} must be a number, a list of whole numbers, or auto")
    if isinstance(seeds, int):
        if not 1 <= seeds <= _MOST_SEEDS:
            raise UsageError(f"seeds={seeds} must be at least 1 and at most {_MOST_SEEDS}")
        return list(range(seeds))
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise UsageError(f"seeds={seeds!r} must be whole numbers of at least 0")
    if max(seeds) > _LARGEST_SEED:
        raise UsageError(f"seeds={seeds!r} must be at most {_LARGEST_SEED}")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds={seeds!r} names a seed twice; paired statistics would count it twice")
    return list(seeds)
