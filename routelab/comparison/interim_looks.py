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
        sequential: Whether the latest of them was sequential.
        withdrawn: Verdicts of the analysis for a fixed number of seeds that a later analysis replaces: `seeds`, and `states`
            (label -> state); None if there is none.
    """

    seeds: tuple[int, ...] = ()
    sequential: bool = False
    withdrawn: Mapping[str, Any] | None = None

    def is_sequential(self, seeds: int) -> bool:
        """Return whether an analysis must allow for earlier ones: it must unless all of them had as many seeds.

        Args:
            seeds: Number of seeds of the analysis.
        """
        return self.sequential or any(earlier != seeds for earlier in self.seeds)

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

    A summary is of the same comparison if it has a run of the reference and a run of another arm in common with it.

    Args:
        summary: Summary that lies in the comparison's folder, None if there is none.
        cells: Addresses of the comparison's runs.
        labels: Labels of its arms.
        reference: Label of its reference.
    """
    if summary is None or reference is None or not isinstance(summary.get("cells"), list):
        return EarlierLooks()
    common = {label for label, _, key in summary["cells"] if key in cells}
    if reference not in common or not common & (set(labels) - {reference}):
        return EarlierLooks()
    seeds = len(summary.get("seeds") or ())
    seed_counts = tuple(sorted({*(summary.get("looks") or ()), seeds}))
    withdrawn = summary.get("withdrawn")
    if not summary.get("sequential"):
        states = {label: arm.get("state") for label, arm in (summary.get("arms") or {}).items() if arm.get("state")}
        withdrawn = {"seeds": seeds, "states": states}
    return EarlierLooks(seed_counts, bool(summary.get("sequential")), withdrawn)


_CLAIMS = ("better", "worse", "equivalent")


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
    counts = join_names([str(count) for count in seed_counts])
    now = " It is therefore judged sequentially." if over_seeds else ""
    return (
        f"This comparison was judged with {counts} seeds.{now} The verdicts at {withdrawn['seeds']} seeds are "
        f"withdrawn{f' ({claims})' if claims else ''}."
    )
