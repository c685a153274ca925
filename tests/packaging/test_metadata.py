"""Files that repeat the project's metadata agree with pyproject.toml."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def read_yaml(path):
    return yaml.safe_load((CHECKOUT / path).read_text())


def test_the_citation_is_of_this_version():
    citation = read_yaml("CITATION.cff")
    assert (citation["title"].partition(":")[0], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]


def test_the_workflow_runs_on_every_python_of_the_classifiers():
    prefix = "Programming Language :: Python :: 3."
    declared = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["ci"]
    assert job["strategy"]["matrix"]["python-version"] == [f"3.{minor}" for minor in declared]
    assert PROJECT["requires-python"] == f">=3.{declared[0]}"
    assert job["steps"][-1]["run"] == "bash .ci/run"


def test_no_bound_of_a_dependency_admits_release_candidates():
    assert [text for text in PROJECT["dependencies"] if Requirement(text).specifier.prereleases] == []


def test_ci_installs_a_release_of_torch_within_the_bounds():
    (pin,) = [line for line in (CHECKOUT / ".ci/constraints.txt").read_text().splitlines() if line.startswith("torch")]
    (version,) = Requirement(pin).specifier
    (bounds,) = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch"]
    assert bounds.specifier.contains(version.version)


def test_no_hook_downloads_anything():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
