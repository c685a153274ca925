"""Bad input: one sentence, exit code 2, and a study that is there stays as it was."""

import json
import sqlite3
from pathlib import Path

import pytest

from routelab.cli.app import app, guarded
from routelab.config.resolve import resolve
from routelab.sweeps import sweep as module
from routelab.sweeps.storage import open_store
from routelab.sweeps.studies import Studies, find
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.worker import work

JOURNAL = Path("results/mine/study.journal")


def said(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    code = guarded(lambda: app(list(command), standalone_mode=False))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["arms=[dense]"], "study='mine' exists with arms dense, switch, and this call has dense"),
        (["objectives=[loss,seconds]"], "exists with objectives loss, and this call has loss, seconds"),
        (["budget.steps=5"], "exists with another budget.steps (4, and this call has 5)"),
        (["search.optimizer.lr=[0.1,0.2]"], "exists with another search.optimizer (None, and this call has"),
        (["seed=1"], "exists with another seed (0, and this call has 1)"),
        (["trainer.batch_size=32"], "exists with another trainer.batch_size"),
    ],
)
def test_a_study_of_another_sweep_is_left_alone(words, capsys, more, message):
    Sweep(resolve(words("trials=2"))).open()
    before = JOURNAL.read_bytes()
    code, text = said(capsys, "sweep", "run", *words("trials=2"), *more)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert JOURNAL.read_bytes() == before


@pytest.mark.parametrize("command", [["run"], ["worker", "mine"], ["resume", "mine"]])
def test_two_workers_with_different_code_do_not_share_a_study(words, capsys, monkeypatch, command):
    Sweep(resolve(words("trials=2"))).open()
    before = JOURNAL.read_bytes()
    monkeypatch.setattr(module, "code_digest", lambda specs: "0123456789ab")
    code, text = said(capsys, "sweep", *command, *(words("trials=2") if command == ["run"] else []))
    assert code == 2
    assert "study='mine' was begun with code " in text
    assert "and here is code 0123456789ab on torch " in text
    assert len(text.strip().splitlines()) == 1
    assert JOURNAL.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["search.optimizer.lr=[]"], "leaves no point to search"),
        (["search.optimizer.lr.low=2", "search.optimizer.lr.high=1"], "low=2 is above high=1"),
        (
            ["search.optimizer.lr=0.1", "search.optimizer.weight_decay=0", "arms=[dense]"],
            "the search space of every arm is empty",
        ),
        (["search.router.capacity_factr=1.0"], "did you mean 'search.router.capacity_factor'"),
        (["sampler=cmaes", "objectives=[loss,flops]"], "sampler=cmaes takes one objective, and objectives has 2"),
        (["sampler=tpee"], "unknown sampler 'tpee'; did you mean 'tpe'"),
        (["sampler.name=tpe", "sampler.startup=3"], "unknown option of sampler 'tpe' 'startup'"),
        (["sampler=grid"], "the search space of every arm is empty"),
        (["pruner=medain"], "did you mean 'median'"),
        (["pruner=median", "trainer.checks=1"], "pruner=median needs 1 rung before the end of a trial, and the budget has 0"),
        (["pruner=median", "budget.steps=1"], "the budget has 0"),
        (
            ["pruner=hyperband", "budget.steps=3"],
            "pruner=hyperband needs 3 rungs before the end of a trial, and the budget has 2",
        ),
        (["pruner=median", "budget.seconds=1"], "use budget.flops or steps"),
        (["pruner=hyperband", "objectives=[loss,flops]"], "pruner=hyperband takes one objective"),
        (["objectives=[loss,flops]", "budget.flops=1e9"], "which budget.flops makes equal for every trial"),
        (["objectives=[flops]"], "must begin with loss"),
        (["objectives=[loss,params]"], "unknown objective 'params'"),
        (["sampler.n_startup_trials=5"], "sampler={'n_startup_trials': 5} must be a name, or keys and values"),
        (
            ["sampler.name=tpe", "sampler.n_startup_trials=-1"],
            "sampler.n_startup_trials=-1 must be a whole number of at least 0",
        ),
        (["sampler.name=cmaes", "sampler.sigma0=x"], "sampler.sigma0='x' must be a number or null"),
        (["sampler.name=tpe", "sampler.gamma=5"], "unknown option of sampler 'tpe' 'gamma'"),
        (["search.optimizer.lr=x"], "optimizer.lr='x' must be a number above 0"),
        (
            ["search.optimizer.lr=[-1,0.1]"],
            "search.optimizer.lr holds -1, with which no arm can be built: optimizer.lr=-1.0 must",
        ),
        (["search.optimizer.lr.low=-1", "search.optimizer.lr.high=1"], "search.optimizer.lr holds -1"),
        (["search.optimizer.schedule=[cosine,cosin]"], "unknown optimizer.schedule 'cosin'; did you mean 'cosine'"),
        (["search.optimizer.beta1=[0.9,2]"], "optimizer.beta1=2 must be at least 0 and below 1"),
        (
            ["search.experts.kind=[gelu,gelo]"],
            "search.experts.kind holds 'gelo', with which no arm can be built: unknown expert kind",
        ),
        (["search.experts.cuont=4"], "did you mean 'search.experts.count'"),
        (["search.experts.count=[0,4]"], "search.experts.count holds 0, with which no arm can be built"),
        (["search.backbone.depth=[0,2]"], "search.backbone.depth holds 0, with which no arm can be built"),
        (["search.experts.count={low: 1, high: 8, step: 0.5}"], "experts.count is 1.0; it must be a whole number"),
        (["arms=[dense,{name: switch, optimizer.schedule: x}]"], "unknown optimizer.schedule 'x'"),
        (["arms=[dense,{name: switch, optimizer.clip: x}]"], "optimizer.clip='x' must be a number"),
        (["trials=0"], "trials=0 must be at least 1"),
        (["trials=1"], "trials=1 is fewer than the 2 arms"),
        (["trials=4", "tuning_flops=1e9"], "trials and tuning_flops are both set"),
        (["seeds=[0,1]"], "seeds=[0, 1] holds seed 0, which the trials are tuned on"),
        (["storage=sqlite:///a.db", "tracking.uri=sqlite:///a.db"], "Optuna and MLflow need one each"),
        (["seeds=auto"], "seeds=auto is not for sweeps"),
        (["study=a/b"], "must be a name without '/'"),
        (["study=.."], "must be a name without '/'"),
        (["storage=mysql://db/x"], "storage='mysql://db/x' must be a journal file's path, sqlite:///PATH or postgresql://"),
        (
            ["storage=postgresql://me:secret@127.0.0.1:1/x"],
            "storage='postgresql://***@127.0.0.1:1/x' cannot be opened for writing",
        ),
        (["storage=sqlite:///file:there.db?mode=ro&uri=true"], "cannot be opened for writing: OperationalError"),
        (["storage=/proc/nothing/study.journal"], "cannot be opened for writing"),
    ],
)
def test_what_is_wrong_with_a_call_is_one_sentence(words, capsys, more, message):
    code, text = said(capsys, "sweep", "run", *words(), *more)
    assert (code, message in text) == (2, True), text
    assert len(text.strip().splitlines()) == 1
    assert not JOURNAL.exists()


@pytest.mark.parametrize("content", [b'{"a": 1}', b"notes of mine", b"one line\n", b"\x00\x01"])
@pytest.mark.parametrize("command", [("run",), ("status", "mine")])
def test_a_file_that_is_no_journal_stays_as_it_is(words, capsys, content, command):
    Path("notes").write_bytes(content)
    more = words("storage=notes") if command == ("run",) else ["storage=notes"]
    code, text = said(capsys, "sweep", *command, *more)
    assert (code, "storage='notes' is no journal of Optuna" in text) == (2, True), text
    assert Path("notes").read_bytes() == content


def test_a_sweep_can_be_written_down_with_other_code_than_it_was_run_with(words, capsys, monkeypatch):
    sweep = Sweep(resolve(words("trials=2")))
    studies = sweep.open()
    work(sweep, studies)
    monkeypatch.setattr(module, "code_digest", lambda specs: "0123456789ab")
    Path("file").touch()
    code, text = said(capsys, "sweep", "export", "mine", "--into", "file/x")
    assert (code, text) == (2, "Error: output='file/x' cannot be written to: Not a directory\n")
    assert said(capsys, "sweep", "export", "mine", "--into", "there")[0] == 0
    assert {path.name for path in Path("there").iterdir()} == {"trials.csv", "best.yaml"}


def test_a_wrong_number_of_workers_is_said_as_it_was_written(capsys):
    assert said(capsys, "sweep", "resume", "mine", "workers=0") == (
        2,
        "Error: workers=0 must be a whole number of at least 1\n",
    )
    assert (
        said(capsys, "sweep", "resume", "mine", "--workers", "-1")[1]
        == "Error: workers=-1 must be a whole number of at least 1\n"
    )


def test_a_database_that_may_only_be_read_is_refused(words, capsys):
    url = "sqlite:///results/mine/study.db"
    Sweep(resolve(words("trials=2", f"storage={url}"))).open()
    path = Path("results/mine/study.db")
    with sqlite3.connect(path) as database:
        trials = database.execute("select count(*) from trials").fetchone()
    code, text = said(capsys, "sweep", "run", *words("trials=2"), f"storage=sqlite:///file:{path}?mode=ro&uri=true")
    assert code == 2
    assert "readonly database" in text
    with sqlite3.connect(path) as database:
        assert database.execute("select count(*) from trials").fetchone() == trials


def test_a_study_that_is_not_there_is_named_with_what_is(words, capsys):
    code, text = said(capsys, "sweep", "status", "mine")
    assert code == 2
    assert "there is no study 'mine' in results/" in text
    Sweep(resolve(words("trials=2"))).open()
    code, text = said(capsys, "sweep", "status", "mina")
    assert code == 2
    assert "did you mean 'mine'" in text
    assert said(capsys, "sweep", "status", "mina", "--storage", str(JOURNAL))[0] == 2
    assert said(capsys, "sweep", "status", "mine", "--storage", "nowhere.journal")[0] == 2
    assert not Path("nowhere.journal").exists()
    # By its name, its folder, or its storage.
    for way in (["mine"], ["results/mine"], ["mine", "--storage", str(JOURNAL)]):
        assert guarded(lambda way=way: app(["sweep", "status", *way, "--json"], standalone_mode=False)) == 0
        assert json.loads(capsys.readouterr().out)["states"] == {"WAITING": 2}


def test_settings_that_change_no_value_may_change(words):
    Sweep(resolve(words("trials=2"))).open()
    changed = words("trials=3", "workers=2", "sampler=random", "pruner=median", "trainer.checkpoint_seconds=1", "seeds=5")
    assert Sweep(resolve(changed)).open().status()["trials"] == 3
    found = find("mine", None)
    assert isinstance(found, Studies)
    assert found.config["sampler"] == "random"
    assert Studies.load("other", open_store(str(JOURNAL), create=False)) is None
