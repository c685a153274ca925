"""An unfinished run on disk: everything that its later steps depend on, so that a resumed run is the same run.

All randomness is a function of (seed, step) and the data order is too, so the state is the arm, its optimizer, and what
has been counted so far. It is written beside and renamed, so a run killed at any moment leaves a whole file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from routelab.records.atomic_file import replaced_at_end

FILE = "state.ckpt"


class Checkpoint:
    """Where a run's state lies, and when it is written next.

    key: the address of the run; a state with another key belongs to another run and is left alone until overwritten.
    every: seconds between two writes; 0 writes after every step, None never.
    """

    def __init__(self, folder: Path, key: str, every: float | None) -> None:
        self.path, self.key, self.every = folder / FILE, key, every
        self.problem: str | None = None
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write."""
        return self.every is not None and time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`. A full disk costs the run its way back, not its life: it is remembered in `problem`."""
        try:
            with replaced_at_end(self.path) as temporary:
                torch.save({"key": self.key, **state}, temporary)
            self.problem = None
        # torch reports a full disk as a RuntimeError.
        except (OSError, RuntimeError) as error:
            self.problem = f"the run cannot be resumed: {str(self.path)!r} cannot be written: {str(error).splitlines()[0]}"
        self._last = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state of this run, or None if there is none. A damaged file is remembered in `problem`: the run starts anew."""
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
            return state if state["key"] == self.key else None
        except Exception as error:
            self.problem = f"{str(self.path)!r} is damaged ({type(error).__name__}), so the run started from its first step"
            return None


def discard(folder: Path) -> None:
    """Forget the state of a run whose record is written."""
    (folder / FILE).unlink(missing_ok=True)
