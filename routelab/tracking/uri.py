"""Where a tracking store lies: its URI, whether it answers, and what its errors say. Knows no mlflow."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from routelab.core.errors import UsageError


@contextlib.contextmanager
def initialising(uri: str) -> Iterator[None]:
    """Readies the way to the store; for sqlite, lets one process at a time create it."""
    if is_server(uri):
        _ping(uri)
        yield
        return
    if not uri.startswith("sqlite:"):
        yield
        return
    database = sqlite_path(uri)
    if database is None:
        raise UsageError(f"tracking.uri {uri!r} names no file: write sqlite:///PATH")
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=120):
        yield


def _ping(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            pass
    except urllib.error.HTTPError:
        return  # It answers; whether it lets us write is seen next.
    except (OSError, ValueError) as error:
        raise UsageError(f"tracking.uri {shown(uri)!r} does not answer: {reason(error)}") from error


def is_server(uri: str) -> bool:
    """Whether the URI is the address of a server, and not of a database."""
    return uri.startswith(("http://", "https://"))


def sqlite_path(uri: str) -> Path | None:
    """The file of a `sqlite:///path` URI; None for any other URI and for a database in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return None if path in ("", ":memory:") else Path(path).absolute()


def absolute(uri: str) -> str:
    """The URI with the path of a sqlite file made absolute, so that a later change of folder does not matter."""
    database = sqlite_path(uri)
    if database is None:
        return uri
    mark, query = uri.partition("?")[1:]
    return f"sqlite:///{database}{mark}{query}"


def shown(uri: str) -> str:
    """The URI without its password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def reason(error: BaseException) -> str:
    """The first sentence of an error, short and without passwords; of a database's error, what the driver said."""
    driver = getattr(error, "orig", None)
    if isinstance(driver, BaseException):
        return reason(driver)
    found = re.search(r"\(([\w.]+Error)\) ([^\n]*)", str(error))
    lines = [f"{found[1]}: {found[2]}"] if found else str(error).strip().splitlines()
    text = shown(re.split(r"[.;] [A-Z]", lines[0].strip())[0] if lines else "").rstrip(".")
    if found:
        return text[:300]
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
