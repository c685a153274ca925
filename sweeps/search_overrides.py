"""The `search` section of a configuration: values, lists and ranges by dotted name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from routelab.core.errors import UsageError, unknown


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if both ends and the step are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def distribution(self) -> BaseDistribution:
        if all(isinstance(each, int) for each in (self.low, self.high, self.step or 1)):
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), self.log, self.step)


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.values)


@dataclass(frozen=True)
class Pinned:
    """This value, in every trial."""

    value: Any


Wish = Range | Choices | Pinned


def wishes(search: Mapping[str, Any]) -> dict[str, Wish]:
    """The `search` section: dotted name -> a value (pinned), a list (one of these), or low, high, log and step (a range).

    UsageError for a space without points.
    """
    found: dict[str, Wish] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and not {"low", "high"} & set(value):
                walk(value, f"{key}.")
            else:
                found[key] = _wish(f"search.{key}", value)

    walk(search, "")
    return found


def _wish(key: str, value: Any) -> Wish:
    if isinstance(value, list):
        if not value:
            raise UsageError(f"{key}=[] leaves no point to search; name at least one value")
        if any(isinstance(each, (list, dict)) for each in value):
            raise UsageError(f"{key}={value!r} must list numbers, words or truth values")
        values = tuple(dict.fromkeys(value))
        return Choices(values) if len(values) > 1 else Pinned(values[0])
    if not isinstance(value, Mapping):
        return Pinned(value)
    if extra := set(value) - {"low", "high", "log", "step"}:
        raise unknown(f"key of {key}", sorted(extra)[0], ["low", "high", "log", "step"])
    low: Any = value.get("low")
    high: Any = value.get("high")
    log, step = value.get("log", False), value.get("step")
    for name, number in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UsageError(f"{key}.{name}={number!r} must be a number")
    if low > high:
        raise UsageError(f"{key} leaves no point to search: low={low} is above high={high}")
    if not isinstance(log, bool) or (log and low <= 0):
        raise UsageError(f"{key}.log={log!r} with low={low}: log must be true or false, and a log scale begins above 0")
    if step is not None and (step <= 0 or log):
        raise UsageError(f"{key}.step={step!r} must be above 0, and goes with no log scale")
    return Pinned(low) if low == high else Range(low, high, log, step)
