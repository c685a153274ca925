"""Every built-in router, with its defaults and the variants that matter, keeps every rule of the public suite."""

import pytest

from routelab.conformance.cases import cases
from routelab.conformance.router_under_test import Subject
from routelab.conformance.suite import RULES


@pytest.mark.parametrize("case", cases())
def test_it_keeps_every_rule(case):
    name, options = cases()[case]
    subject = Subject(name, options)
    broken = [check for check in (rule.check(subject) for rule in RULES.values()) if check.failed]
    assert not broken, "\n".join(f"{check.name}: {check.detail}" for check in broken)
