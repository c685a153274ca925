"""The vowel experiment of Jacobs, Jordan, Nowlan and Hinton (1991), Adaptive mixtures of local experts, Table 1.

Four vowels from two formants; mixtures of linear experts against networks trained by backpropagation; epochs until the mean
squared training error is 0.08. What the paper's text leaves open is run under several readings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradient_descent_1991 import MEASURES, OUTPUTS, Backprop, Criterion, Examples, Mixture, Reached, System, descend
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy import stats

from routelab.core.errors import UsageError, unknown
from routelab.core.intervals import mean_interval
from routelab.core.processes import ProcessSettings, run_tasks
from routelab.core.seeds import key
from routelab.data.peterson_barney import Split, recordings, training_speakers

CLASSES = 4
COUNTS = {"per output": float(CLASSES), "halved": 2.0, "per case": 1.0}
"""What the criterion is multiplied by to be a squared distance summed over a case's outputs, by what it is taken to be: the
mean over the outputs, half the sum, or the sum."""

PUBLISHED = {
    "4 experts": (0.88, 0.90, 1124, 23),
    "8 experts": (0.88, 0.90, 1083, 12),
    "backprop, 6 hidden": (0.88, 0.90, 2209, 83),
    "backprop, 12 hidden": (0.88, 0.90, 2435, 124),
}
"""Table 1: correct in training and in test, epochs to the criterion, and their standard deviation over 25 runs."""


@dataclass
class Settings:
    """Settings of `vowels1991.yaml`.

    runs: of each system. epochs: after which a run is given up. counts: what the criterion may be, see `COUNTS`. search: step
    sizes tried, with `search_runs` runs each. readings: what the outputs are, and the range (-scale, scale) of the initial
    weights. in_use: the mean proportion from which an expert counts as used. workers: processes; 0 = one for each core.
    """

    runs: int = 25
    epochs: int = 2500
    criterion: float = 0.08
    counts: list[str] = field(default_factory=lambda: list(COUNTS))
    search: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 6.0, 9.0, 14.0])
    search_runs: int = 5
    experts: list[int] = field(default_factory=lambda: [4, 8])
    hidden: list[int] = field(default_factory=lambda: [6, 12])
    splits: list[str] = field(default_factory=lambda: ["first", "random"])
    readings: list[dict[str, Any]] = field(default_factory=lambda: [{"outputs": "softmax", "scale": 0.5}])
    in_use: float = 0.05
    seed: int = 0
    output: str = "results/vowels1991"
    workers: int = 0


@dataclass(frozen=True)
class Reading:
    """One way to read the text, apart from the criterion. The split too, for the speakers' order is not known."""

    split: str
    outputs: str
    scale: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reading:
        """The reading that a row belongs to."""
        return cls(row["split"], row["outputs"], row["scale"])

    def __str__(self) -> str:
        return f"{self.split} 50 speakers train, {self.outputs} outputs, initial weights within ±{self.scale:g}"


def settings_of(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """The configuration file with `key=value` words merged in; UsageError in one sentence for what is wrong."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        typed: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        name = error.full_key or str(getattr(error, "key", "?"))
        if name.partition(".")[0].partition("[")[0] not in Settings.__dataclass_fields__:
            raise unknown(f"key ({path})", name, Settings.__dataclass_fields__) from None
        raise UsageError(f"{name} ({path}): {str(error.msg or error).splitlines()[0]}") from None
    settings: Settings = typed
    for name in ("runs", "epochs", "criterion", "search_runs", "in_use"):
        if not getattr(settings, name) > 0:
            raise UsageError(f"{name}={getattr(settings, name)} must be above 0")
    if settings.workers < 0:
        raise UsageError(f"workers={settings.workers} must be at least 0")
    for name in ("search", "experts", "hidden"):
        values = getattr(settings, name)
        if not values or not all(value > 0 for value in values):
            raise UsageError(f"{name}={values} must hold at least one value, all above 0")
    for count in settings.counts:
        if count not in COUNTS:
            raise unknown("criterion in counts", count, COUNTS)
    for split in settings.splits:
        training_speakers(split)  # type: ignore[arg-type]
    readings_of(settings)
    return settings


def readings_of(settings: Settings) -> list[Reading]:
    """Every reading on every split."""
    found = []
    for split in settings.splits:
        for given in settings.readings:
            wrong = sorted(set(given) ^ {"outputs", "scale"})
            if wrong:
                raise UsageError(f"readings: {given} must hold outputs and scale; see {wrong[0]!r}")
            if given["outputs"] not in OUTPUTS:
                raise unknown("outputs of a reading", given["outputs"], OUTPUTS)
            found.append(Reading(split, given["outputs"], float(given["scale"])))
    return found


def examples(split: Split) -> tuple[Examples, Examples]:
    """Training and test: F1 and F2 in kHz, and a constant 1."""
    found = recordings()
    trains = np.isin(found.speaker, training_speakers(split))

    def part(which: Any) -> Examples:
        x = torch.from_numpy(found.hertz[which] / 1000).float().t()
        return Examples(torch.cat([x, torch.ones_like(x[:1])]).contiguous(), torch.from_numpy(found.vowel[which]))

    return part(trains), part(~trains)


def criteria_of(criterion: float, counts: Sequence[str] = tuple(COUNTS)) -> dict[str, Criterion]:
    """By name, as "halved, prediction"."""
    return {f"{count}, {measure}": Criterion(criterion * COUNTS[count], measure) for count in counts for measure in MEASURES}


def run_reading(settings: Settings, reading: Reading) -> list[dict[str, Any]]:
    """One row for each system and criterion."""
    torch.set_num_threads(1)
    train, test = examples(reading.split)  # type: ignore[arg-type]
    systems: list[System] = [Mixture(count) for count in settings.experts] + [Backprop(count) for count in settings.hidden]
    criteria = criteria_of(settings.criterion, settings.counts)

    def trained(system: System, steps: Sequence[float], each: int, phase: str, wanted: Mapping[str, Criterion]) -> Any:
        generator = torch.Generator().manual_seed(key(settings.seed, "vowels1991", str(reading), system.name, phase))
        weights = system.start(len(steps) * each, reading.scale, len(train.x_IN), CLASSES, generator)
        step = torch.tensor(steps).repeat_interleave(each)
        return descend(system, weights, step, train, test, reading.outputs, wanted, settings.epochs)

    rows = []
    for system in systems:
        searched = trained(system, settings.search, settings.search_runs, "search", criteria)
        chosen = {name: best_step(found.epochs, settings.search) for name, found in searched.items()}
        steps = sorted({step for step, _ in chosen.values() if step is not None})
        # Fresh runs: those of the search are the luckiest of several tries.
        reached = {name: criteria[name] for name, (step, _) in chosen.items() if step is not None}
        final = trained(system, steps, settings.runs, "runs", reached) if steps else {}
        for name, (step, curve) in chosen.items():
            row = {**asdict(reading), "criterion": name, "system": system.name, "step": step, "search": curve}
            if step is not None:
                first = steps.index(step) * settings.runs
                row |= _row(final[name], slice(first, first + settings.runs), settings.in_use)
            rows.append(row)
    return rows


def best_step(epochs: torch.Tensor, steps: Sequence[float]) -> tuple[float | None, dict[str, float | None]]:
    """The step with the fewest mean epochs among those with which every run arrived, or else most of them; and the mean
    epochs by step. epochs: NaN where a run never arrived, the runs of a step in a row. None if no run arrived."""
    by_step = epochs.view(len(steps), -1)
    arrived = (~by_step.isnan()).sum(1)
    means = by_step.nanmean(1)
    curve = {f"{step:g}": None if math.isnan(mean) else mean for step, mean in zip(steps, means.tolist(), strict=True)}
    if not arrived.any():
        return None, curve
    means[arrived < arrived.max()] = math.inf
    return steps[int(means.argmin())], curve


def _row(reached: Reached, runs: slice, in_use: float) -> dict[str, Any]:
    epochs = reached.epochs[runs]
    arrived = ~epochs.isnan()
    row: dict[str, Any] = {"runs": len(epochs), "reached": int(arrived.sum()), "epochs": epochs[arrived].tolist()}
    parts = {"train": reached.train, "test": reached.test}
    if reached.proportions is not None:
        parts["in_use"] = (reached.proportions >= in_use).float().sum(1)
    return row | {name: values[runs][arrived].tolist() for name, values in parts.items()}


def ratio(rows: Sequence[Mapping[str, Any]], epochs: int) -> dict[str, float] | None:
    """Epochs of mixtures over epochs of backpropagation, geometric means over all runs, with a 95% interval (Welch's t on
    the logarithms). A run that never arrived counts as `epochs`, those after which it was given up, so if it is a mixture's
    the ratio is too small, else too large; `late` has their numbers. None where a system has no row of runs at all."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    late = {True: 0, False: 0}
    for row in rows:
        if row.get("runs", 0) < 2:
            return None
        gated = "in_use" in row
        missing = row["runs"] - row["reached"]
        taken[gated] += [max(epoch, 1.0) for epoch in row["epochs"]] + [float(epochs)] * missing
        late[gated] += missing
    if not all(taken.values()):
        return None
    mixtures, networks = np.log(taken[True]), np.log(taken[False])
    found = stats.ttest_ind(mixtures, networks, equal_var=False).confidence_interval(0.95)
    bounds = {"ratio": mixtures.mean() - networks.mean(), "low": found.low, "high": found.high}
    return {name: math.exp(value) for name, value in bounds.items()} | {"late": late[True], "late_backprop": late[False]}


def run(settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """The rows of each reading, in order, as they are done. Readings are trained side by side."""
    readings = readings_of(settings)
    workers = min(settings.workers or os.cpu_count() or 1, len(readings))
    if workers == 1:
        for reading in readings:
            yield run_reading(settings, reading)
        return
    finished: dict[int, list[dict[str, Any]]] = {}
    following = 0
    tasks = [(settings, reading) for reading in readings]
    for index, future in run_tasks(run_reading, tasks, [ProcessSettings()] * workers):
        finished[index] = future.result()
        # Readings end in any order; their rows come in the order of the readings.
        while following in finished:
            yield finished.pop(following)
            following += 1


def describe(values: Sequence[float], form: str) -> str:
    """A mean with the half width of its 95% t-interval."""
    interval = mean_interval(values)
    text = f"{interval.mean:{form}}"
    return text if math.isnan(interval.high) else f"{text} ±{interval.high - interval.mean:{form}}"
