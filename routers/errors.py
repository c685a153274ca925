"""The error that means "the call was wrong", and the nearest match that its sentence offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input from the user: one sentence that names the key, the value and what is allowed. Exit code 2."""


def unknown(what: str, value: object, allowed: Iterable[str]) -> UsageError:
    """An error for a name that is not among `allowed`, with the nearest match."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {what} {str(value)!r}{hint} (allowed: {', '.join(names) or 'none'})")
