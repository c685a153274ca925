"""What a prediction costs on the clock: trained arms side by side, at several batch sizes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from routelab.baselines.base import Arm
from routelab.baselines.build import arm_class, make_arm
from routelab.baselines.run_reference import read_weights, restore
from routelab.config.run_spec import WEIGHTS
from routelab.core.errors import UsageError
from routelab.core.plugins import load_plugin
from routelab.data.base import DataSet
from routelab.data.task import Batch
from routelab.records.json_io import read_json, write_json
from routelab.records.run_cache import cell_folder
from routelab.records.run_lookup import spec_of

BATCH_SIZES = (1, 16, 256)
_ROUNDS = 7
_LONGEST = 1.0
"""Seconds of one prediction beyond which no further round is timed."""


def inference(records: Sequence[Mapping[str, Any]], output: Path, data: DataSet) -> dict[str, dict[str, float]]:
    """Seconds per example of each arm: label -> batch size -> median over rounds in which all arms take turns.

    Timed are the trained weights of an arm's first seed, in this process, on the GPU if there is one, with torch's own number
    of threads and in float32. References outside the loop, which leave no weights, are left out, and so is an arm at a batch
    size that it cannot predict: its runs are done, and a comparison does not end for want of a time. `inference.json` in the
    comparison's folder `output` keeps what was measured, so that runs that are all there already are not timed again.
    """
    chosen = {
        str(record["arm"]): record
        for record in reversed(records)
        if record["status"] == "ok" and not arm_class(record["config"]["arm"]["name"]).fit_outside_loop
    }
    keys = {label: str(record["provenance"]["cell"]) for label, record in sorted(chosen.items())}
    place = output / "inference.json"
    before = read_json(place) or {}
    if before.get("cells") == keys:
        return dict(before["seconds_per_example"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arms = {}
    for label, record in chosen.items():
        try:
            arms[label] = trained(record, cell_folder(output, keys[label]) / WEIGHTS, data).to(device).eval()
        except UsageError:
            continue  # Its weights are gone, or of other code.
    found: dict[str, dict[str, float]] = {label: {} for label in arms}
    for size in BATCH_SIZES:
        if size <= len(data.test):
            batch = data.test.select(slice(0, size)).to(device)
            for label, seconds in timed(arms, batch).items():
                found[label][str(size)] = seconds / size
    write_json(place, {"cells": keys, "device": str(device), "threads": torch.get_num_threads(), "seconds_per_example": found})
    return found


def trained(record: Mapping[str, Any], weights: Path, data: DataSet) -> Arm:
    """The arm as a run left it; UsageError if its weights are gone, or are not those of this code."""
    spec = spec_of(record)
    name = f"run {spec.label}-s{spec.seed} on {record['data']}"
    state = read_weights(weights, name)
    for plugin in spec.plugins:
        load_plugin(plugin)
    arm = make_arm(spec.arm, data.task, spec.seed)
    try:
        restore(arm, state, data.train)
    except RuntimeError as error:
        raise UsageError(f"{name}: the weights in {str(weights)!r} do not fit this version of the code") from error
    return arm


@torch.inference_mode()
def timed(arms: Mapping[str, Arm], batch: Batch) -> dict[str, float]:
    """Median seconds of a prediction of the whole batch, of arms that can make one; the first round warms up."""
    times: dict[str, list[float]] = {label: [] for label in arms}
    for round_ in range(_ROUNDS + 1):
        for label, arm in arms.items():
            if times[label] and times[label][-1] > _LONGEST:
                continue
            started = time.perf_counter()
            try:
                arm.predict(batch)
                if batch.targets.is_cuda:
                    torch.cuda.synchronize()
            except Exception:
                continue  # A plugin's, which has seen batches of other sizes only.
            taken = time.perf_counter() - started
            if round_ or taken > _LONGEST:
                times[label].append(taken)
    return {label: median(values) for label, values in times.items() if values}
