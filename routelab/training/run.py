"""One run: data, arm, seed and budget, through one Trainer, to one record."""

from __future__ import annotations

import logging
import math
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from routelab.baselines.base import Arm, predicted
from routelab.baselines.build import arm_class, blame, make_arm
from routelab.baselines.evaluation_metrics import close_look, close_sums
from routelab.baselines.upcycling import begin_from
from routelab.config.run_spec import WEIGHTS, RunSpec, builds_on, runs_on
from routelab.core.errors import PluginError, UsageError
from routelab.core.plugins import load_plugin
from routelab.core.process_group import inside, launch
from routelab.data.base import DataSet, load
from routelab.data.unit_table import UnitTable
from routelab.experts.kernels.glibc_allocator import keep_freed_memory
from routelab.records.provenance import provenance
from routelab.records.unit_file import UNITS, write_units
from routelab.training.checkpoint import Checkpoint
from routelab.training.engines.data_parallel import Replicas
from routelab.training.lightning_module import Endless, NotFiniteError, Slices, StoppedError, TrainingModule
from routelab.training.memory import Footprint, held
from routelab.training.observer import CallbackObserver, Observer


@dataclass(frozen=True)
class Run:
    """Result of a training run.

    Attributes:
        record: Record of the run.
        arm: Trained arm; None if the run failed, or trained in processes of its own.
        units: Sums by test unit; None in the same cases, and if the run was not tested.
    """

    record: dict[str, Any]
    arm: Arm | None
    units: UnitTable | None = None


def execute(
    spec: RunSpec,
    *,
    folder: Path | None = None,
    key: str | None = None,
    observer: Observer | None = None,
    data: DataSet | None = None,
    test: bool = True,
    common: tuple[Path, str] | None = None,
) -> Run:
    """Train, test and record one run. A failure of the work itself is a record with status "failed", not an exception.

    test: False leaves the test split unread, for runs that only choose settings; the record's `test` is then empty.

    folder: where the trained weights are left as `weights.ckpt`, loadable with `torch.load(weights_only=True)`, and the sums by
    test unit as `units.parquet`.
    key: the run's address. With a folder and a key, the state of the run is written there every
    `trainer.checkpoint_seconds`, and a run that finds its own state goes on from it, to the same bits on a CPU.

    common: folder and address of a state that arms which are trained alike (`Arm.trained_as`) share: a run that finds one
    goes on from there, to what it would have come to by itself, and one that does not leaves one shortly before it ends.
    """
    if spec.trainer.devices > 1 and not inside() and not arm_class(spec.arm.name).fit_outside_loop:
        return _together(spec, folder, key, observer or Observer(), test)
    _quiet()
    keep_freed_memory()  # of the whole process: a step of many experts takes more time in page faults than in products
    started = time.perf_counter()
    data = load_data(spec) if data is None else data
    footprint = Footprint()
    record: dict[str, Any] = {
        "status": "failed",
        "error": None,
        "arm": spec.label,
        "seed": spec.seed,
        "data": data.task.name,
        "metric": data.task.metric,
        "config": spec.plain(),
        "initial_flops": builds_on(spec),
        "provenance": {**provenance(), "data_digest": data.digest, "data_source": data.source},
    }
    arm = make_arm(spec.arm, data.task, spec.seed)
    if spec.init is not None:
        begin_from(arm, spec.init.state(), spec.init.run)
    try:
        record |= _what_it_is(arm)
    except PluginError as error:
        return Run({**record, "error": str(error), "test": {}, "curve": [], "problems": []}, None)
    checkpoint = None if folder is None or key is None else Checkpoint(folder, key, spec.trainer.checkpoint_seconds)
    shared = None if common is None else Checkpoint(*common, None)
    module = TrainingModule(
        arm, data, spec.seed, spec.budget, spec.optimizer, spec.trainer, observer or Observer(), checkpoint, shared
    )
    try:
        if arm.fit_outside_loop:
            _outside(arm, data, module, test)
        else:
            _inside(arm, data, module, spec, folder, test)
        for name, found in (("validation", module.validation), ("test", module.test)):
            if not math.isfinite(found.get("loss", 0.0)):
                raise NotFiniteError(f"the {name} loss was {found['loss']} at step {module.step}")
        record["status"] = "ok"
    except StoppedError as error:
        record |= {"status": "stopped", "error": str(error)}
    except NotFiniteError as error:
        record["diverged"] = True
        record["error"] = f"{error}; try a smaller optimizer.lr"
    except PluginError as error:
        record["error"] = f"{error} (step {module.step})"
    except (UsageError, OSError):
        # A full disk is nothing of the arm's.
        raise
    except torch.OutOfMemoryError:
        record["out_of_memory"] = True
        record["error"] = f"out of memory at step {module.step}; try a smaller trainer.batch_size with trainer.accumulate"
    except Exception as error:
        # A plugin's mistake must not take the other arms of a comparison with it.
        record["error"] = blame(spec.arm, error, f"at step {module.step}")
        record["traceback"] = traceback.format_exc()
    unit_sums = module.unit_sums if record["status"] == "ok" else None
    units = None if unit_sums is None else unit_sums.table()
    if units is not None and folder is not None and module.rank == 0:
        write_units(folder / UNITS, units)
    whole = module.whole_run.summary()
    record |= {
        "steps": module.step,
        "validation": module.validation,
        "test": module.test,
        "units": None if unit_sums is None else dict(unit_sums.summary()),
        **module.quality,
        "figures": module.figures,
        **{f"flops_{name}": None if arm.fit_outside_loop else float(spent) for name, spent in vars(module.ledger).items()},
        "flops_per_example_measured": module.measured_forward,
        "drop_rate": whole.get("drop_rate"),
        "padding_share": whole.get("padding_share"),
        "load_cv": getattr(module, "test_telemetry", {}).get("load_cv"),
        "telemetry": getattr(module, "test_telemetry", module.telemetry),
        "seconds": module._seconds,
        "seconds_total": time.perf_counter() - started,
        "curve": module.curve,
        "load": module.loads if any(module.loads) else None,
        "memory": {
            **held(arm, getattr(module, "optimizer", None)),
            "peak": footprint.peak(next(arm.parameters(), torch.empty(0)).device),
        },
        "resumed_at": module.resumed_at,
        "shared_steps": module.shared_steps,
        "problems": [checkpoint.problem] if checkpoint is not None and checkpoint.problem else [],
    }
    return Run(record, arm if record["status"] == "ok" else None, units)


def _what_it_is(arm: Arm) -> dict[str, Any]:
    """What is known of an arm before its first step."""
    return {
        "flops_per_example": arm.flops_per_example(),
        "active_params": None if arm.fit_outside_loop else arm.active_params,
        "total_params": None if arm.fit_outside_loop else arm.total_params,
        "causal": arm.causal,
        "batch_coupled": arm.batch_coupled,
        "leaks": arm.leaks,
        "leaks_in_training": arm.leaks_in_training,
        "evaluation_coupled": arm.evaluation_coupled,
    }


def _together(spec: RunSpec, folder: Path | None, key: str | None, observer: Observer, test: bool) -> Run:
    def heard(what: float | dict[str, float]) -> None:
        if isinstance(what, dict):
            observer.point(what)
        else:
            observer.spent(what)

    return Run(launch(_member, (spec, folder, key, test), spec.trainer.devices, heard), None)


def _member(tell: Callable[[Any], None], spec: RunSpec, folder: Path | None, key: str | None, test: bool) -> dict[str, Any]:
    for plugin in spec.plugins:
        load_plugin(plugin)
    return execute(
        spec, folder=folder, key=key, observer=CallbackObserver(tell, lambda point: tell(dict(point))), test=test
    ).record


def load_data(spec: RunSpec) -> DataSet:
    """The run's data set."""
    return load(**spec.data)


def _inside(arm: Arm, data: DataSet, module: TrainingModule, spec: RunSpec, folder: Path | None, test: bool) -> None:
    options = spec.trainer
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=int(os.environ["WORLD_SIZE"]) // options.devices if inside() else 1,
        strategy=Replicas() if inside() else "auto",
        precision=runs_on(options)["precision"],
        max_epochs=-1,
        # A check after every chunk: the module ends a chunk where a check is due.
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if options.compile:
        for part in arm.children():
            part.compile()
    trainer.fit(module, Endless(), Slices(data.validation))
    if trainer.interrupted:
        raise KeyboardInterrupt
    if test:
        trainer.test(module, Slices(data.test), verbose=False)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(folder / WEIGHTS, weights_only=True)


def _outside(arm: Arm, data: DataSet, module: TrainingModule, test: bool) -> None:
    started = time.perf_counter()
    arm.fit(data.train, data.validation)
    module._seconds = time.perf_counter() - started
    for name, split in (("validation", data.validation), ("test", data.test)):
        prediction = predicted(arm, split)
        setattr(module, name, data.task.summary(data.task.statistics(prediction.outputs, split.targets)))
        module.quality = close_look(data.task, close_sums(data.task, prediction, split), data.domain_names)
    if test:
        # The last prediction is that of the test split.
        module.begin_units().add(prediction.outputs, data.test.targets, 0)
    module.figures, _ = arm.figures(data.train)


def _quiet() -> None:
    """Lightning's banners and advice are about things that this loop does on purpose."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
