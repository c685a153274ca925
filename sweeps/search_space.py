"""The search space of an arm: what its parts suggest, narrowed, pinned or widened by the `search` section of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from routelab.backbones.base import BACKBONES
from routelab.baselines.build import arm_class, router_of
from routelab.baselines.moe_arm import LAYER_OPTIONS
from routelab.config.arm_grid import ArmChoice
from routelab.config.run_options import Optimizer
from routelab.config.schema import EXPERT_KEYS
from routelab.core.errors import PluginError, UsageError, unknown
from routelab.core.options import option_names
from routelab.experts.feed_forward import kind_named
from routelab.routers.router_registry import ROUTERS
from routelab.sweeps.arm_settings import Settings, apply, flatten_settings, in_full, takes
from routelab.sweeps.distributions import contains, few_values, first_value, other_values, points
from routelab.sweeps.search_overrides import Choices, Pinned, Range, Wish
from routelab.training.optimizer import suggest as suggest_optimizer

Ask = Callable[[str, BaseDistribution], Any]
"""Answers a name and its distribution with a value."""


class Asked:
    """What the parts of an arm see as the trial: their names get a prefix, and the configuration's wishes come first.

    ask: hands a name and its distribution to Optuna, or to whoever records the space.
    """

    def __init__(self, ask: Ask, prefix: str, wanted: Mapping[str, Wish]) -> None:
        self._ask, self._prefix, self._wanted = ask, prefix, wanted

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        value = self._suggest(name, FloatDistribution(low, high, log, step))
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggest(name, IntDistribution(low, high, log, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        key = f"{self._prefix}{name}"
        wish = self._wanted.get(key)
        if isinstance(wish, Pinned):
            return wish.value
        return self._ask(key, distribution if wish is None else _typed(wish, distribution))


def _typed(wish: Range | Choices, distribution: BaseDistribution) -> BaseDistribution:
    """A range in whole numbers for what is a number otherwise is a range of numbers."""
    if isinstance(wish, Range) and isinstance(distribution, FloatDistribution):
        return FloatDistribution(float(wish.low), float(wish.high), wish.log, wish.step)
    return wish.distribution()


@dataclass(frozen=True)
class Space:
    """The search space of one arm. only: None, or the names that are searched; others keep the configuration's values.

    What the arm's own entry in `arms` says is not searched, or its label would not be true, unless `search` names it.

    refusal: why an arm cannot be built, None if it can. What an option may be can depend on others (`top_k` on
    `experts.count`), which the arm's constructors know, so they are asked. Without it all values go with all others.
    """

    choice: ArmChoice
    wanted: Mapping[str, Wish] = field(default_factory=dict)
    only: frozenset[str] | None = None
    refusal: Callable[[ArmChoice], str | None] = field(default=lambda choice: None)
    _known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def suggest(self, ask: Ask) -> Settings:
        """The settings of one trial. ask(name, distribution) returns a value, as `Trial._suggest` of Optuna would.

        Where the arm cannot be built with what was drawn, one value gives way to the nearest that goes with the others: the last
        that can. If there is none, the settings stay as they were drawn, and their trial says why it failed.
        """
        return self._agreed(ask)[0]

    def _agreed(self, ask: Ask, keep: Collection[str] = ()) -> tuple[Settings, dict[str, Any]]:
        """Settings, and the answers that they come from. keep: names that do not give way."""
        dimensions: dict[str, BaseDistribution] = {}
        answers: dict[str, Any] = {}

        def noted(key: str, distribution: BaseDistribution) -> Any:
            if key not in answers:
                dimensions[key], answers[key] = distribution, ask(key, distribution)
            return answers[key]

        settings = self._drawn(noted)
        if self._fits(settings, dimensions):
            return settings, answers
        for key in [name for name in reversed(answers) if name not in keep]:
            for other in other_values(dimensions[key], answers[key]):
                changed = self._drawn(partial(_exchanged, noted, key, other))
                if self._fits(changed, dimensions):
                    return changed, answers | {key: other}
        return settings, answers

    def _fits(self, settings: Settings, dimensions: Mapping[str, BaseDistribution]) -> bool:
        """Whether the arm can be built with these settings. What has no few values goes with everything, so little is built."""
        loose = {key for key, distribution in dimensions.items() if not few_values(distribution)}
        key = repr([(name, value) for name, value in settings.items() if name not in loose])
        if key not in self._known:
            self._known[key] = self.refusal(apply(self.choice, settings)) is None
        return self._known[key]

    def narrowed(self) -> Space:
        """The space without the values with which the arm cannot be built, whatever one other value is."""
        dimensions = self.dimensions()
        kept: dict[str, Wish] = {}

        def possible(key: str, value: Any) -> bool:
            return self._fits(self._beside({key: value}), dimensions)

        for key, distribution in dimensions.items():
            values = few_values(distribution)
            if isinstance(distribution, IntDistribution) and values:
                # Of a range only the ends are asked for, and what is next to them where they are refused.
                low = next((value for value in values if possible(key, value)), None)
                high = next((value for value in reversed(values) if possible(key, value)), None)
                if low is not None and high is not None and (low, high) != (values[0], values[-1]):
                    kept[key] = Range(low, high, distribution.log, distribution.step) if low < high else Pinned(low)
            elif isinstance(distribution, CategoricalDistribution):
                left = tuple(value for value in values if possible(key, value))
                if 0 < len(left) < len(values):
                    kept[key] = Choices(left) if len(left) > 1 else Pinned(left[0])
        return replace(self, wanted={**self.wanted, **kept}) if kept else self

    def refused(self, point: Settings) -> str | None:
        """Why the arm cannot be built with these values, whatever one other value is; None if it can."""
        return self.refusal(apply(self.choice, self._beside(point)))

    def _beside(self, point: Settings) -> Settings:
        """Settings with these values, the others being where the search begins, or one of them where it goes with these."""
        return self._agreed(partial(self._at, point), point)[0]

    def _at(self, point: Settings, key: str, distribution: BaseDistribution) -> Any:
        """The value of a point, or else of where the search begins: the configuration's, or the first of the range."""
        now = point[key] if key in point else self.current(key)
        return now if contains(distribution, now) else first_value(distribution)

    def _drawn(self, ask: Ask) -> Settings:
        """The settings that the answers make, whether they go together or not."""
        chosen: Settings = {}
        asked: set[str] = set()
        wanted = {**{key: Pinned(self.current(key)) for key in self.choice.own}, **self.wanted}

        def noted(key: str, distribution: BaseDistribution) -> Any:
            asked.add(key)
            if self.only is not None and key not in self.only:
                return self.current(key)
            return ask(key, distribution)

        for prefix, call in self._parts():
            try:
                given = call(Asked(noted, prefix, wanted))
            except UsageError:
                raise
            except Exception as error:
                raise PluginError(f"arm {self.choice.label!r}: suggest failed: {type(error).__name__}: {error}") from error
            if not isinstance(given, Mapping):
                raise PluginError(f"arm {self.choice.label!r}: suggest failed: it must return a dict, and returned {given!r}")
            chosen |= {f"{prefix}{key}": value for key, value in flatten_settings(given).items()}
        for key, wish in self.wanted.items():
            if key not in asked and takes(self.choice, key):
                chosen[key] = wish.value if isinstance(wish, Pinned) else ask(key, wish.distribution())
        return chosen if self.only is None else {key: value for key, value in chosen.items() if value is not None}

    def _parts(self) -> list[tuple[str, Callable[[Any], dict[str, Any]]]]:
        spec = self.choice.spec
        parts: list[tuple[str, Callable[[Any], dict[str, Any]]]] = [
            ("optimizer.", suggest_optimizer),
            ("", lambda trial: arm_class(spec.name).suggest(trial, spec)),
        ]
        if router_of(spec) is not None:
            parts.append(("router.", ROUTERS.get(str(router_of(spec))).suggest))
            if spec.experts.get("kind"):
                parts.append(("experts.", kind_named(spec.experts["kind"]).suggest))
        if spec.backbone.get("name") in BACKBONES:
            parts.append(("backbone.", BACKBONES.get(spec.backbone["name"]).suggest))
        return parts

    def dimensions(self) -> dict[str, BaseDistribution]:
        """The names that are searched, and where; of a space that branches, the branch of the configuration's values."""
        found: dict[str, BaseDistribution] = {}

        def record(key: str, distribution: BaseDistribution) -> Any:
            found[key] = distribution
            return self._at({}, key, distribution)

        self._drawn(record)
        return found

    def current(self, key: str) -> Any:
        """The value of a name as `search` pins it, as the configuration has it, or the default of the part; None if there is
        none of them."""
        wish = self.wanted.get(key)
        if isinstance(wish, Pinned):
            return wish.value
        section, _, rest = key.partition(".")
        spec = self.choice.spec
        if section == "optimizer":
            return getattr(self.choice.optimizer, rest)
        if section == "router" and (name := router_of(spec)) is not None:
            router: Any = ROUTERS.get(name)
            if rest.startswith("loss_weights."):
                loss = rest.partition(".")[2]
                return (spec.router.get("loss_weights") or {}).get(loss, router.loss_weights.get(loss))
            if rest in spec.router:
                return spec.router[rest]
            parameter = inspect.signature(router).parameters.get(rest)
            default = getattr(router, rest, None) if parameter is None else parameter.default
            return None if default is inspect.Parameter.empty else default
        if section == "options":
            return spec.options.get(rest, getattr(arm_class(spec.name).options_type, rest, None))
        return spec.get(key) if section in ("experts", "backbone") else None

    def starts(self) -> list[Settings]:
        """What is tried first: the configuration's own values, and the router's published settings over them."""
        dimensions = self.dimensions()
        name = router_of(self.choice.spec)
        published = ROUTERS.get(name).published if name is not None else ()
        own = {key: self.current(key) for key in dimensions}
        found: list[Settings] = []
        for more in ({}, *({f"router.{key}": value for key, value in flatten_settings(each).items()} for each in published)):
            point = {**own, **more}
            inside = {k: v for k, v in point.items() if k in dimensions and contains(dimensions[k], v)}
            _, agreed = self._agreed(partial(self._at, inside), set(more))
            inside = {key: agreed.get(key, value) for key, value in inside.items()}
            if set(more) <= set(inside) and inside and inside not in found:
                found.append(inside)
        return found


def _exchanged(ask: Ask, key: str, value: Any, name: str, distribution: BaseDistribution) -> Any:
    """The answers of `ask`, but for `key`, which has this value."""
    return value if name == key else ask(name, distribution)


def space_of(
    choice: ArmChoice,
    wanted: Mapping[str, Wish],
    grid: bool,
    refusal: Callable[[ArmChoice], str | None] = lambda choice: None,
) -> Space:
    """The search space of an arm. Several `optimizer.lr` are choices. grid: only names in `search` are searched.

    refusal: see `Space`.
    """
    mine = {full: wish for key, wish in wanted.items() if takes(choice, full := in_full(choice, key))}
    if len(choice.rates) > 1:
        mine.setdefault("optimizer.lr", Choices(choice.rates))
    if arm_class(choice.spec.name).fit_outside_loop:
        return Space(choice, {}, frozenset())
    space = Space(choice, mine, frozenset(mine) if grid else None, refusal)
    if grid:
        for key, distribution in space.dimensions().items():
            if points(distribution) is None:
                raise UsageError(f"search.{key} has no end of values, which sampler=grid cannot try; give a list, or a step")
    return space


def check_values(wanted: Mapping[str, Wish], spaces: Sequence[Space]) -> None:
    """UsageError for a value of a list in `search`, or an end of a range of numbers, with which no arm can be built.

    An arm that cannot be built where its search begins is left out: what is wrong there is said when it is built.
    """
    begun = [(space, space.dimensions()) for space in spaces if space.refused({}) is None]
    for key in wanted:
        takers = [(space, full, where[full]) for space, where in begun if (full := in_full(space.choice, key)) in where]
        values: dict[Any, list[str | None]] = {}
        for space, full, distribution in takers:
            ends = (distribution.low, distribution.high) if isinstance(distribution, FloatDistribution) else ()
            for value in getattr(distribution, "choices", ends):
                values.setdefault(value, []).append(space.refused({full: value}))
        for value, reasons in values.items():
            if all(reasons):
                raise UsageError(f"search.{key} holds {value!r}, with which no arm can be built: {reasons[0]}")


def check_keys(wanted: Mapping[str, Wish], choices: Sequence[ArmChoice]) -> None:
    """UsageError for a name in `search` that no arm takes."""
    for key in wanted:
        if not any(takes(choice, in_full(choice, key)) for choice in choices):
            known = {f"optimizer.{each.name}" for each in fields(Optimizer)}
            for choice in choices:
                known |= set(Space(choice).dimensions()) if not arm_class(choice.spec.name).fit_outside_loop else set()
                router = router_of(choice.spec)
                if router is not None:
                    named = option_names(ROUTERS.get(router)) or []
                    known |= {f"router.{name}" for name in (*named, *LAYER_OPTIONS)}
                    known |= {f"experts.{name}" for name in EXPERT_KEYS}
                known |= set(arm_class(choice.spec.name).option_names())
            raise unknown("key", f"search.{key}", [f"search.{name}" for name in known])
