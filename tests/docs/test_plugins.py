"""docs/plugins.md from its first command to its last, as a new user gives them, in an environment of its own."""

import os
import re
import stat
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKLY = "budget.steps=2 seeds=1 trainer.checks=1 tracking.uri=null workers=1"


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that sees the packages of this one, and routelab as it stands in this checkout."""
    place = tmp_path / "venv"
    venv.create(place)
    folder = next(place.glob("lib/python*/site-packages"))
    (folder / "outer.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    command = place / "bin/routelab"
    command.write_text(f"#!{place}/bin/python\nfrom routelab.cli.app import main\n\nif __name__ == '__main__':\n    main()\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    # Nothing is fetched. pip reads this one the other way round: 0 means that there is no isolation.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **offline, "PATH": f"{place}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_from_an_idea_to_a_verdict(tmp_path, environment):
    text = (ROOT / "docs/plugins.md").read_text()
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    commands = [
        line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 12
    said = {}
    for command in commands:
        quick = f"{command} {QUICKLY}" if " compare " in command else command
        done = subprocess.run(
            ["bash", "-c", quick], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        said[command] = done.stdout
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert re.search(r"my_idea\W+my_idea 0\.1\.0", said["routelab list routers"])
    assert re.search(r"^my_idea: keeps .*, breaks none$", said["routelab check router my_idea"], re.MULTILINE)
    # What the generated router offers a sweep: every suggestion builds and routes.
    done = subprocess.run(
        [Path(environment["PATH"].split(":")[0]) / "python", "-c", SWEEP], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(eval(done.stdout)) == ["temperature", "top_k"]


SWEEP = """
import optuna, torch
from routelab import RouterInput, build_router
from routelab.routers.router_registry import ROUTERS

optuna.logging.disable_default_handler()


def objective(trial):
    router = build_router("my_idea", d_model=8, num_experts=4, **ROUTERS.get("my_idea").suggest(trial))
    routing = router(RouterInput(torch.randn(2, 5, 8)))
    return float(routing.losses["balance"])


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=5)
print(list(study.best_params))
"""
