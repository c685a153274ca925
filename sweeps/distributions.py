"""Values of Optuna's distributions: all of a finite one, the nearest, the first, and a description."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

_MANY = 100
"""A distribution of more values than these is taken to go with everything."""


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of the distribution's."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def points(distribution: BaseDistribution) -> list[Any] | None:
    """All values of a finite distribution; None where there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        return None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def few_values(distribution: BaseDistribution) -> list[Any]:
    """All values of a distribution that has few of them; empty for one that has not."""
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low > _MANY * distribution.step:
        return []
    found = points(distribution) or []
    return found if len(found) <= _MANY else []


def other_values(distribution: BaseDistribution, value: Any) -> list[Any]:
    """The other values of a distribution that has few, the nearest in their order first."""
    values = few_values(distribution)
    if value not in values:
        return []
    at = values.index(value)
    return [values[i] for i in sorted(range(len(values)), key=lambda i: abs(i - at)) if i != at]


def in_words(distribution: BaseDistribution) -> str:
    """What a reader is told of a distribution: `2, 4`, or `0.0001 to 0.03, log`."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    step = f", step {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low:g} to {distribution.high:g}{', log' if distribution.log else ''}{step}"


def first_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return distribution.low
