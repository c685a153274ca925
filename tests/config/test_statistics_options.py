"""Options of the statistics: sources of uncertainty, and the former names of keys."""

from __future__ import annotations

import re

import pytest

from routelab.config.resolve import resolve
from routelab.config.schema import FORMER_KEYS
from routelab.core.errors import UsageError


def test_intervals_cover_seeds_and_examples_by_default():
    assert resolve([]).config.statistics.uncertainty == ["seeds", "examples"]
    assert resolve(["statistics.uncertainty=[seeds]"]).config.statistics.uncertainty == ["seeds"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("statistics.uncertainty=[sedes]", "unknown statistics.uncertainty 'sedes'; did you mean 'seeds'"),
        ("statistics.uncertainty=[]", "statistics.uncertainty=[] must be a list of one or both of seeds, examples"),
        ("statistics.uncertainty=[seeds,seeds]", "must be a list of one or both of seeds, examples"),
        ("statistics.uncertainty=seeds", "must be a list, such as [a,b]"),
        ("statistics.alpha=1.5", "statistics.alpha=1.5 must lie between 0 and 1"),
        ("statistics.min_seeds=1", "statistics.min_seeds=1 must be at least 2 and at most statistics.max_seeds=20"),
    ],
)
def test_wrong_values_are_one_sentence(override, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve([override])


def test_seeds_auto_needs_seeds_among_the_sources():
    with pytest.raises(UsageError, match=r"seeds=auto adds seeds, so statistics.uncertainty=\['examples'\] must contain seeds"):
        resolve(["seeds=auto", "statistics.uncertainty=[examples]"])
    assert resolve(["seeds=3", "statistics.uncertainty=[examples]"]).config.statistics.uncertainty == ["examples"]


@pytest.mark.parametrize(("former", "present"), FORMER_KEYS.items())
def test_a_former_key_is_one_sentence_with_the_present_name(former, present):
    with pytest.raises(UsageError) as error:
        resolve([f"{former}=1"])
    assert str(error.value) == f"key {former!r} (command line) is now {present!r}"


def test_a_former_section_of_a_file_names_its_first_key(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("verdict:\n  first: 3\n")
    with pytest.raises(UsageError, match=r"key 'verdict.first' \(.*old.yaml\) is now 'statistics.min_seeds'"):
        resolve(path)
