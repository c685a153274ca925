"""Counts of tests and assertions in this checkout and at an earlier commit.

    python tests/count_checks.py --commit f3c8993

The exit code is 1 if this checkout has fewer of either.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ("raises", "warns", "assert_close", "assert_allclose", "assert_array_equal", "gradcheck")
"""Calls that fail a test as an assert statement does."""


def count_assertions(folder: Path) -> int:
    """Return the number of assert statements and of calls such as `pytest.raises` in the test files of a folder."""
    total = 0
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = node.func if isinstance(node, ast.Call) else None
            is_check = isinstance(function, ast.Attribute) and function.attr in CHECKS
            total += isinstance(node, ast.Assert) or is_check
    return total


def count_collected(root: Path) -> int:
    """Return the number of tests that pytest collects in a checkout, including those that a plain run deselects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    counted = re.search(r"(\d+) tests? collected", done.stdout)
    if done.returncode or counted is None:
        sys.exit(f"pytest could not collect the tests in {root}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return int(counted[1])


def count(root: Path) -> dict[str, int]:
    """Return both counts of a checkout."""
    assertions = sum(count_assertions(folder) for folder in (root / "tests", *sorted(root.glob("examples/*/tests"))))
    return {"tests collected": count_collected(root), "assertions": assertions}


def main() -> int:
    """Print the counts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="a commit to compare with")
    commit = parser.parse_args().commit
    present = count(ROOT)
    if commit is None:
        print(*(f"{name}: {value}" for name, value in present.items()), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        earlier = count(Path(folder))
    for name, value in present.items():
        print(f"{name}: {value} ({commit}: {earlier[name]})")
    return int(any(present[name] < earlier[name] for name in present))


if __name__ == "__main__":
    sys.exit(main())
