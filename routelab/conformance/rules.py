"""What a rule is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from routelab.conformance.router_under_test import Subject

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """What came of one rule on one router. rule: the rule in a sentence. detail: what broke, and by how much, or why it was
    skipped; "" where there is nothing to say."""

    name: str
    rule: str
    state: State
    detail: str = ""

    @property
    def passed(self) -> bool:
        """The router keeps the rule."""
        return self.state == "passed"

    @property
    def failed(self) -> bool:
        """The router breaks the rule."""
        return self.state == "failed"

    @property
    def skipped(self) -> bool:
        """The rule says nothing about this router."""
        return self.state == "skipped"


class BrokenError(AssertionError):
    """A rule is broken: one sentence that says how, and by how much."""


class DoesNotApplyError(Exception):
    """A rule says nothing about this router: one sentence that says why."""


@dataclass(frozen=True)
class Rule:
    """A named property and the function that tests it, which raises one of the errors above."""

    name: str
    sentence: str
    test: Callable[[Subject], None]

    def check(self, subject: Subject) -> Check:
        """Test one router; whatever it raises counts as broken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                self.test(subject)
            except DoesNotApplyError as reason:
                return Check(self.name, self.sentence, "skipped", str(reason))
            except BrokenError as broken:
                return Check(self.name, self.sentence, "failed", str(broken))
            except Exception as error:
                first = next(iter(str(error).strip().splitlines()), "")
                return Check(self.name, self.sentence, "failed", f"it raised {type(error).__name__}: {first}")
        return Check(self.name, self.sentence, "passed")


RULES: dict[str, Rule] = {}
"""Every rule by its name, in the order in which they are tested."""


def rule(sentence: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Decorator: make a function the test of a rule of its own name."""

    def add(test: Callable[[Subject], None]) -> Callable[[Subject], None]:
        RULES[test.__name__] = Rule(test.__name__, sentence, test)
        return test

    return add


def require(condition: object, sentence: str) -> None:
    """BrokenError with the sentence unless the condition holds."""
    if not condition:
        raise BrokenError(sentence)


def require_close(what: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """BrokenError unless two tensors agree to `tolerance`, of the largest entry if that is above 1. what: the sentence's subject."""
    if found.shape != wanted.shape:
        raise BrokenError(f"{what}: the shape is {tuple(found.shape)} and should be {tuple(wanted.shape)}")
    if not wanted.numel():
        return
    mine, theirs = found.detach().double(), wanted.detach().double()
    gap, allowed = float((mine - theirs).abs().nan_to_num(torch.inf).max()), tolerance * max(1.0, float(theirs.abs().max()))
    if gap > allowed:
        raise BrokenError(f"{what}: off by {gap:.2g}, where at most {allowed:.0e} is rounding")
