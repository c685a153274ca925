"""Version of the package, and `routelab --version`."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import routelab

CHECKOUT = Path(__file__).parents[2]


def run(*command, **options):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, **options).stdout


def test_the_option_prints_the_version_before_anything_else_and_loads_nothing_heavy():
    script = (
        "import sys\nfrom routelab.cli.app import app, guarded\n"
        "code = guarded(lambda: app(['--plugin', 'absent.py', '--version'], standalone_mode=False))\n"
        "print(code, sorted({'torch', 'mlflow', 'optuna', 'numpy'} & set(sys.modules)))\n"
    )
    assert run("-c", script) == f"routelab {routelab.__version__}\n0 []\n"


def test_the_version_is_that_of_the_metadata_and_is_read_on_first_use():
    assert routelab.__version__ == importlib.metadata.version("routelab")
    # importlib.metadata takes longer to load than the package.
    script = "import routelab, sys; print('importlib.metadata' in sys.modules); routelab.__version__; print('importlib.metadata' in sys.modules)"
    assert run("-S", "-c", script, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}).split() == ["False", "True"]


def test_a_package_that_is_not_installed_has_an_unknown_version(tmp_path):
    # An editable install leaves its metadata in the checkout, which is also on the path there.
    (tmp_path / "routelab").symlink_to(CHECKOUT / "routelab")
    script = "import routelab; print(routelab.__version__)"
    # -S excludes the packages of the environment.
    assert run("-S", "-c", script, env=os.environ | {"PYTHONPATH": ""}, cwd=tmp_path) == "0+unknown\n"
