"""Every kind of arm gives the committed numbers within 1e-5; `against_commit.py` compares bit for bit.

A few steps of tiny models keep rounding of other processors below 1e-5. A tie in a router or in an argmax may still fall the
other way there, and then the case fails by a whole token: record both trees on one machine with `against_commit.py` to tell.
"""

import json

import pytest
from against_commit import ROOT, run_recorder
from cases import COMPARED, TRAINED
from committed import VALUES, differences, shortened
from key_map import KEY_MAP

CASES = [*TRAINED, *(f"compare/{name}" for name in COMPARED)]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def present(tmp_path_factory):
    """The values of the present tree."""
    out = tmp_path_factory.mktemp("golden") / "present.json"
    run_recorder(out, ROOT)
    return json.loads(out.read_text())["cases"]


@pytest.fixture(scope="session")
def committed():
    """The committed values, under their present names."""
    values = json.loads(VALUES.read_text())
    known = (0, KEY_MAP.version)
    assert values["key_map"] in known, f"values.json has version {values['key_map']} of the key map, one of {known} is needed"
    return (values if values["key_map"] == KEY_MAP.version else KEY_MAP.translate_recording(values))["cases"]


def test_cases_are_committed(committed):
    assert sorted(CASES) == sorted(committed)


@pytest.mark.parametrize("case", CASES)
def test_case(case, present, committed):
    lines = list(differences(case, committed[case], shortened(present[case])))
    assert not lines, f"{len(lines)} values differ\n" + "\n".join(lines[:20])
