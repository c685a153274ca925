"""What a clock found, in sentences with numbers: when a mixture is slower although it computes less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routelab.analysis.latency.dense_counterparts import MIXTURE
from routelab.analysis.latency.measure import TOKEN, WHOLE

_EQUAL = 0.025
"""Ratios of FLOPs this near to 1 are called equal."""


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The answer for each rival and mode, then where the time goes, then what was not measured."""
    told = []
    for mode in (WHOLE, TOKEN):
        for rival in (name for name in found["arms"] if name != MIXTURE):
            rows = [row for row in found["rows"] if (row["mode"], row["arm"]) == (mode, rival)]
            if rows:
                told.append(_against(found, mode, rival, rows))
    for mode in (WHOLE, TOKEN):
        mine = [row for row in found["rows"] if (row["mode"], row["arm"]) == (mode, MIXTURE)]
        if mine:
            ends = [mine[0]] if len(mine) == 1 else [mine[0], mine[-1]]
            each = "; ".join(f"at batch {row['batch']} {_shares(row['parts'])}" for row in ends)
            told.append(f"Where the mixture's time goes, {_named(found, mode)}: {each}.")
    told += [f"{_subject(stop['arm'])} not timed from batch {stop['batch']} on, {_named(found, stop['mode'])}: {stop['reason']}."
             for stop in found["stopped"]]  # fmt: skip
    if found["undecoded"]:
        told.append(f"Decoding was not timed: {found['undecoded']}.")
    return told


def _against(found: Mapping[str, Any], mode: str, rival: str, rows: Sequence[Mapping[str, Any]]) -> str:
    arms = found["arms"]
    flops = arms[MIXTURE]["flops_per_example"] / arms[rival]["flops_per_example"]
    slower = [row for row in rows if row["ratio"]["low"] > 1]
    faster = [row for row in rows if row["ratio"]["high"] < 1]
    unclear = [row for row in rows if row not in slower and row not in faster]
    computes = "computes as much" if abs(flops - 1) <= _EQUAL else f"computes {flops:.2f}x as much"
    parts = []
    if slower:
        although = " although it computes less" if flops < 1 - _EQUAL else ""
        parts.append(f"is slower{although} at batch {_each(slower)}")
    if faster:
        parts.append(f"is faster at batch {_each(faster)}")
    if unclear:
        parts.append(f"shows no difference at batch {_each(unclear)}")
    return f"Against {rival}, {_named(found, mode)}, the mixture {computes}, and {'; '.join(parts)}."


def _each(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['batch']} ({_interval(row['ratio'])})" for row in rows)


def _interval(ratio: Mapping[str, Any]) -> str:
    bounded = ratio["low"] == ratio["low"]
    return f"{ratio['mean']:.2f}x the time" + (f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if bounded else "")


def _shares(parts: Mapping[str, float]) -> str:
    largest = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.005)


def _subject(arm: str) -> str:
    return "The mixture was" if arm == MIXTURE else f"{arm[0].upper()}{arm[1:]}, was"


def _named(found: Mapping[str, Any], mode: str) -> str:
    if mode == TOKEN:
        return "decoding token by token"
    return f"on windows of {found['positions']} tokens" if found["positions"] else "on whole examples"
