"""Compare the runs of the present tree with a commit, bit for bit: `python tests/golden/against_commit.py [--commit f3c8993]`.

Both trees run the present `record.py` in this interpreter, with these packages. The exit code is 1 if any value differs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from key_map import KEY_MAP, KeyMap

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]

ORIGIN = "f3c8993"

SUMMARY_TOLERANCE = 1e-6
"""Largest difference of two statistics of a summary: they now come from sums by test unit in double precision, and losses of text
were means over windows in single precision."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record both trees, compare them and print what differs.

    Args:
        arguments: The arguments. None takes those of the process.

    Returns:
        The exit code: 0 if all values are equal, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description="Compare the present tree with a commit, bit for bit.")
    parser.add_argument("--commit", default=ORIGIN, help="a commit with the names of f3c8993")
    parser.add_argument("--only", default="", help="a regular expression: the cases to compare")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "routelab-golden")
    parser.add_argument("--keep", type=Path, help="write the recording of the present tree to this file")
    options = parser.parse_args(arguments)
    old = recording_of(options.commit, options.only, options.cache)
    with tempfile.TemporaryDirectory() as folder:
        out = options.keep or Path(folder) / "present.json"
        run_recorder(out, ROOT, options.only)
        new = json.loads(out.read_text())
    lines, compared = differences(KEY_MAP.translate_recording(old), new, KEY_MAP)
    for line in lines:
        print(line)
    print(
        f"{len(old['cases'])} cases, {compared} values compared with {options.commit}, {len(lines)} differ "
        f"({old['cpu_seconds']:.0f} and {new['cpu_seconds']:.0f} CPU seconds)"
    )
    return 1 if lines else 0


def recording_of(commit: str, only: str, cache: Path) -> dict[str, Any]:
    """Return the recording of a commit, from the cache if it is there.

    Args:
        commit: A commit with the names of f3c8993.
        only: A regular expression for the cases.
        cache: The folder of recordings.

    Returns:
        The parsed JSON of `record.py`.
    """
    commit = _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    packages = _output(sys.executable, "-m", "pip", "freeze", "--exclude-editable")
    sources = b"".join((FOLDER / name).read_bytes() for name in ("record.py", "golden_cases.py"))
    digest = hashlib.sha256(sources + packages + sys.version.encode() + only.encode()).hexdigest()[:16]
    path = cache / f"{commit[:12]}-{digest}.json"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
                archive.extractall(folder, filter="data")
            written = Path(folder) / "recording.json"
            run_recorder(written, Path(folder), only, "--original")
            # The move is atomic only within one file system.
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(written.read_bytes())
            partial.replace(path)
    recording: dict[str, Any] = json.loads(path.read_text())
    return recording


def run_recorder(out: Path, root: Path, only: str = "", *options: str) -> None:
    """Run `record.py` on the tree below a folder, in a process of its own.

    Args:
        out: The file to write.
        root: The folder of the tree.
        only: A regular expression for the cases.
        options: More options of `record.py`.

    Raises:
        subprocess.CalledProcessError: The recorder failed.
    """
    # PYTHONPATH comes before site-packages, where an editable install of another tree may lie.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(FOLDER / "record.py"), str(out.resolve()), "--root", str(root), "--only", only, *options]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], key_map: KeyMap) -> tuple[list[str], int]:
    """Compare two recordings: results of runs to the bit, statistics of summaries within `SUMMARY_TOLERANCE`.

    Args:
        old: The translated recording of the commit.
        new: The recording of the present tree.
        key_map: The map, for the keys that the commit may lack.

    Returns:
        A line for every value that differs, and the number of values that were compared.
    """
    lines: list[str] = []
    compared = 0
    for case in sorted(old["cases"].keys() | new["cases"].keys()):
        sections, others = old["cases"].get(case, {}), new["cases"].get(case, {})
        for kind in sorted(sections.keys() | others.keys()):
            before, after = sections.get(kind, {}), others.get(kind, {})
            names = key_map.kinds()[kind.partition(":")[0]]
            for key in sorted(before.keys() | after.keys()):
                where = f"case {case!r}, {kind} {key!r}"
                if key not in before:
                    if not names.is_added(key):
                        lines.append(f"{where}: the commit lacks it, the present tree has {after[key]!r}")
                    continue
                compared += 1
                if key not in after:
                    lines.append(f"{where}: the commit has {before[key]!r}, the present tree lacks it")
                elif not _is_same(before[key], after[key], exact=kind != "summary"):
                    lines.append(f"{where}: the commit has {before[key]!r}, the present tree has {after[key]!r}")
    return lines, compared


def _is_same(before: Any, after: Any, exact: bool) -> bool:
    """Return True if two values are equal: to the bit, or within `SUMMARY_TOLERANCE` if they are floats and not `exact`."""
    # The text of a float tells -0.0 from 0.0 and finds nan equal to nan.
    if repr(before) == repr(after):
        return True
    floats = isinstance(before, float) and isinstance(after, float)
    return not exact and floats and math.isclose(before, after, rel_tol=SUMMARY_TOLERANCE, abs_tol=SUMMARY_TOLERANCE)


def _git(*words: str) -> bytes:
    return _output("git", *words)


def _output(*words: str) -> bytes:
    return subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(main())
