"""The error that means "the call was wrong", and the nearest match that its sentence offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input from the user: one sentence that names the key, the value and what is allowed. Exit code 2."""


class StorageError(UsageError):
    """The place that results go to takes no more (a full disk), after work had begun. Exit code 1."""


class PluginError(UsageError):
    """A part that is not built in raised an error of its own. A comparison reports its arm as failed and runs the others."""

    @classmethod
    def of(cls, what: str, origin: str, error: Exception) -> PluginError:
        """One sentence: what failed, where it comes from, and the first line of its error."""
        first = next(iter(str(error).strip().splitlines()), "")
        return cls(f"{what} ({origin}) cannot be built: {type(error).__name__}{f': {first}' if first else ''}")


def unknown(what: str, value: object, allowed: Iterable[str]) -> UsageError:
    """An error for a name that is not among `allowed`, with the nearest match."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {what} {str(value)!r}{hint} (allowed: {', '.join(names) or 'none'})")
