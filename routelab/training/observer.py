"""Observers of a run, which receive its progress and the points of its curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Observer:
    """Base class of observers. Its methods do nothing."""

    def spent(self, share: float) -> None:
        """Called when a part of the budget has been spent, with the fraction spent so far (0 to 1)."""

    def point(self, point: Mapping[str, float]) -> None:
        """Called after each validation with its metrics.

        When a run resumes, it is first called again for every earlier validation.
        """


class CallbackObserver(Observer):
    """Observer that calls two functions.

    Args:
        progress: called with the fraction of the budget that has been spent, 0 to 1.
        point: called after each validation with its metrics.
    """

    def __init__(
        self,
        progress: Callable[[float], object] | None = None,
        point: Callable[[Mapping[str, float]], object] | None = None,
    ) -> None:
        self._progress, self._point = progress, point

    def spent(self, share: float) -> None:
        if self._progress is not None:
            self._progress(share)

    def point(self, point: Mapping[str, float]) -> None:
        if self._point is not None:
            self._point(point)
