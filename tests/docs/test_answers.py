"""docs/answers.md: its figures are there, and what it tells people to type exists."""

import importlib
import json
import re
from pathlib import Path

import pytest
import typer.main

from routelab.cli.app import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/answers.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "docs/answers/commands.sh").read_text(encoding="utf-8")
COMMANDS = sorted({line.strip() for line in [*PAGE.splitlines(), *SCRIPT.splitlines()] if line.strip().startswith("routelab ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_what_to_type_exists(command):
    name, *words = command.split()[1:]
    assert name in typer.main.get_command(app).commands
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


def test_every_question_has_a_command_and_every_figure_is_there():
    for part in PAGE.split("\n## ")[1:]:
        assert "\n    routelab " in part, part.splitlines()[0]
    shown = set(re.findall(r"\]\(answers/([^)]+)\)", PAGE))
    assert shown
    assert shown == {path.name for path in (ROOT / "docs/answers").glob("*.png")}


def test_the_page_is_made_by_commands_of_the_script():
    """A run that the page names is one that the script makes."""
    for folder in re.findall(r"results/(\w+)", PAGE):
        assert f"configs/{folder}.yaml" in SCRIPT or f"results/{folder}" in SCRIPT, folder


@pytest.mark.parametrize(
    ("older", "more", "ending"),
    [
        (True, {}, "against dense, 3 seeds, on this test split, Holm p=0.2"),
        (
            False,
            {"covered": ["seeds", "examples"], "withheld": None, "limited": False, "supported_margin": None,
             "warnings": {"outlying_seeds": [], "concentration": 0.2, "depends_on_seed": True}},
            "against dense, 3 seeds x 90 days, standard error 6.2% over days and 5.1% over seeds, Holm p=0.2",
        ),
    ],
)  # fmt: skip
def test_results_of_this_and_of_earlier_versions_are_rendered(older, more, ending, tmp_path, monkeypatch):
    """Earlier summaries know no test units and no standard errors."""
    monkeypatch.syspath_prepend(ROOT / "docs/answers")
    render = importlib.import_module("render")
    sizes = {} if older else {"units": 90, "seed_error": 0.05, "unit_error": 0.06}
    arm = {"n": 3, "failed": 0, "state": "open", "p_holm": 0.2, "difference": {"mean": 0.1, "low": -0.1, "high": 0.3, "n": 3, **sizes},
           "loss": {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 3}, **more}  # fmt: skip
    dense = {**arm, "difference": None, "state": None}
    summary = {
        "reference": "dense",
        "arms": {"dense": dense, "switch": arm},
        "pairs": [{**arm, "arm": "switch", "against": "dense"}],
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/summary.json").write_text(json.dumps(summary if older else {**summary, "unit": "day"}))
    results = render.Results(tmp_path)
    sentence = f"- `switch`: undecided: test loss +10.5% [-9.5, +35.0] {ending}"
    assert results.verdicts("mine") == results.pairs("mine") == sentence
    assert "| `switch` | 1.0000 ±0.1000 | +10.5% [-9.5, +35.0] |" in results.compared("mine")
