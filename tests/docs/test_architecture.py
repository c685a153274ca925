"""docs/architecture.md names files that exist, and its picture is what the script draws."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(ROOT / "docs" / "architecture" / "draw.py"))


def test_the_picture_is_what_the_script_draws(drawing):
    assert drawing["PICTURE"].read_text(encoding="utf-8") == drawing["draw"]()


def test_every_step_of_the_picture_is_a_file_of_the_package(drawing):
    missing = [file for file, _ in drawing["STEPS"] if not (ROOT / "routelab" / file).exists()]
    assert missing == []
    packages = [package for layer in drawing["layers"]() for package in layer]
    assert {path.name for path in (ROOT / "routelab").iterdir() if (path / "__init__.py").is_file()} == set(packages)
    assert all(drawing["description_of"](package) for package in packages)


def test_every_path_on_the_page_exists():
    folder, missing = ROOT, []
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        candidates = [ROOT / name, ROOT / "routelab" / name, folder / name]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            missing.append(name)
        else:
            folder = path.parent if path.is_file() else path
    assert missing == []


@pytest.mark.parametrize(
    ("file", "definition"),
    [
        ("experts/moe_layer.py", "limit("),
        ("routers/capacity.py", "def limit("),
        ("routelab/comparison/statistics/hypothesis_tests.py", "def judge("),
        ("routelab/comparison/verdict.py", "def verdict_of("),
        ("sweeps/liveness.py", "def gone("),
        ("sweeps/studies.py", "def recover("),
        ("sweeps/worker_pool.py", "def restart_dead("),
        ("routelab/core/plugins.py", "def load_plugin("),
        ("routelab/records/run_cache.py", "def cell_key("),
    ],
)
def test_the_answers_hold(file, definition):
    assert definition in (ROOT / file).read_text(encoding="utf-8")
    assert f"`{file}`" in PAGE
