"""What `routelab list routers` says without importing a router is what the routers declare; the suite proves that."""

import re

import pytest

from routelab.conformance.router_facts import all_facts, paper
from routelab.routers.router_metadata import read


def test_recorded_facts_are_those_of_the_routers():
    """`python -m routelab.conformance` records them anew."""
    recorded = read()
    for name, facts in all_facts().items():
        assert {key: recorded[name].get(key) for key in facts} == facts, name
    assert recorded.keys() == all_facts().keys()


@pytest.mark.parametrize(
    ("name", "causal", "coupled"),
    [
        ("topk", True, False),
        ("switch", True, "capacity per batch"),
        ("top2", "without capacity", "capacity per batch"),
        ("base", "in evaluation", "in training"),
        ("expert_choice", False, False),
        ("soft", False, False),
    ],
)
def test_dependence_of_the_reference(name, causal, coupled):
    """The table of the field: what an output may depend on."""
    found = read()[name]
    assert (found["causal"], found["batch_coupled"]) == (causal, coupled)


def test_papers_are_found_in_docstrings():
    class Own:
        """Top-1 of something (Smith and Wong 2031, A Title, eq. 2), as ever.

        Not this one (Jones 2030).
        """

    class Nobodys:
        """Top-1 of something (of one's own)."""

    assert paper(Own) == "Smith and Wong 2031, A Title, eq. 2"
    assert paper(Nobodys) is None
    assert all(re.search(r"\d{4}", facts["paper"] or "2000") for facts in read().values())
