"""The lint rule against the former names of packages (TID251)."""

import subprocess
import sys
from pathlib import Path

import pytest

from routelab.core.former_names import FORMER_NAMES

CHECKOUT = Path(__file__).parents[2]

pytest.importorskip("ruff", reason="ruff is in the extra `dev`")


def lint(source):
    """Return the lines of ruff's report on a module of the checkout with that source."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=mine.py", "-"]
    done = subprocess.run(command, cwd=CHECKOUT, input=source, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if "TID251" in line]


@pytest.mark.parametrize("name", FORMER_NAMES)
@pytest.mark.parametrize(
    "statement", ["import {}", "import {}.base as base", "from {} import Router", "from {}.base import Router"]
)
def test_a_former_name_is_reported_with_the_new_one(name, statement):
    (line,) = lint(statement.format(name) + "\n")
    assert line.endswith(f"`{name}` is banned: import routelab.{name} instead")


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_the_new_name_is_allowed(name):
    assert lint(f"import routelab.{name}\nfrom routelab import {name}\nfrom routelab.{name}.base import Router\n") == []
