"""docs/answers.md: its figures are there, and what it tells people to type exists."""

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
