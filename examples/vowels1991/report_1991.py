"""Table and sentence of one reading of the experiment, with the published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from vowel_experiment import PUBLISHED, describe, ratio

HEADER = ("system", "train %", "test %", "epochs", "SD", "in use", "arrived", "step", "published epochs", "SD")


def lines(rows: Sequence[Mapping[str, Any]], epochs: int) -> list[tuple[str, ...]]:
    """One line for each system under one reading and criterion; intervals are 95% of the mean over the runs that arrived."""
    table: list[tuple[str, ...]] = []
    for row in rows:
        published = PUBLISHED.get(row["system"])
        told = (f"{published[2]}", f"{published[3]}") if published else ("", "")
        if not row.get("epochs"):
            tried = f"0 within {epochs} epochs"
            table.append((row["system"], "", "", "", "", "", tried, "" if row["step"] is None else f"{row['step']:g}", *told))
            continue
        found = row["epochs"]
        table.append(
            (
                row["system"],
                describe([100 * share for share in row["train"]], ".1f"),
                describe([100 * share for share in row["test"]], ".1f"),
                describe(found, ".0f"),
                f"{stdev(found):.0f}" if len(found) > 1 else "",
                describe(row["in_use"], ".1f") if "in_use" in row else "",
                f"{row['reached']} of {row['runs']}",
                f"{row['step']:g}",
                *told,
            )
        )
    return table


def verdict(rows: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """The ratio of epochs in a sentence, and what the paper has."""
    found = ratio(rows, epochs)
    if found is None:
        return "no ratio: of some system no run arrived"
    text = f"mixtures need {found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}] times the epochs of backprop"
    late = [f"{found[key]} of {name}" for key, name in (("late", "mixtures"), ("late_backprop", "backprop")) if found[key]]
    given_up = f"; runs that never arrived count as {epochs} epochs: {' and '.join(late)}" if late else ""
    return f"{text} (published: 0.48){given_up}"
