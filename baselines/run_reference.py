"""A trained run as plain data: what another run needs to begin from its weights, or to learn from its outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routelab.baselines.base import Arm, ArmSpec
from routelab.core.errors import UsageError
from routelab.data.task import Batch


@dataclass(frozen=True)
class Recorded:
    """run: its name, as the configuration has it. arm: the fields of its ArmSpec. weights: the file that it left. digest: of
    these weights, see `digest_of`. flops: what its training took, and that of the runs that it builds on itself."""

    run: str
    arm: Mapping[str, Any]
    seed: int
    weights: str
    digest: str
    flops: float

    @property
    def spec(self) -> ArmSpec:
        """The arm's description."""
        return ArmSpec(**self.arm)

    def plain(self) -> dict[str, Any]:
        """As a dict, from which `Recorded(**...)` makes it again."""
        return asdict(self)

    def address(self) -> dict[str, Any]:
        """What of it decides a result: the arm and its weights, wherever they lie and whatever they are called."""
        return {"arm": dict(self.arm), "digest": self.digest}

    def state(self) -> dict[str, Tensor]:
        """The weights, on the CPU; UsageError if they are not those of the digest."""
        state = read_weights(Path(self.weights), f"run {self.run!r}")
        if digest_of(state) != self.digest:
            raise UsageError(f"run {self.run!r}: the weights in {self.weights!r} have changed since this run was planned")
        return state


def teacher_of(spec: ArmSpec) -> Recorded | None:
    """The run that an arm learns from, if its option `teacher` is one."""
    teacher = spec.options.get("teacher")
    return Recorded(**teacher) if isinstance(teacher, Mapping) else None


def read_weights(file: Path, run: str) -> dict[str, Tensor]:
    """The arm's state as a run left it, on the CPU; UsageError if there is none. run: as errors are to call it."""
    if not file.is_file():
        raise UsageError(f"{run} has no weights: there is no file {str(file)!r}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise UsageError(f"{run}: the weights in {str(file)!r} cannot be read ({type(error).__name__})") from None
    return {name.removeprefix("arm."): value for name, value in state.items() if name.startswith("arm.")}


def restore(arm: Arm, state: Mapping[str, Tensor], train: Batch) -> None:
    """Make a built arm what it was when it left `state`; RuntimeError if the state is another arm's, or of other code."""
    arm.prepare(train)
    for stage in range(len(arm.stages())):
        arm.begin(stage)
    arm.load_state_dict(state)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """20 hexadecimal digits of the names, types, shapes and values of a state: the same for the same weights in another file."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:20]
