"""examples/slurm.sh, as Slurm would run it, with a `routelab` that notes what it is asked."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"

NOTES = """#!/usr/bin/env bash
trap 'echo told > told; exit 130' TERM
printf '%s\\n' "$@" > asked
for _ in $(seq 200); do sleep 0.05; [ -e finish ] && exit 3; done
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `routelab` is the script above."""
    path = tmp_path / "bin" / "routelab"
    path.parent.mkdir()
    path.write_text(NOTES)
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{path.parent}:{os.environ['PATH']}", "ROUTELAB_STORAGE": "postgresql://me@db/optuna"}


def begun(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["bash", str(SCRIPT), "my sweep.yaml", "big", "trials=9"], env=environment)
    end = time.monotonic() + 20
    while not Path("asked").exists() or not Path("asked").read_text().endswith("trials=9\n"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def test_it_joins_the_study_and_ends_as_the_sweep_does(environment):
    process = begun(environment)
    Path("finish").touch()
    assert process.wait(20) == 3
    assert Path("asked").read_text().splitlines() == [
        "sweep", "run", "my sweep.yaml", "--tune-only", "study=big", "storage=postgresql://me@db/optuna",
        f"output={Path.cwd()}/results/big", "tracking.uri=null", "workers=1", "trials=9",
    ]  # fmt: skip


def test_a_task_that_is_preempted_lets_the_sweep_hand_its_trials_back(environment):
    process = begun(environment)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert Path("told").exists()


def test_it_says_what_it_lacks(environment):
    for words, what in (([], "usage"), (["a.yaml", "big"], "ROUTELAB_STORAGE")):
        lacking = {key: value for key, value in environment.items() if key != "ROUTELAB_STORAGE"}
        done = subprocess.run(["bash", str(SCRIPT), *words], env=lacking, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert what in done.stderr
        assert not Path("asked").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
