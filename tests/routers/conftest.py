"""How a router, a layer and random tokens are made for the tests of single routers.

The cases are those of the conformance suite, which holds what every router must keep. The fixtures hand out pure functions.
"""

import pytest

from routelab.conformance.cases import cases
from routelab.conformance.router_under_test import Subject
from routelab.routers.probes.random_tokens import tokens

E = 4


def _subject(case, num_experts=E, **options):
    name, own = cases()[case]
    return Subject(name, {**own, **options}, num_experts)


def _router(case, d_model=8, num_experts=E, seed=0, **options):
    return _subject(case, num_experts, **options).router(seed, d_model=d_model)


def _layer(case, *, quiet=False, seed=0, router_options=None, **options):
    subject = _subject(case, **(router_options or {}))
    router = subject.noiseless if quiet else None
    return subject.layer(seed, router=router, **{"capacity_factor": "default", **options})


@pytest.fixture(scope="session", params=cases())
def case(request):
    """The name of a router with its options."""
    return request.param


@pytest.fixture(scope="session")
def make_router():
    """make_router(case, d_model=8, num_experts=4, seed=0, **options): a router with weights large enough to choose clearly."""
    return _router


@pytest.fixture(scope="session")
def make_layer():
    """make_layer(case, quiet=False, seed=0, router_options=None, **options): a mixture layer around such a router."""
    return _layer


@pytest.fixture(scope="session")
def data():
    """data(groups, positions, seed=0, width=8): random tokens (G, S, D), and ids below 50 (G, S)."""
    return tokens
