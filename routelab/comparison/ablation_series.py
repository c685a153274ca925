"""Series: arms that differ in one option alone, or in several that vary together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routelab.config.arm_grid import ArmChoice


def series_of(choices: Sequence[ArmChoice]) -> list[dict[str, Any]]:
    """The series among the rows of a comparison, as plain data: `name`, `options`, and `points` (`arm`, and `at`: the values of
    the options), of at least two rows each.

    A series is what one item of `arms` was expanded to. In a grid of several options the first one runs along the series, with
    those that it determines (all that vary in `each`); there is one series for each choice of the others.
    """
    found = []
    for entry in dict.fromkeys(choice.entry for choice in choices):
        rows = [choice for choice in choices if choice.entry == entry and choice.varied]
        if not rows:
            continue
        first, *rest = (key for key, _ in rows[0].varied)
        along = [first, *(key for key in rest if _determined(rows, first, key))]
        groups: dict[str, list[ArmChoice]] = {}
        for row in rows:
            beside = [f"{key}={value}" for key, value in row.varied if key not in along]
            groups.setdefault(", ".join([row.spec.name, *beside]), []).append(row)
        found += [
            {
                "name": name,
                "options": along,
                "points": [{"arm": row.label, "at": [dict(row.varied)[key] for key in along]} for row in group],
            }
            for name, group in groups.items()
            if len(group) > 1
        ]
    return found


def _determined(rows: Sequence[ArmChoice], first: str, key: str) -> bool:
    """Whether the first option's value says what this one's is."""
    values = [(repr(dict(row.varied)[first]), repr(dict(row.varied)[key])) for row in rows]
    return len(set(values)) == len({value for value, _ in values})
