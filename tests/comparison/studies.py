"""Summaries of comparisons with chosen losses by seed and test unit, and the clauses that their sentences must hold.

Axes: S seeds, U test units.
"""

import ast
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.summary import summarise
from routelab.config.schema import StatisticsOptions
from routelab.data.unit_table import UnitTable

SEEDS, UNITS = ["seeds"], ["examples"]


def standardised(values):
    return (values - values.mean()) / values.std(ddof=1)


def table(n=5, m=100, shift=0.0, seeds=0.0, units=0.0, error=0.0, many=0.0):
    """Losses (S, U) with a mean of exp(shift), and effects of exactly these standard deviations.

    The effects of seeds are evenly spaced, those of units are normal quantiles. `many` is the effect of the first ten units alone.
    """
    table_SU = np.ones((n, m))
    if n > 1:
        table_SU += seeds * standardised(np.arange(n))[:, None]
    if m > 1:
        table_SU += units * standardised(stats.norm.ppf((np.arange(m) + 0.5) / m))
        table_SU[:, :10] += many * np.array([1.0, -1.0] * 5)[:m]
    if error:
        error_SU = np.random.default_rng(0).normal(size=(n, m))
        error_SU -= error_SU.mean(0) + error_SU.mean(1, keepdims=True) - error_SU.mean()
        table_SU += error * error_SU / error_SU.std()
    return math.exp(shift) * table_SU


def values(*log_losses):
    """Losses (S,) of an arm whose runs recorded no test units."""
    return np.exp(np.array(log_losses))


def study(arms=None, *, dense=None, without=(), unit="example", changes=None, failures=None, reference="dense", **more):
    """Return the summary of a comparison.

    Args:
        arms: Label -> losses by seed and unit (S, U), or by seed (S,) without test units.
        dense: Losses of the reference; None = 1 for every seed and unit of the first arm.
        without: Labels of arms without a record.
        unit: Name of the test unit.
        changes: Label -> entries of its records that differ from the default, or a function from the seed to them.
        failures: (label, seed) -> "failed" or "diverged".
        reference: Label of the reference.
        more: Arguments of `summarise`.
    """
    records, tables = records_of(arms, dense, without, unit, changes, failures)
    labels = list(dict.fromkeys(record["arm"] for record in records))
    more = {"options": StatisticsOptions(), **more}
    return summarise("study", records, labels, reference, tables=MetricTables(records, tables), **more)


def records_of(arms=None, dense=None, without=(), unit="example", changes=None, failures=None):
    arms = arms or {}
    dense = np.ones_like(next(iter(arms.values()))) if dense is None else dense
    arms = {label: losses for label, losses in {"dense": dense, **arms}.items() if label not in without}
    records, tables = [], {}
    for label, losses in arms.items():
        for seed, row in enumerate(losses):
            failure = (failures or {}).get((label, seed))
            change = (changes or {}).get(label, {})
            record = {
                "arm": label, "seed": seed, "data": "digits", "metric": "accuracy", "flops_per_example": 1e6,
                "status": "failed" if failure else "ok", "diverged": failure == "diverged",
                "test": {} if failure else {"loss": float(np.mean(row)), "accuracy": 0.5},
            } | (change(seed) if callable(change) else change)  # fmt: skip
            if np.ndim(row):
                record["units"] = {"unit": unit, "number": len(row), "pooled": False}
                sums = {"loss": np.array(row), "count": np.ones(len(row)), "correct": np.full(len(row), 0.5)}
                tables[label, seed] = UnitTable(np.arange(len(row)), None, sums)
            records.append(record)
    return records, lambda record: tables.get((record["arm"], record["seed"]))


def options(*uncertainty, **more):
    return StatisticsOptions(uncertainty=list(uncertainty or ("seeds", "examples")), **more)


def of_mine(losses, **more):
    """Return the verdict on one arm."""
    return study({"mine": losses}, **more)["arms"]["mine"]["verdict"]


def of_dense(losses, **more):
    return study({"mine": losses}, **more)["arms"]["dense"]["verdict"]


def sentence(arms, **more):
    return study(arms, **more)["sentence"]


def caveat(arms, **more):
    return study(arms, **more)["caveat"]


def note(arms, **more):
    return study(arms, **more)["split_note"] or ""


def seconds(*mine):
    """Return the change that gives an arm's runs these training times, by seed."""
    return {"dense": {"seconds": 1.0}, "mine": lambda seed: {"seconds": mine[seed]}}


def frontier(bound, low=math.nan, high=math.nan, covered=("seeds", "examples")):
    at_own_loss = {"loss": 1.0, "bound": bound, "mean": 1.25, "low": low, "high": high, "n": 5, "covered": list(covered)}
    return {"arms": {"mine": {"own": at_own_loss}}}


# Six seeds, the last of which lies far from the others; more than one of twenty.
UNDECIDED_OUTLIER = values(0.0, 0.001, -0.001, 0.0005, -0.0005, 0.1)
DECIDED_OUTLIER = values(-1.0, -1.01, -0.99, -1.0, -0.5)
TWO_OUTLIERS = values(*(-1 + 0.01 * math.sin(seed) for seed in range(18)), -0.5, -1.5)

BETTER, WORSE = table(shift=-0.5, seeds=0.01, units=0.05), table(shift=0.5, seeds=0.01, units=0.05)
ALIKE = table(shift=0.0, seeds=0.001, units=0.001)
UNDECIDED = table(shift=0.02, seeds=0.05, units=0.4)
CONSTANT = table(shift=0.2, units=0.1)
BY_UNITS = table(seeds=0.002, units=0.5, error=0.01)
BY_SEEDS = table(seeds=0.2, units=0.05, error=0.01)
BY_BOTH = table(seeds=0.05, units=0.2, error=0.01)
CONCENTRATED, EVEN = table(seeds=0.01, units=0.1, many=0.5), table(seeds=0.01, units=0.1)
ONLY_SEEDS = table(n=3, shift=-0.1, seeds=0.001, units=0.7)
EQUAL_OVER_SEEDS = table(n=3, seeds=0.001, units=0.7)
# Over 3 seeds the t distribution has 2 degrees of freedom, over both it has more.
ONLY_BOTH = table(n=3, shift=0.18, seeds=0.063, units=0.5)
OUTLYING_OVER_SEEDS = np.exp([[0.1], [0.101], [0.099], [0.1], [0.12]]) * table(units=0.7)
TWO = {"mine": BETTER, "other": WORSE}


@dataclass(frozen=True)
class Case:
    """A clause, and texts of summaries on both sides of its condition."""

    clause: str
    present: Callable[[], str]
    absent: Callable[[], str]


def literals(path):
    """Return the pieces, of at least three words, of the string literals of a module that are not docstrings."""
    tree = ast.parse(Path(path).read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements
    ]
    pieces = itertools.chain.from_iterable(re.split(r"\{[^}]*\}", text) for text in strings)
    return {piece for piece in pieces if len(piece.split()) >= 3}


def untested_literals(module, cases):
    """Return the pieces of a module's string literals that no tested clause contains."""
    pieces = literals(module.__file__)
    assert pieces
    return {piece for piece in pieces if not any(piece.strip() in case.clause for case in cases)}
