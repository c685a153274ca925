"""The error that means "the call was wrong", and the nearest match that its sentence offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input from the user: one sentence that names the key, the value and what is allowed. Exit code 2."""


class StorageError(UsageError):
    """The place that results go to takes no more (a full disk), after work had begun. Exit code 1."""


class PluginError(UsageError):
    """A part that is not built in raised an error of its own, or broke its contract. A comparison reports its arm as failed
    and runs the others."""

    @classmethod
    def of(cls, what: str, error: Exception) -> PluginError:
        """One sentence: what failed (a registry's title, which holds the origin), and the first line of its error."""
        first = first_line(error)
        return cls(f"{what} cannot be built: {type(error).__name__}{f': {first}' if first else ''}")


class PluginWarning(UserWarning):
    """Something is wrong with an installed plugin that nobody has asked for yet."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; empty if it has none."""
    return next(iter(str(error).strip().splitlines()), "")


def unknown(what: str, value: object, allowed: Iterable[str]) -> UsageError:
    """An error for a name that is not among `allowed`, with the nearest match."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {what} {str(value)!r}{hint} (allowed: {', '.join(names) or 'none'})")
