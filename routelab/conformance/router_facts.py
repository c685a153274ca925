"""What `routelab list` says of a built-in router without importing it: its dependence, as it is declared, and its paper."""

from __future__ import annotations

import inspect
import re
from typing import Any

from routelab.conformance.cases import cases
from routelab.conformance.router_under_test import Subject

_PAPER = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")


def facts_of(name: str) -> dict[str, Any]:
    """`causal`, `batch_coupled` and `paper` of a router with its default options.

    causal: true, false, "in evaluation" (and not in training), or "without capacity" (and not under its own default capacity,
    whichever tokens share it). batch_coupled: false, true, "in training", or "capacity per batch" (under its default capacity,
    and only if a batch shares it). The rules `causality` and `batch_coupling` prove what is declared.
    """
    subject = Subject(name)
    plain = subject.layer()
    own = [subject.layer(capacity_factor="default", capacity_group=group) for group in ("sequence", "batch")]
    by_training = plain.router.per_token
    causal: bool | str = all(layer.causal for layer in (plain, *own))
    if not causal:
        causal = "without capacity" if plain.causal else by_training and "in evaluation"
    coupled: bool | str = plain.batch_coupled and (not by_training or "in training")
    if not coupled and own[1].batch_coupled:
        coupled = "capacity per batch"
    return {"causal": causal, "batch_coupled": coupled, "paper": paper(subject.made)}


def paper(router: type) -> str | None:
    """The source that the docstring's first paragraph names in parentheses, with its year; None if it names none."""
    found = _PAPER.search(" ".join((inspect.getdoc(router) or "").partition("\n\n")[0].split()))
    return found.group(1) if found else None


def all_facts() -> dict[str, dict[str, Any]]:
    """`facts_of` every built-in router."""
    return {name: facts_of(name) for name in {router for router, _ in cases().values()}}
