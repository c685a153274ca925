"""A sweep small enough for a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from routelab.config.resolve import resolve
from routelab.core.registry import only_for_now
from routelab.routers.router_registry import ROUTERS
from routelab.sweeps.liveness import Heart, worker_id
from routelab.sweeps.studies import Studies
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.trial import Outcome
from routelab.sweeps.worker import claim, tell, work


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with only_for_now(ROUTERS):
        yield


@pytest.fixture
def words() -> Callable[..., list[str]]:
    """Words of a configuration: trials of four steps in milliseconds, without MLflow."""

    def make(*more: str) -> list[str]:
        return [
            "study=mine", "arms=[dense,switch]", "budget.steps=4", "trainer.checks=4", "backbone.d_model=16", "backbone.depth=1",
            "backbone.heads=2", "experts.count=4", "seeds=2", "workers=1", "tracking.uri=null", *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def swept(words) -> Callable[[str], tuple[Sweep, Studies]]:
    """A sweep that nobody has told MLflow of: three complete trials, one that was pruned, and one that failed."""

    def make(uri: str) -> tuple[Sweep, Studies]:
        more = [word for word in words("trials=3", "arms=[switch]") if "tracking" not in word]
        sweep = Sweep(resolve([*more, f"tracking.uri={uri}"]))
        studies = sweep.open()
        work(sweep, studies)
        # Told as a worker tells them.
        for outcome in (
            Outcome(TrialState.PRUNED, error="pruned at rung 1 of 4", spent={"flops": 1.0}),
            Outcome(TrialState.FAIL, error="the training loss was nan at step 3"),
        ):
            object.__setattr__(studies.arms[0], "target", 9)
            taken = claim(sweep, studies, worker_id(), Heart(studies.store, worker_id()))
            assert taken is not None
            tell(studies, taken, outcome, worker_id())
        return sweep, studies

    return make
