"""Sweeps in processes that are killed at any moment, against one that nobody disturbs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.sweeps.storage import open_store
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_status import worker_of
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.worker import work

GRID = [
    "sampler=grid", "search.optimizer.lr=[0.001,0.003,0.01,0.03]", "search.optimizer.weight_decay=[0.0,0.1]", "arms=[switch]",
    "budget.steps=150", "trainer.checkpoint_seconds=0", "match.on=none",
]  # fmt: skip


def routelab(*command: str) -> subprocess.Popen[str]:
    # A shell starts what runs in its background with SIGINT ignored, and so would what a test starts there.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    call = [sys.executable, "-c", f"{heeded}from routelab.cli.app import main; main()", *command]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def at_work(storage: str) -> tuple[list[int], int]:
    """The processes that are at work on a trial, and how many trials have ended. None of either while there is no study."""
    try:
        studies = Studies.load("mine", open_store(storage, create=False))
    except UsageError:
        return [], 0
    trials = [] if studies is None else studies.arms[0].trials()
    workers = [worker_of(trial) for trial in trials if trial.state is TrialState.RUNNING]
    return [int(worker.split("/")[1]) for worker in workers if worker], sum(trial.state.is_finished() for trial in trials)


def running(storage: str) -> list[int]:
    """The processes that are at work on a trial."""
    return at_work(storage)[0]


def until(condition, process: subprocess.Popen[str], seconds: float = 120):
    """The first true answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def results(studies: Studies) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    found = {}
    for trial in studies.arms[0].trials(TrialState.COMPLETE):
        folder = Path(trial.user_attrs["folders"][0])
        weights = torch.load(folder / "weights.ckpt", weights_only=True)["state_dict"]
        found[json.dumps(trial.params, sort_keys=True)] = (trial.values, weights)
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("storage", "seconds"), [("results/mine/study.journal", 60), ("sqlite:///results/mine/study.db", 0)])
def test_a_sweep_whose_workers_are_killed_is_the_sweep_that_nobody_disturbed(words, storage, seconds):
    """Minutes of CPU: workers are killed at random, two at least, for so many seconds or until 5 of the 8 trials have ended,
    which a fast machine is sooner done with; then the whole sweep is."""
    chance, budget = random.Random(storage), "budget.steps=300"
    first = routelab("sweep", "run", *words(*GRID, budget, f"storage={storage}", "workers=2"), "--tune-only")
    end, killed, since, told = time.monotonic() + seconds, 0, 0, 0
    while killed < 2 or (time.monotonic() < end and told < 5):
        assert first.poll() is None, f"over after {killed} kills: {first.communicate()[0]}"
        pids, ended = at_work(storage)
        if ended != told:
            told, since = ended, 0
        # A pool of two workers gives up after ten deaths without a completed trial in between.
        if not pids or since == 6:
            time.sleep(0.1)
            continue
        time.sleep(2 * chance.random())
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed, since = killed + 1, since + 1
    until(lambda: running(storage), first)
    first.kill()
    first.communicate()
    done = routelab("sweep", "resume", "mine", "--tune-only", "--json")
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    status = json.loads(output.strip().splitlines()[-1])
    assert status["states"] == {"COMPLETE": 8}
    studies = Studies.load("mine", open_store(storage, create=False))
    assert studies is not None
    assert len(studies.arms[0].trials()) == 8

    alone = Sweep(resolve(words(*GRID, budget, "study=alone", "output=alone/results/alone")))
    undisturbed = alone.open()
    assert work(alone, undisturbed) == 8
    mine, theirs = results(studies), results(undisturbed)
    assert sorted(mine) == sorted(theirs)
    for key, (values, weights) in theirs.items():
        assert mine[key][0] == values
        for name, tensor in weights.items():
            assert torch.equal(mine[key][1][name], tensor), name
    resumed = [trial for trial in studies.arms[0].trials() if "deaths" in trial.user_attrs]
    assert resumed, "nobody was killed at work"


@pytest.mark.long
def test_ctrl_c_leaves_no_trial_running(words):
    process = routelab("sweep", "run", *words(*GRID, "budget.steps=100000"), "--tune-only")
    until(lambda: running("results/mine/study.journal"), process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    studies = Studies.load("mine", open_store("results/mine/study.journal", create=False))
    assert studies is not None
    assert set(studies.status()["states"]) == {"WAITING"}


@pytest.mark.long
def test_a_trial_of_two_processes_trains_in_parallel(words):
    """DDP with gloo: about 20 s of CPU."""
    sweep = Sweep(resolve(words("arms=[dense]", "trials=1", "trainer.devices=2")))
    studies = sweep.open()
    assert work(sweep, studies) == 1
    trial = studies.arms[0].trials()[0]
    assert trial.state is TrialState.COMPLETE
    record = json.loads((Path(trial.user_attrs["folders"][0]) / "record.json").read_text())
    assert record["steps"] == 4
    assert record["test"] == {}
