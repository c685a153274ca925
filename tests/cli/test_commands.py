"""Commands as a shell sees them: exit codes, one-sentence errors, JSON."""

import json
import subprocess
import sys

import pytest

ROUTELAB = [sys.executable, "-c", "from routelab.cli.app import main; main()"]


def run(*words, cwd=None):
    return subprocess.run([*ROUTELAB, *words], capture_output=True, text=True, cwd=cwd, timeout=240, check=False)


@pytest.mark.parametrize("command", [[], ["compare"], ["train"], ["list"], ["doctor"], ["ui"]])
def test_help_has_an_example_and_loads_nothing_heavy(command):
    code = (
        "import sys; sys.argv=['routelab', *sys.argv[1:]]\nfrom routelab.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    heavy=[m for m in ('torch','mlflow','pytorch_lightning') if m in sys.modules]\n    sys.exit(f'loaded {heavy}' if heavy else stop.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Example: routelab" in done.stdout


def test_list_is_json_for_machines_and_whole_for_people():
    rows = json.loads(run("list", "routers", "--json").stdout)
    assert {"switch", "top2", "expert_choice", "hash", "soft"} <= {row["name"] for row in rows}
    assert all(row["origin"] == "built in" and row["summary"] for row in rows)
    text = run("list").stdout
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
        (["compare", "data=flights", "backbone=mlp", "arms=[dense,soft]"], "switch, top2, topk; or take backbone=tokens"),
        (["compare", "data=flights", "data.rows=0"], "rows is 0; it must be null or a whole number from 1 to 302346"),
        (["compare", "data=flights", "backbone.detph=2"], "did you mean 'backbone.depth'"),
        (["ui", "--uri", "sqlite:///nothere.db"], "no such store"),
    ],
)
def test_wrong_calls_exit_2_with_one_sentence(words, part, tmp_path):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_plugin_in_one_file(tmp_path):
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
    rows = json.loads(run("--plugin", "mine.py", "list", "routers", "--json", cwd=tmp_path).stdout)
    assert {"name": "mine", "kind": "routers", "origin": "plugin mine.py", "summary": "My idea."} in rows
    done = run(
        "--plugin", "mine.py", "train", "arm=mine", "router.temperature=2.0", "budget.steps=4", "trainer.checks=2", "--json", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "ok"
    assert record["config"]["arm"]["router"] == {"temperature": 2.0}
    assert (tmp_path / record["folder"] / "weights.ckpt").exists()
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    done = run("--plugin", "bad.py", "list", cwd=tmp_path)
    assert done.returncode == 2
    assert "ModuleNotFoundError" in done.stderr
    assert "line 1" in done.stderr


def test_print_config_names_sources(tmp_path):
    done = run("compare", "seeds=2", "--print-config", cwd=tmp_path)
    assert done.returncode == 0
    assert any(line.startswith("seeds: 2") and "command line" in line for line in done.stdout.splitlines())


def test_doctor(tmp_path):
    done = run("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert {"torch", "cores", "data digits", "data mnist5k", "data flights", "data letter"} <= {
        row["name"] for row in json.loads(done.stdout)
    }
