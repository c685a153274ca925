"""The wheel and the source distribution: their files, and a comparison that imports nothing from the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from routelab.core.former_names import FORMER_NAMES

CHECKOUT = Path(__file__).parents[2]
NOT_SOURCES = (".*", "__pycache__", "build", "dist", "*.egg-info", "results", "mlruns")

pytestmark = pytest.mark.long
pytest.importorskip("build", reason="build is in the extra `dev`")

COMPARE = """
import sys
from pathlib import Path
import routelab
from routelab.cli.app import main

installed, outside = Path(sys.argv.pop(1)), []
assert Path(routelab.__file__).is_relative_to(installed), routelab.__file__
try:
    main()
finally:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("routelab", "baselines", "experts", "routers", "sweeps"):
            if not Path(module.__file__).is_relative_to(installed):
                outside.append(module.__file__)
    assert not outside, outside
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(kind, source, output):
    """Build a "wheel" or an "sdist" with the packages of this environment; return the file."""
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(output), str(source))
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Copy the checkout. A build leaves folders, from which a later wheel would take files that no longer exist."""
    copy = tmp_path_factory.mktemp("source") / "routelab"
    return shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


def files_in(wheel):
    """Return path -> content of the files of a wheel, without its dist-info folder."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def files_of_the_package():
    """Return path -> content of the files below routelab/ in the checkout. Path.rglob does not follow links on Python 3.11."""
    folders = os.walk(CHECKOUT / "routelab", followlinks=True)
    paths = [Path(folder) / file for folder, _, files in folders if not folder.endswith("__pycache__") for file in files]
    return {path.relative_to(CHECKOUT).as_posix(): path.read_bytes() for path in paths}


def test_the_wheel_holds_the_one_package_routelab(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    (info,) = top - {"routelab"}
    assert info.endswith(".dist-info")


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = files_in(wheel)
    assert files == files_of_the_package()
    for name in ("routelab", *(f"routelab/{former}" for former in FORMER_NAMES)):
        assert {f"{name}/__init__.py", f"{name}/py.typed"} <= set(files)
    for file in (CHECKOUT / "routers").glob("*.py"):
        assert f"routelab/routers/{file.name}" in files
    assert {".json", ".html", ".css", ".csv", ".template"} <= {Path(name).suffix for name in files}


def test_a_wheel_from_the_source_distribution_is_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        # The parameter `filter` is new in Python 3.11.4; the attribute does the same, and earlier versions ignore it.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_in(build("wheel", unpacked, tmp_path / "wheel")) == files_in(wheel)


def test_a_comparison_imports_nothing_from_the_checkout(wheel, tmp_path):
    installed, folder = tmp_path / "installed", tmp_path / "elsewhere"
    folder.mkdir()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed), str(wheel))
    words = ("compare", "arms=[dense,switch]", "seeds=1", "budget.steps=4", "tracking.uri=null")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    run(sys.executable, "-c", COMPARE, str(installed), *words, cwd=folder, env=environment)
    assert len((folder / "results/digits/results.csv").read_text().splitlines()) == 3
    assert (folder / "results/digits/report.html").stat().st_size > 0
