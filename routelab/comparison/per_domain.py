"""Losses of an arm by domain of the test data, and their paired differences from the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.statistics.contrast import Contrast

Describe = Callable[[Contrast | None], dict[str, Any] | None]
"""Function from a contrast to its interval as plain data."""


def domains_of(
    tables: MetricTables, label: str, reference: str | None, describe_one_sample: Describe, describe_difference: Describe
) -> dict[str, dict[str, Any]]:
    """Return the intervals of an arm's loss and of its difference from the reference by domain.

    The intervals are not adjusted for the number of domains.

    Args:
        tables: Tables of the comparison's runs.
        label: Label of the arm.
        reference: Label of the reference, None if there is none.
        describe_one_sample: Function from the values of one arm to their interval.
        describe_difference: Function from a difference to its interval.

    Returns:
        Domain -> `loss`, and `difference` in log loss, which is None for the reference itself.
    """
    domains = {}
    for domain in tables.domains(label):
        difference = None
        if reference is not None and label != reference:
            difference = describe_difference(tables.contrast(label, reference, "log_loss", domain))
        domains[domain] = {"loss": describe_one_sample(tables.one_sample(label, "loss", domain)), "difference": difference}
    return domains
