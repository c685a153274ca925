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
        """Return whether an analysis with so many seeds must allow for earlier ones: it must unless all had as many."""
        return self.sequential or any(earlier != seeds for earlier in self.seeds)

    def with_seeds(self, seeds: int) -> list[int]:
        """Return the numbers of seeds of all analyses, one with so many seeds included."""
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
    looks = tuple(sorted({*(summary.get("looks") or ()), seeds}))
    withdrawn = summary.get("withdrawn")
    if not summary.get("sequential"):
        states = {label: arm.get("state") for label, arm in (summary.get("arms") or {}).items() if arm.get("state")}
        withdrawn = {"seeds": seeds, "states": states}
    return EarlierLooks(looks, bool(summary.get("sequential")), withdrawn)


_PHRASES = {"better": "better", "worse": "worse", "equivalent": "equivalent"}


def withdrawal_text(withdrawn: Mapping[str, Any] | None, seeds: int, over_seeds: bool = True) -> str | None:
    """Return the sentences on the verdicts that are withdrawn; None if none is.

    Args:
        withdrawn: `EarlierLooks.withdrawn`.
        seeds: Number of seeds of the present analysis.
        over_seeds: Whether its intervals cover seeds, so that they hold at every analysis.
    """
    if withdrawn is None:
        return None
    groups = {
        phrase: [label for label, state in withdrawn["states"].items() if state == name] for name, phrase in _PHRASES.items()
    }
    claims = "; ".join(f"{join_names(labels)} {phrase}" for phrase, labels in groups.items() if labels)
    how = f"sequentially, with {seeds}" if over_seeds else f"with {seeds}"
    return (
        f"This comparison was judged before with {withdrawn['seeds']} seeds. It is now judged {how}, "
        f"and the earlier verdicts are withdrawn{f' ({claims})' if claims else ''}."
    )
