"""From the name of a run to its trained arm and a sample of its test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.comparison.inference_latency import trained
from routelab.config.run_spec import WEIGHTS
from routelab.core.errors import UsageError
from routelab.core.plugins import load_plugin
from routelab.data.base import DataSet, load
from routelab.data.task import Batch
from routelab.data.text import documents
from routelab.records.run_lookup import find_record, folder_of, run_folder, spec_of
from routelab.tracking.artifacts import store_at

TOKENS = 32_768
"""Tokens of the test split that are looked at, unless a number of examples is asked for."""

_FEWEST, _BATCH_TOKENS = 64, 4096


@dataclass(frozen=True)
class TrainedRun:
    """A recorded run with its weights. run_id: in MLflow, if it was found there. index: the examples of `sample` in the test
    split."""

    record: dict[str, Any]
    folder: Path
    run_id: str | None
    data: DataSet
    arm: SingleBackbone
    sample: Batch
    index: Tensor

    @property
    def name(self) -> str:
        """Arm, seed and data, for titles."""
        return f"{self.record['arm']}, seed {self.record['seed']}, on {self.record['data']}"

    def blocks(self) -> tuple[NDArray[Any], bool]:
        """Which examples of the sample hang together, as numbers (N,): windows of one document, and whether documents are known;
        else every example is one by itself."""
        found = documents(self.data)
        return (np.arange(len(self.sample)), False) if found is None else (found[self.index.numpy()], True)

    def batches(self) -> Iterator[Batch]:
        """The sample in parts of at least two examples (if there are two), for routing swapped between examples."""
        size = max(2, _BATCH_TOKENS // self.arm.network.positions)
        for part in torch.arange(len(self.sample)).tensor_split(max(1, len(self.sample) // size)):
            yield self.sample.select(part).to(next(self.arm.parameters()).device)


def open_run(run: str, uri: str | None, results: Path = Path("results"), examples: int | None = None) -> TrainedRun:
    """A routed run, ready to be looked at; UsageError in one sentence if it is not routed, failed, or left no weights.

    run: as `find_record` takes it. examples: how many of the test split to look at, drawn without replacement, always the same
    (default: `TOKENS` tokens, at least 64 examples).
    """
    if examples is not None and examples < 2:
        raise UsageError(f"--examples is {examples}; it must be at least 2")
    store = store_at(uri)
    record = find_record(run, store, results)
    name = f"run {record['arm']}-s{record['seed']} on {record['data']}"
    if record.get("status") != "ok":
        raise UsageError(f"{name} failed, so there is nothing to analyze: {record.get('error')}")
    folder = folder_of(run, record, store, results)
    spec = spec_of(record)
    for plugin in spec.plugins:
        load_plugin(plugin)
    data = load(**spec.data)
    known = (record.get("provenance") or {}).get("data_digest")
    if known not in (None, data.digest):
        raise UsageError(f"{name} was trained on other data (digest {known}) than is installed now ({data.digest})")
    arm = trained(record, folder / WEIGHTS, data)
    if not isinstance(arm, SingleBackbone):
        raise UsageError(
            f"{name} is of several models or stages (arm {spec.arm.name!r}); analyze takes one backbone with a router"
        )
    if not arm.mixtures:
        raise UsageError(f"{name} is dense: it has no mixture layer, so there are no experts to analyze")
    wanted = max(_FEWEST, TOKENS // arm.network.positions) if examples is None else examples
    index = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:wanted].sort().values
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = None if run_folder(run, results) is not None else run
    return TrainedRun(record, folder, known, data, arm.to(device).eval(), data.test.select(index), index)
