"""Earlier analyses of the same comparison, which make later ones sequential."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routelab.core.number_format import join_names


@dataclass(frozen=True)
class EarlierLooks:
    """Analyses that a comparison had before.

    Attributes:
        seeds: Numbers of seeds at which it was judged, ascending.
        judged: Seeds of all of them together.
        sequential: Whether the latest of them was sequential.
        withdrawn: Verdicts of the analysis for a fixed number of seeds that a later analysis replaces: `seeds`, and `states`
            (label -> state); None if there is none.
        arms: Labels of the arms that were judged against the reference.
        cells: Addresses of the runs of the latest analysis.
    """

    seeds: tuple[int, ...] = ()
    sequential: bool = False
    withdrawn: Mapping[str, Any] | None = None
    judged: frozenset[int] = frozenset()
    arms: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()

    def is_sequential(self, seeds: Collection[int]) -> bool:
        """Return whether an analysis must allow for earlier ones: it must unless all of them were of the same seeds.

        Other seeds of the same number count too, as they could have been chosen by their results.

        Args:
            seeds: Seeds of the analysis.
        """
        return self.sequential or any(count != len(seeds) for count in self.seeds) or self.leaves_out(seeds)

    def leaves_out(self, seeds: Collection[int]) -> bool:
        """Return whether an analysis lacks a seed that was judged before, so that no test allows for the choice of its seeds.

        Args:
            seeds: Seeds of the analysis.
        """
        return bool(self.judged - set(seeds))

    def seed_counts(self, seeds: int) -> list[int]:
        """Return the numbers of seeds of all analyses, ascending.

        Args:
            seeds: Number of seeds of the present analysis.
        """
        return sorted({*self.seeds, seeds})


def earlier_looks(
    summary: Mapping[str, Any] | None, cells: Collection[str], labels: Sequence[str], reference: str | None
) -> EarlierLooks:
    """Return the earlier analyses of a comparison.

    A summary is of the same comparison if it has a run of the reference and a run of another arm in common with it. What is
    damaged in a summary counts as missing.

    Args:
        summary: Summary that lies in the comparison's folder, None if there is none.
        cells: Addresses of the comparison's runs.
        labels: Labels of its arms.
        reference: Label of its reference.
    """
    if summary is None or reference is None:
        return EarlierLooks()
    rows = [row for row in _items(summary.get("cells")) if isinstance(row, list) and len(row) == 3]
    runs = [(label, seed, key) for label, seed, key in rows if isinstance(label, str) and isinstance(key, str)]
    common = {label for label, _, key in runs if key in cells}
    if reference not in common or not common & (set(labels) - {reference}):
        return EarlierLooks()
    seeds = frozenset(_whole_numbers(summary.get("seeds"), 0) or _whole_numbers([seed for _, seed, _ in runs], 0))
    judged = seeds | frozenset(_whole_numbers(summary.get("judged_seeds"), 0))
    looks = tuple(sorted({*_whole_numbers(summary.get("looks"), 1), len(seeds)} - {0}))
    withdrawn = summary.get("withdrawn")
    if not summary.get("sequential"):
        stored = summary.get("arms")
        entries = {label: arm for label, arm in stored.items() if isinstance(arm, dict)} if isinstance(stored, dict) else {}
        withdrawn = {"seeds": len(seeds), "states": {label: arm["state"] for label, arm in entries.items() if arm.get("state")}}
    elif not isinstance(withdrawn, dict) or not isinstance(withdrawn.get("states"), dict) or "seeds" not in withdrawn:
        withdrawn = None
    named = [*_items(summary.get("family")), *(summary["arms"] if isinstance(summary.get("arms"), dict) else ())]
    arms = frozenset(label for label in named if isinstance(label, str)) - {reference}
    return EarlierLooks(looks, bool(summary.get("sequential")), withdrawn, judged, arms, frozenset(key for _, _, key in runs))


def seeds_of(summary: Mapping[str, Any] | None) -> list[int]:
    """Return the seeds that a summary was ever judged with, as far as it tells; [] without one."""
    stored = summary or {}
    return sorted({*_whole_numbers(stored.get("seeds"), 0), *_whole_numbers(stored.get("judged_seeds"), 0)})


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole_numbers(value: object, least: int) -> list[int]:
    """Return the whole numbers of a list that are not below `least`."""
    return [item for item in _items(value) if isinstance(item, int) and not isinstance(item, bool) and item >= least]


_CLAIMS = ("better", "worse", "equivalent")


def format_seed_counts(seed_counts: Sequence[int]) -> str:
    """Return numbers of seeds with their noun, `3 and 5 seeds`.

    Args:
        seed_counts: Numbers of seeds, at least one.
    """
    return f"{join_names([str(count) for count in seed_counts])} {'seed' if list(seed_counts) == [1] else 'seeds'}"


def withdrawal_text(withdrawn: Mapping[str, Any] | None, seed_counts: Sequence[int], over_seeds: bool = True) -> str | None:
    """Return the sentences on the verdicts that are withdrawn; None if none is.

    Args:
        withdrawn: `EarlierLooks.withdrawn`.
        seed_counts: Numbers of seeds of all analyses, the present one included.
        over_seeds: Whether intervals cover seeds, so that sequential tests exist.
    """
    if withdrawn is None:
        return None
    groups = {claim: [label for label, state in withdrawn["states"].items() if state == claim] for claim in _CLAIMS}
    claims = "; ".join(f"{join_names(labels)} {claim}" for claim, labels in groups.items() if labels)
    counts = format_seed_counts(seed_counts)
    earlier = (
        f"This comparison was judged with {counts}." if len(seed_counts) > 1 else "This comparison was judged with other seeds."
    )
    now = " It is therefore judged sequentially." if over_seeds else ""
    return f"{earlier}{now} The verdicts at {format_seed_counts([withdrawn['seeds']])} are withdrawn{f' ({claims})' if claims else ''}."
