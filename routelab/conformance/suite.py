"""The suite: every rule on one router, as a list of checks or as a pytest class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from routelab.conformance import (  # noqa: F401, each module adds its rules
    causality,
    edge_cases,
    plan_rules,
    train_eval_modes,
    training_rules,
)
from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import RULES, Check, Rule
from routelab.routers.base import Router


def check_router(router: str | type[Router], /, **options: Any) -> list[Check]:
    """Every rule on a registered router, or on a class, with these options of its constructor.

    One `Check` for each rule, in a fixed order. UsageError for an unknown name or option.
    """
    subject = Subject(router, options)
    return [rule.check(subject) for rule in RULES.values()]


class RouterConformance:
    """Subclass it in a test file, and pytest runs every rule on your router as a test of its own.

    router: a registered name, or the class. options: those of its constructor. processes: True trains a step in two processes
    as well, which takes as long as two starts of Python; what `router` names must then be importable there.

        class TestMine(RouterConformance):
            router = "mine"
            options = {"temperature": 2.0}
    """

    router: ClassVar[str | type[Router]]
    options: ClassVar[Mapping[str, Any]] = {}
    processes: ClassVar[bool] = False

    def test_processes(self) -> None:
        import pytest

        if not self.processes:
            pytest.skip("set `processes = True` to train a step in two processes")
        from routelab.conformance.process_rules import check_in_processes

        _judge(check_in_processes({"it": (self.router, self.options)})["it"])


def _judge(check: Check) -> None:
    import pytest

    if check.skipped:
        pytest.skip(check.detail)
    if check.failed:
        pytest.fail(f"{check.rule} {check.detail}", pytrace=False)


def _as_test(rule: Rule) -> Callable[[RouterConformance], None]:
    def test(self: RouterConformance) -> None:
        _judge(rule.check(Subject(self.router, self.options)))

    test.__doc__ = rule.sentence
    return test


for _rule in RULES.values():
    setattr(RouterConformance, f"test_{_rule.name}", _as_test(_rule))
