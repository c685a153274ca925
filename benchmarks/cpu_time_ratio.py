"""Ratio of the CPU time of a benchmark in this checkout to its CPU time at an earlier commit, from alternating pairs.

    python benchmarks/cpu_time_ratio.py [--commit f3c8993] [--pairs 20] loop layer share

Each pair runs the benchmark once in each checkout, in alternating order, and takes the ratio of the CPU seconds (user and
system, including child processes). Other processes on the machine disturb CPU time less than wall time. The script prints the
geometric mean of the ratios and its 95% t-interval.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
MAX_PAIRS = 60
COMMANDS = {
    "loop": ["benchmarks/loop.py", "--rounds", "1", "--arms", "switch"],
    "layer": ["benchmarks/layer.py", "--rounds", "3", "--experts", "8", "--threads", "1", "--tables", "choice"],
    "share": ["-m", "benchmarks.sweeps", "share"],
}
"""Command-line arguments of the Python interpreter for each benchmark."""


def cpu_seconds(arguments: list[str], checkout: Path) -> float:
    """Run Python in a checkout; return the CPU seconds of the process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio_interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios and its 95% t-interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = sum(logs) / len(logs)
    low, high = stats.t.interval(0.95, len(logs) - 1, mean, stats.sem(logs))
    return math.exp(mean), math.exp(low), math.exp(high)


def main() -> None:
    """Print one line for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(COMMANDS))
    parser.add_argument("--commit", default="f3c8993")
    parser.add_argument("--pairs", type=int, default=20, choices=range(3, MAX_PAIRS + 1), metavar=f"3..{MAX_PAIRS}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", options.commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        checkouts = {"present": ROOT, "earlier": Path(folder)}
        for name in options.names:
            for checkout in checkouts.values():
                cpu_seconds(COMMANDS[name], checkout)  # Compiles modules and fills the file cache.
            ratios = []
            for pair in range(options.pairs):
                order = list(checkouts) if pair % 2 else list(checkouts)[::-1]
                seconds = {side: cpu_seconds(COMMANDS[name], checkouts[side]) for side in order}
                ratios.append(seconds["present"] / seconds["earlier"])
            mean, low, high = ratio_interval(ratios)
            print(
                f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}] of the CPU time at {options.commit}, {len(ratios)} pairs",
                flush=True,
            )


if __name__ == "__main__":
    main()
