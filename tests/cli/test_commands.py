"""Commands as a shell sees them: exit codes, one-sentence errors, JSON."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from routelab.cli.app import app, guarded
from routelab.core.registry import only_for_now
from routelab.routers.router_registry import ROUTERS

ROUTELAB = [sys.executable, "-c", "from routelab.cli.app import main; main()"]


def run(*words, cwd=None):
    return subprocess.run([*ROUTELAB, *words], capture_output=True, text=True, cwd=cwd, timeout=240, check=False)


@pytest.fixture
def invoke(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command in this process and returns its exit code and output.

    A new process spends seconds on imports, and only tests of the process itself need one."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = guarded(lambda: app(list(words), standalone_mode=False))
        return code, capsys.readouterr()

    # The command line keeps the plugins of its last call, and a plugin's names stay registered.
    with only_for_now(ROUTERS):
        yield call


def test_the_help_of_every_command_has_an_example_and_loads_nothing_heavy(tmp_path):
    """In a process of its own, for what is loaded here."""
    (tmp_path / "helps.py").write_text(
        "import sys\nimport typer\nfrom routelab.cli.app import app, guarded\n\n"
        "def walk(command, path):\n    yield path\n"
        "    for name, each in getattr(command, 'commands', {}).items():\n        yield from walk(each, [*path, name])\n\n"
        "for path in walk(typer.main.get_command(app), []):\n    print('>>>', *path)\n"
        "    assert guarded(lambda: app([*path, '--help'], standalone_mode=False)) == 0\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "helps.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.partition("\n")[0].strip(): page for page in done.stdout.split(">>>")[1:]}
    assert {"", "compare", "sweep run", "check router", "serve-cost"} <= set(pages)
    assert [name for name, page in pages.items() if "Example: routelab" not in page] == []
    groups = {"", "sweep", "check"}
    assert [name for name, page in pages.items() if name not in groups and "--json" not in page] == []


def test_list_is_json_for_machines_and_whole_for_people(invoke):
    rows = json.loads(invoke("list", "routers", "--json")[1].out)
    assert {"switch", "top2", "expert_choice", "hash", "soft"} <= {row["name"] for row in rows}
    assert all(row["origin"] == "built in" and row["summary"] for row in rows)
    text = invoke("list")[1].out
    assert "expert_choice" in text
    assert "mnist5k" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["compare", "data=digitz"], "did you mean 'digits'"),
        (["compare", "arms=[dense,swich]"], "did you mean 'switch'"),
        (["compare", "nothere.yaml"], "unknown configuration file"),
        (["compare", "budget.steps=0"], "budget.steps=0 must be above 0"),
        (["train", "arm=switch", "seeds=3", "extra"], "'extra' is not key=value"),
        (["list", "router"], "did you mean 'routers'"),
        (["compaer"], "compaer"),
        (["--plugin", "nothere.py", "list"], "there is no such file"),
        (["compare", "data=flights", "backbone=mlp", "arms=[dense,soft]"], "top2, top_p, topk; or take backbone=tokens"),
        (["compare", "data=flights", "data.rows=0"], "rows is 0; it must be null or a whole number from 1 to 302346"),
        (["compare", "data=flights", "backbone.detph=2"], "did you mean 'backbone.depth'"),
        (["ui", "--uri", "sqlite:///nothere.db"], "no such store"),
    ],
)
def test_wrong_calls_exit_2_with_one_sentence(words, part, invoke):
    code, output = invoke(*words)
    assert code == 2, output.out + output.err
    assert part in output.err
    assert "Traceback" not in output.err
    assert len(output.err.strip().splitlines()) == 1


def test_a_process_ends_with_the_exit_code_and_the_sentence(tmp_path):
    done = run("compaer", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "compaer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


SIZES_AND_NAMES = [
    ("compare arms=[dense,swich]", "did you mean 'switch'"),
    ("compare router.capacty_factor=1", "did you mean 'router.capacity_factor'"),
    ("compare backbone.deepth=2", "unknown option of backbone 'vit' 'backbone.deepth'; did you mean 'backbone.depth'"),
    ("compare data.size=3", "unknown option of data set 'digits' 'size'"),
    ("compare backbone=vitt", "did you mean 'vit'"),
    ("compare experts.kind=gelo", "did you mean 'gelu'"),
    ("compare backbone.d_model=-16", "d_model is -16; it must be at least 1"),
    ("compare backbone.d_model=16.5", "d_model is 16.5; it must be a whole number"),
    ("compare backbone.heads=two", "heads is 'two'; it must be a whole number"),
    ("compare backbone.heads=3", "heads is 3; it must divide d_model (64)"),
    ("compare backbone.patch_size=3", "patch_size is 3; it must divide the image's 8 x 8 pixels"),
    ("compare backbone.moe_every=9", "more than there are layers"),
    ("compare backbone.hidden=-4", "backbone.hidden=-4 must be a whole number of at least 1"),
    ("compare experts.count=0", "experts.count=0 must be a whole number of at least 1"),
    ("compare experts.bias=maybe", "experts.bias='maybe' must be true or false"),
    ("compare 'arms=[dense,{name: switch, experts.count: 2.5}]'", "experts.count is 2.5; it must be a whole number"),
    ("compare 'arms=[dense,{name: topk, top_k: 9}]'", "top_k is 9; it must be between 1 and the number of experts (8)"),
    ("compare 'arms=[dense,{name: topk, top_k: 1.5}]'", "top_k is 1.5; it must be a whole number"),
    ("compare 'arms=[dense,{name: soft, slots_per_expert: x}]'", "slots_per_expert is 'x'; it must be a whole number or null"),
    ("compare experts.count=1 arms=[dense,top2]", "top2 chooses 2 experts, but there is 1"),
    ("compare 'arms=[dense,{name: switch, jitter: big}]'", "jitter is 'big'; it must be a number"),
    ("compare 'arms=[dense,{name: switch, init_scale: abc}]'", "init_scale is 'abc'; it must be a number"),
    ("compare 'arms=[dense,{name: switch, capacity_factor: much}]'", "capacity_factor is 'much'; it must be a number or 'default' or null"),
    ("compare 'arms=[dense,{name: switch, capacity_factor: [1.0, -1]}]'", "capacity_factor is -1; it must be above 0"),
    ("compare 'arms=[dense,{name: switch, loss_weights: 3}]'", "must hold a number for each of balance"),
    ("compare 'arms=[dense,{name: switch, loss_weights.balanse: 1}]'", "did you mean 'balance'"),
    ("compare 'arms=[dense,{name: switch, loss_weights.balance: heavy}]'", "loss_weights.balance is 'heavy'; it must be a number"),
    ("compare 'arms=[dense,{name: hash, method: clusters}]'", "needs token ids"),
]  # fmt: skip
BUDGETS_AND_NUMBERS = [
    *((f"compare budget.{kind}={value}", "must be above 0") for kind in ("steps", "flops", "epochs", "seconds") for value in (0, -1)),
    ("compare budget.flops=inf", "must be above 0 and finite"),
    ("compare budget.steps=two", "must be a whole number"),
    ("compare 'budget={steps: 5, epochs: 1}'", "budget has steps, epochs set"),
    ("compare seeds=0", "at least 1"),
    ("compare seeds=[0,0]", "names a seed twice"),
    ("compare optimizer.lr=nan", "must be a number above 0"),
    ("compare optimizer.beta1=2", "optimizer.beta1=2.0 must be at least 0 and below 1"),
    ("compare trainer.batch_size=100000", "at most the 1257 training examples"),
    ("compare arms=3", "arms=3 (command line) must be a list"),
    ("compare arms=[]", "name at least one arm"),
]  # fmt: skip
SHAPES = [
    ("compare ''", "argument '' is neither a configuration file nor key=value"),
    ("count ''", "argument '' is neither a configuration file nor key=value"),
    ("compare data=[digits]", "data=['digits'] (command line) must hold keys and values"),
    ("compare backbone=5", "backbone=5 (command line) must hold keys and values, such as backbone.KEY=VALUE"),
    ("compare arms={}", "arms={} (command line) must be a list, such as [a,b]"),
    ("compare statistics.pairs={}", "statistics.pairs={} (command line) must be a list"),
    ("compare trainer.compile=maybe", "trainer.compile='maybe' (command line) must be true or false"),
    ("compare seeds=99999999999999999999", "must be at least 1 and at most 10000"),
    ("compare number.yaml", "'number.yaml' must hold keys and values; it holds a single value"),
    ("compare 'arms=[dense,{name: switch, capacity_factor: []}]'", "arm 'switch': capacity_factor=[] names no value"),
    ("train 'arm={name: switch, capacity_factor: []}'", "arm 'switch': capacity_factor=[] names no value"),
    ("compare match.reference=dens arms=[dense,switch]", "unknown match.reference 'dens'; did you mean 'dense'"),
    ("sweep run match.reference=swich arms=[dense,switch]", "unknown match.reference 'swich'; did you mean 'switch'"),
    ("train trainer.batch_size=100000", "at most the 1257 training examples"),
    ("compare arm=switch", "arm=switch is a key of routelab train; compare takes arms"),
    ("compare trials=20", "trials=20 is a key of routelab sweep run"),
    ("train seeds=3", "seeds=3 is a key of routelab compare; train takes seed"),
    ("train search.optimizer.lr=0.1", "is a key of routelab sweep run"),
    ("--plugin folder.yaml list", "plugin 'folder.yaml' failed to import"),
    ("--plugin folder list", "plugin 'folder' is a folder without code"),
    ("--plugin ./folder list", "plugin './folder' is a folder; name a .py file, or a module"),
]
PLACES_AND_FILES = [
    ("compare output=file/x", "output='file/x' cannot be written to"),
    ("compare tracking.uri=sqlite:///file/x/mlflow.db", "cannot be opened for writing"),
    ("compare broken.yaml", "is not valid YAML (line 2)"),
    ("compare binary.yaml", "cannot be read"),
    ("compare empty.yaml", "is empty"),
    ("compare list.yaml", "must hold keys and values; it holds a list"),
    ("compare reference.yaml", "Interpolation key 'nothere' not found"),
    ("compare folder.yaml", "cannot be read"),
    ("compare seeds=[1", "cannot be parsed"),
    ("train arm=", "must be a name"),
    ("ui --port 0", "between 1 and 65535"),
    ("ui --uri ''", "--uri '' must be a database, such as sqlite:///PATH"),
    ("ui --uri nowhere", "--uri 'nowhere' must be a database"),
    ("replay nothing --uri x://y", "run 'nothing' in tracking.uri 'x://y'"),
    ("nothing", "No such command"),
]


@pytest.mark.parametrize(("call", "part"), SIZES_AND_NAMES + BUDGETS_AND_NUMBERS + SHAPES + PLACES_AND_FILES)
def test_bad_input_is_one_sentence_and_begins_no_work(call, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "file": b"", "broken.yaml": b"arms: [dense\n", "empty.yaml": b"", "list.yaml": b"- a\n", "reference.yaml": b"seed: ${nothere}",
        "binary.yaml": bytes(range(128, 256)), "number.yaml": b"5\n",
    }.items():  # fmt: skip
        Path(name).write_bytes(content)
    Path("folder.yaml").mkdir()
    Path("folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert guarded(lambda: app(shlex.split(call), standalone_mode=False)) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert part in said
    assert len(said.strip().splitlines()) == 1
    assert not Path("results/cells").exists()


def test_a_device_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert guarded(lambda: app(["compare", "trainer.accelerator=gpu"], standalone_mode=False)) == 2
    assert "this machine has none; use auto or cpu" in capsys.readouterr().err


def test_a_plugin_in_one_file(tmp_path, invoke):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom routelab import Router, RouterInput, Routing, TopK, register_router\n\n"
        "@register_router('mine')\nclass Mine(Router):\n    '''My idea.'''\n"
        "    def __init__(self, d_model, num_experts, *, temperature: float = 1.0):\n"
        "        super().__init__(d_model, num_experts)\n        self.temperature = temperature\n"
        "        self.weight = torch.nn.Parameter(torch.zeros(num_experts, d_model))\n\n"
        "    def forward(self, inputs):\n        logits = inputs.x_TD @ self.weight.T / self.temperature\n"
        "        score, expert = logits.sigmoid().topk(1)\n"
        "        return Routing(TopK(expert, score, self.num_experts), logits=logits, probs=logits.softmax(-1))\n"
    )
    rows = json.loads(invoke("--plugin", "mine.py", "list", "routers", "--json")[1].out)
    assert {"name": "mine", "kind": "routers", "origin": "plugin mine.py", "summary": "My idea."} in rows
    code, output = invoke(
        "--plugin", "mine.py", "train", "arm=mine", "router.temperature=2.0", "budget.steps=4", "trainer.checks=2", "--json"
    )  # fmt: skip
    assert code == 0, output.err
    record = json.loads(output.out)
    assert record["status"] == "ok"
    assert record["config"]["arm"]["router"] == {"temperature": 2.0}
    assert (tmp_path / record["folder"] / "weights.ckpt").exists()
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    code, output = invoke("--plugin", "bad.py", "list")
    assert code == 2
    assert "ModuleNotFoundError" in output.err
    assert "line 1" in output.err


def test_print_config_names_sources(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded(lambda: app(["compare", "seeds=2", "--print-config"], standalone_mode=False)) == 0
    assert any(line.startswith("seeds: 2") and "command line" in line for line in capsys.readouterr().out.splitlines())
    assert guarded(lambda: app(["train", "seed=2", "--print-config", "--json"], standalone_mode=False)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name": "seed", "value": 2, "source": "command line"} in rows
    assert {"name": "budget.steps", "value": 300, "source": "default"} in rows


def test_doctor(invoke):
    code, output = invoke("doctor", "--json")
    assert code == 0, output.out
    assert {"torch", "cores", "data digits", "data mnist5k", "data flights", "data letter"} <= {
        row["name"] for row in json.loads(output.out)
    }


def test_a_comparison_that_has_not_finished_is_no_unknown_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results/half").mkdir(parents=True)
    Path("results/half/comparison.json").write_text("{}")
    assert guarded(lambda: app(["report", "half"], standalone_mode=False)) == 2
    assert "experiment 'half' has not finished" in capsys.readouterr().err


def test_no_command_shows_the_commands(capsys):
    for words in ([], ["sweep"], ["check"]):
        assert guarded(lambda words=words: app(words, standalone_mode=False)) == 2
        said = "".join(capsys.readouterr())
        assert "Error" not in said
        assert "Commands:" in said


RECORD = {"arm": "switch", "seed": 0, "data": "digits", "status": "ok", "steps": 1, "config": {"arm": 5, "budget": {}}}


@pytest.mark.parametrize(
    ("path", "content", "call", "part"),
    [
        ("summary.json", '{"cells": 5}', "report odd", "is damaged, or of an older version"),
        ("summary.json", '{"cells": [], "arms": {}}', "report odd", "is damaged, or of an older version"),
        ("summary.json", '{"cells": 5}', "replay results/odd/dense-s0", "neither a run's folder"),
        ("record.json", '{"config": {"arm": 5}}', "replay results/odd", "is damaged, or not the record of a run"),
        ("record.json", json.dumps(RECORD), "replay results/odd", "is damaged, or of another version of routelab"),
        ("record.json", json.dumps(RECORD | {"status": "failed"}), "replay results/odd", "nothing to compare with"),
        ("record.json", "[]", "explain results/odd results/odd", "is damaged, or not the record of a run"),
        ("sweep.json", '{"storage": 7}', "sweep status odd", "say where the study lies with --storage URL"),
        ("sweep.json", "x", "sweep status odd", "say where the study lies with --storage URL"),
    ],
)
def test_what_is_damaged_or_older_is_said_in_one_sentence(path, content, call, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results/odd").mkdir(parents=True)
    Path("results/odd", path).write_text(content)
    assert guarded(lambda: app(shlex.split(call), standalone_mode=False)) == 2
    said = capsys.readouterr().err
    assert part in said
    assert len(said.strip().splitlines()) == 1
