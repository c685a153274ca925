"""Every kind of arm gives the committed numbers within 1e-5; `against_commit.py` compares bit for bit.

With a few steps of tiny models, rounding errors of other processors stay below 1e-5. There, a tie in a router or in an argmax may
still be broken differently, and the case fails. Then run `against_commit.py`, which records both trees on one machine.
"""

import json

import pytest
from against_commit import ROOT, run_recorder
from committed import VALUES, differences, shortened
from golden_cases import COMPARED, TRAINED
from key_map import KEY_MAP

CASES = [*TRAINED, *(f"compare/{name}" for name in COMPARED)]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def present(tmp_path_factory):
    """Record the values of the present tree."""
    out = tmp_path_factory.mktemp("golden") / "present.json"
    run_recorder(out, ROOT)
    return json.loads(out.read_text())["cases"]


@pytest.fixture(scope="session")
def committed():
    """Read the committed values, under their present names."""
    values = json.loads(VALUES.read_text())
    versions = (0, KEY_MAP.version)
    assert values["key_map"] in versions, (
        f"values.json has version {values['key_map']} of the key map, one of {versions} is needed"
    )
    return (values if values["key_map"] == KEY_MAP.version else KEY_MAP.translate_recording(values))["cases"]


def test_cases_are_committed(committed):
    assert sorted(CASES) == sorted(committed)


@pytest.mark.parametrize("case", CASES)
def test_case(case, present, committed):
    lines = list(differences(case, committed[case], shortened(present[case])))
    assert not lines, f"{len(lines)} values differ\n" + "\n".join(lines[:20])
