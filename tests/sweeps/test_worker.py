"""Workers in one process: exact counts, trials that go on, failures that are told, pruning."""

import json
import math
import os
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.records.run_cache import cell_folder, cell_key
from routelab.routers.router_registry import register_router
from routelab.routers.switch import Switch
from routelab.sweeps import worker as module
from routelab.sweeps.arm_settings import Settings
from routelab.sweeps.liveness import Heart, worker_id
from routelab.sweeps.storage import Journal
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_plots import pictures
from routelab.sweeps.study_status import worker_of
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.trial import Outcome
from routelab.sweeps.worker import claim, tell, work
from routelab.sweeps.worker_pool import WorkerPool
from routelab.training.observer import Observer
from routelab.training.run import execute

STORAGES = ["results/mine/study.journal", "sqlite:///results/mine/study.db"]


def begun(words):
    sweep = Sweep(resolve(words))
    return sweep, sweep.open()


def states(studies):
    return studies.status()["states"]


def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Trials cost nothing and end with a loss that is a formula of their settings."""
    seen: list[Settings] = []

    def run(sweep, arm, study, trial, settings):
        seen.append(settings)
        values = [abs(math.log10(settings["optimizer.lr"]) + 3), 1.0 + settings["optimizer.weight_decay"]]
        return Outcome(TrialState.COMPLETE, values[: len(sweep.objectives)], spent={"flops": 100.0, "seconds": 0.0, "steps": 1})

    monkeypatch.setattr(module, "run_trial", run)
    return seen


@pytest.mark.parametrize("storage", STORAGES)
def test_trials_means_complete_trials_over_all_calls(words, storage):
    more = words("trials=4", f"storage={storage}")
    sweep, studies = begun(more)
    asked = iter([False, True])
    assert work(sweep, studies, lambda: next(asked)) == 1
    sweep, studies = begun(more)
    assert work(sweep, studies) == 3
    assert states(studies) == {"COMPLETE": 4}
    assert [arm["states"] for arm in studies.status()["arms"].values()] == [{"COMPLETE": 2}, {"COMPLETE": 2}]
    assert work(*begun(more)) == 0
    # More are asked for later, and only those are added.
    assert work(*begun(words("trials=5", f"storage={storage}"))) == 1
    for arm in studies.arms:
        for trial in arm.trials():
            folder = Path(trial.user_attrs["folders"][0])
            record = json.loads((folder / "record.json").read_text())
            assert trial.values == [record["validation"]["loss"]]
            assert record["test"] == {}, "a trial has read the test split"
            assert trial.user_attrs["spent"]["flops"] == record["flops_model"] > 0
            assert not (folder / "state.ckpt").exists()


class Killed(BaseException):
    """The end of a process, as far as a test can have it."""


@pytest.mark.parametrize("storage", STORAGES)
def test_a_trial_of_a_dead_worker_goes_on_from_its_checkpoint(words, storage):
    sweep, studies = begun(words("trials=2", f"storage={storage}", "trainer.checkpoint_seconds=0"))
    dead = f"{worker_id().rpartition('/')[0].rpartition('/')[0]}/{2**22 - 1}/1"
    taken = claim(sweep, studies, dead, Heart(studies.store, dead))
    assert taken is not None
    spec = sweep.specs(taken.arm, taken.settings)[0]
    key = cell_key(spec, sweep.data.digest)

    class AfterTwo(Observer):
        def point(self, point):
            if point["step"] == 3:
                raise Killed

    with pytest.raises(Killed):
        execute(spec, folder=cell_folder(sweep.output, key), key=key, observer=AfterTwo(), data=sweep.data, test=False)
    assert studies.status()["lost"] == 1
    work(sweep, studies)
    assert states(studies) == {"COMPLETE": 2}
    trial = next(arm for arm in studies.arms if arm.label == taken.arm.label).trials()[taken.trial.number]
    assert trial.params == taken.trial.params
    assert worker_of(trial) == worker_id()
    record = json.loads((Path(trial.user_attrs["folders"][0]) / "record.json").read_text())
    assert record["resumed_at"] == 2
    undisturbed = execute(spec, data=sweep.data, test=False).record
    assert record["validation"] == undisturbed["validation"]


def test_a_worker_that_was_thought_dead_tells_nothing(words):
    sweep, studies = begun(words("trials=2"))
    mine = claim(sweep, studies, worker_id(), Heart(studies.store, worker_id()))
    assert mine is not None
    with studies.store.claiming():
        studies.release(studies.store.optuna.get_trial(mine.trial._trial_id))
    assert not tell(studies, mine, Outcome(TrialState.COMPLETE, [1.0]), worker_id())
    assert "COMPLETE" not in states(studies)


def test_a_worker_of_another_machine_is_dead_after_its_silence(words):
    sweep, studies = begun(words("trials=2"))
    far = "elsewhere-1/7/1"
    assert claim(sweep, studies, far, Heart(studies.store, far)) is not None
    with studies.store.claiming():
        assert studies.recover() == 0
    assert isinstance(studies.store, Journal)
    beat = studies.store._file(far)
    os.utime(beat, (beat.stat().st_atime, beat.stat().st_mtime - 3600))
    with studies.store.claiming():
        assert studies.recover() == 1
        # Its trial waits, with its parameters, and is not lost twice.
        assert studies.recover() == 0
    assert "RUNNING" not in states(studies)


def test_a_trial_that_kills_every_worker_fails(words):
    sweep, studies = begun(words("trials=2"))
    dead = f"{worker_id().rpartition('/')[0].rpartition('/')[0]}/{2**22 - 1}/1"
    for _ in range(11):
        assert claim(sweep, studies, dead, Heart(studies.store, dead)) is not None
    with studies.store.claiming():
        studies.recover()
    assert states(studies)["FAIL"] == 1


def test_a_line_that_a_killed_writer_left_unfinished_is_cut_off(words):
    _, studies = begun(words("trials=2"))
    assert isinstance(studies.store, Journal)
    with open(studies.store.path, "ab") as file:
        file.write(b'{"op_code": 4, "wor')
    sweep, studies = begun(words("trials=2"))
    assert work(sweep, studies) == 2


def test_a_loss_that_is_not_finite_fails_with_its_step_and_an_arm_that_only_fails_is_given_up(words):
    sweep, studies = begun(words("arms=[dense]", "trials=2", "search.optimizer.lr=1.0e+30", "optimizer.clip=0"))
    work(sweep, studies)
    trials = studies.arms[0].trials()
    assert {trial.state for trial in trials} == {TrialState.FAIL}
    assert len(trials) == 5
    assert "at step" in trials[0].user_attrs["error"]
    status = studies.status()
    assert status["done"]
    assert status["arms"]["dense"]["given_up"]


def test_out_of_memory_is_retried_at_half_the_batch_with_accumulation(words):
    @register_router("hungry")
    class Hungry(Switch):
        def forward(self, inputs):
            if inputs.x.grad_fn is not None and len(inputs.x) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(inputs)

    sweep, studies = begun(words("arms=[hungry]", "trials=1", "trainer.batch_size=64", "match.on=none"))
    work(sweep, studies)
    (trial,) = (trial for trial in studies.arms[0].trials() if trial.state.is_finished())
    assert trial.state is TrialState.COMPLETE
    assert trial.user_attrs["halvings"] == 2
    record = json.loads((Path(trial.user_attrs["folders"][0]) / "record.json").read_text())
    assert (record["config"]["trainer"]["batch_size"], record["config"]["trainer"]["accumulate"]) == (16, 4)
    assert record["steps"] == 4


SAMPLERS = ["tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_samples_and_no_two_trials_are_alike(words, monkeypatch, sampler):
    seen = by_formula(monkeypatch)
    sweep, studies = begun(words("arms=[dense]", "trials=12", f"sampler={sampler}"))
    work(sweep, studies)
    assert states(studies) == {"COMPLETE": 12}
    assert len({json.dumps(settings, sort_keys=True) for settings in seen}) == 12
    assert seen[0] == {"optimizer.lr": 2e-3, "optimizer.weight_decay": 0.01}
    # A second sweep of the same seed tries the same.
    again = by_formula(monkeypatch)
    work(*begun(words("arms=[dense]", "trials=12", f"sampler={sampler}", "study=other")))
    assert again == seen


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_several_objectives_leave_a_front(words, monkeypatch, sampler):
    by_formula(monkeypatch)
    sweep, studies = begun(words("arms=[dense]", "trials=12", f"sampler={sampler}", "objectives=[loss,flops]"))
    work(sweep, studies)
    trials = studies.arms[0].trials()
    best = {trial.number for trial in studies.arms[0].study.best_trials}
    assert set(studies.status()["arms"]["dense"]["front"]) == best
    assert all(len(trial.values) == 2 for trial in trials)
    drawn = {path.name for path in pictures(studies, sweep.output)}
    assert drawn == {"expected-best.png", "history-dense.png", "importance-dense.png", "front-dense.png"}


def test_a_grid_tries_every_point_once(words, monkeypatch):
    seen = by_formula(monkeypatch)
    search = ["search.optimizer.lr=[0.001,0.01,0.1]", "search.optimizer.weight_decay=[0.0,0.1]"]
    sweep, studies = begun(words("arms=[dense]", "sampler=grid", *search))
    work(sweep, studies)
    assert states(studies) == {"COMPLETE": 6}
    pairs = [(settings["optimizer.lr"], settings["optimizer.weight_decay"]) for settings in seen]
    assert sorted(pairs) == [(lr, decay) for lr in (0.001, 0.01, 0.1) for decay in (0.0, 0.1)]


def test_arms_get_the_same_flops_not_the_same_trials(words, monkeypatch):
    def run(sweep, arm, study, trial, settings):
        cost = {"dense": 100.0, "switch": 50.0}[arm.label]
        return Outcome(TrialState.COMPLETE, [1.0], spent={"flops": cost, "seconds": 0.0, "steps": 1})

    monkeypatch.setattr(module, "run_trial", run)
    sweep, studies = begun(words("tuning_flops=400"))
    work(sweep, studies)
    arms = studies.status()["arms"]
    assert [arm["flops"] for arm in arms.values()] == [400, 400]
    assert [arm["states"].get("COMPLETE") for arm in arms.values()] == [4, 8]


def test_the_median_prunes_what_is_worse_at_equal_flops(words):
    search = ["search.optimizer.lr=[0.01,1.0e-07]", "search.optimizer.weight_decay=0.01", "sampler=random", "trials=2"]
    budget = ["budget.steps=40", "arms=[dense]", "pruner.name=median", "pruner.startup=1", "optimizer.schedule=constant"]
    sweep, studies = begun(words(*search, *budget))
    for rate in (0.01, 1e-7):
        studies.arms[0].study.enqueue_trial({"optimizer.lr": rate})
    work(sweep, studies)
    good, bad = studies.arms[0].trials()[:2]
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert "pruned at rung 1 of 4" in bad.user_attrs["error"]
    assert 0 < bad.user_attrs["spent"]["flops"] < good.user_attrs["spent"]["flops"] / 2
    # A rung is a share of the FLOPs of a whole trial.
    assert sorted(good.intermediate_values) == [1, 2, 3, 4]
    # Pruned trials come on top of those that were asked for.
    assert states(studies)["COMPLETE"] == 2


def test_several_objectives_prune_against_the_front(words):
    search = [
        "search.optimizer.lr=[0.01,0.003,1.0e-07]",
        "search.backbone.depth=[1,2]",
        "backbone.depth=3",
        "search.optimizer.weight_decay=0.01",
    ]
    prune = ["objectives=[loss,flops]", "pruner.name=median", "pruner.startup=2", "optimizer.schedule=constant"]
    sweep, studies = begun(
        words(*search, *prune, "sampler=random", "match.on=none", "arms=[dense]", "budget.steps=40", "trials=3")
    )
    study = studies.arms[0].study
    tried = [(0.01, 2), (0.003, 2), (1e-7, 1), (1e-7, 2)]
    for rate, depth in tried:
        study.enqueue_trial({"optimizer.lr": rate, "backbone.depth": depth})
    # The fourth comes on top of the three that are asked for.
    object.__setattr__(studies.arms[0], "target", 4)
    asked = iter([False] * 4)
    work(sweep, studies, lambda: next(asked, True))
    found = studies.arms[0].trials()
    assert [(t.params["optimizer.lr"], t.params["backbone.depth"]) for t in found] == tried
    # The third learns nothing, but is the cheapest: nothing dominates it. The fourth is worse than it, and dearer.
    assert [t.state.name for t in found] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED"]
    assert all("rungs" in t.user_attrs for t in found)
    assert found[3].user_attrs["spent"]["flops"] < found[1].user_attrs["spent"]["flops"]


def test_the_values_of_a_trial_are_means_over_its_seeds(words):
    sweep, studies = begun(words("arms=[dense]", "trials=1", "trial_seeds=2", "seed=3"))
    work(sweep, studies)
    trial = studies.arms[0].trials()[0]
    records = [json.loads((Path(folder) / "record.json").read_text()) for folder in trial.user_attrs["folders"]]
    assert [record["seed"] for record in records] == [3, 4]
    assert trial.values == pytest.approx([sum(record["validation"]["loss"] for record in records) / 2])
    # And the comparison is of seeds that no trial has seen.
    assert sweep.fresh_seeds == [0, 1]
    assert Sweep(resolve(words("seed=0", "trial_seeds=2"))).fresh_seeds == [2, 3]


def test_the_storage_is_what_optunas_own_tools_read(words):
    _, studies = begun(words("trials=2", "storage=sqlite:///results/mine/study.db"))
    names = optuna.get_all_study_names("sqlite:///results/mine/study.db")
    assert names == ["mine/dense", "mine/switch"]
    assert isinstance(studies, Studies)


def test_no_trial_fails_for_options_that_do_not_go_with_what_is_pinned(words):
    """Of two experts nobody can choose four, nor of four eight: such trials are not drawn."""
    arms = "arms=[{name: topk, experts.count: 2, renormalize: false, label: few}, {name: topk, top_k: 8, label: many}]"
    sweep = Sweep(resolve(words("trials=12", arms, "sampler=random", "search.router.top_k=[1,2,4,8]", "trainer.checks=1")))
    assert sweep.arms[0].dimensions["router.top_k"].choices == (1, 2)
    studies = sweep.open()
    work(sweep, studies)
    assert studies.status()["states"] == {"COMPLETE": 12}


def test_a_storage_that_is_away_for_a_moment_costs_no_trial(words, monkeypatch):
    """A database that restarts refuses one statement of every kind, once."""
    sweep, studies = begun(words("trials=1", "arms=[dense]", "pruner=median", "storage=sqlite:///results/mine/study.db"))
    refused = []

    def once(owner, name):
        whole = getattr(owner, name)

        def call(*args, **options):
            if name not in refused:
                refused.append(name)
                raise optuna.exceptions.StorageInternalError("the connection is gone")
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, call)

    once(optuna.Study, "ask")
    once(optuna.Trial, "set_user_attr")
    once(optuna.Trial, "report")
    once(optuna.Study, "tell")
    quick = time.sleep
    # The heart goes on beating every ten seconds.
    monkeypatch.setattr("routelab.sweeps.storage.time.sleep", lambda seconds: quick(seconds if seconds > 5 else 0))
    work(sweep, studies)
    assert len(refused) == 4
    assert states(studies) == {"COMPLETE": 1}


class EndedWorker:
    """A worker whose only task has ended."""

    exit_code = -9

    def kill(self):
        pass


def ended(error=None):
    future = Future()
    future.set_exception(error) if error else future.set_result(None)
    return EndedWorker(), future


def test_an_error_of_a_worker_is_raised_where_the_sweep_was_started():
    pool = WorkerPool("mine", "nowhere", 1, 0)
    pool._running = {0: ended(UsageError("this is wrong"))}
    with pytest.raises(UsageError, match="this is wrong"):
        pool.restart_dead(0)


def test_workers_that_die_are_replaced_until_too_many_die_without_a_trial(monkeypatch):
    pool, started = WorkerPool("mine", "nowhere", 1, 0), []

    def start(number):
        started.append(number)
        pool._running[number] = ended(BrokenProcessPool())

    monkeypatch.setattr(pool, "_start", start)
    pool.start()
    assert all(pool.restart_dead(0) for _ in range(5))
    assert pool.restart_dead(1)  # A trial was completed, so counting starts anew.
    assert all(pool.restart_dead(1) for _ in range(4))
    with pytest.raises(UsageError, match=r"6 workers died in a row \(last exit code -9\)"):
        pool.restart_dead(1)
    assert len(started) == 11


def test_a_pool_is_done_when_its_workers_have_returned():
    pool = WorkerPool("mine", "nowhere", 2, 0)
    pool._running = {0: ended(), 1: ended()}
    assert not pool.restart_dead(3)
