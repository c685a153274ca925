"""Compare outlier statistics and tests that adjust for skewness, for a comparison whose reference is steady.

    python docs/statistics/laws_alternatives.py [--draws N] [--output docs/statistics/laws_alternatives.csv]

The script writes the CSV file and prints it as Markdown. It shows why `routelab.comparison.statistics.outlying_seeds` takes Grubbs'
statistic and why the test of differences stays Student's t.

The rules, each at level .05 for 1 arm and .05 / 8 for 8 arms:
    t: the paired t-test.
    Johnson, Hall: the statistics of Johnson (1978) and Hall (1992), which adjust t for the sample's skewness, against quantiles of t.
    t and Hall: both reject (the larger of the two p-values counts).
    ... / Grubbs, ... / MAD: no verdict if the statistic of outlying seeds, max |d - mean| / sd or max |d - median| / MAD, exceeds the
        threshold that 5% of normal samples exceed (MAD: simulated).
    best for exponential: the smallest error on the exponential among all tests that depend neither on scale nor on sign, keep the level
        under the normal law and have at least 80% of the power of t at 1 and 2 sd (Neyman and Pearson; n = 5 only). Up to the
        simulation error and the grid of multipliers, no test of five differences that holds these conditions has a smaller error.

Columns normal to bad seeds: fraction of comparisons in which some arm is called better or worse, without any difference. power_1sd,
power_2sd: power of one arm under the normal law over that of t at the same level.

Axes: R draws, N seeds, S nodes of an integral over the scale.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from laws import LAWS
from numpy.typing import NDArray
from scipy import stats
from simulation_files import markdown_table, write_rows

from routelab.comparison.statistics.outlying_seeds import outlying_threshold

Array = NDArray[Any]


OUTPUT = Path(__file__).with_name("laws_alternatives.csv")
SEEDS = (3, 5, 6, 8, 10, 20)
LEVEL, OUTLYING_RATE, MIN_POWER = 0.05, 0.05, 0.8


def compute_statistics(d_RN: Array) -> dict[str, Array]:
    """Return t, its two adjustments for skewness and the two statistics of outlying seeds, each (R,)."""
    n = d_RN.shape[-1]
    mean, deviation = d_RN.mean(-1), d_RN.std(-1, ddof=1)
    centred = d_RN - mean[:, None]
    third, ratio = (centred**3).mean(-1), mean / deviation
    skewness = third / d_RN.var(-1) ** 1.5
    # Johnson takes the unbiased third moment over the deviation's cube, Hall the biased skewness.
    unbiased = third * n**2 / ((n - 1) * (n - 2)) / deviation**3
    distances = np.abs(d_RN - np.median(d_RN, -1)[:, None])
    hall = ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27 + skewness / (6 * n)
    return {
        "t": math.sqrt(n) * ratio,
        "Johnson": math.sqrt(n) * (ratio + unbiased / (6 * n) + unbiased * ratio**2 / 3),
        "Hall": math.sqrt(n) * hall,
        "Grubbs": np.abs(centred).max(-1) / deviation,
        "MAD": distances.max(-1) / np.median(distances, -1),
    }


def apply_rules(statistics: dict[str, Array], n: int, level: float, mad_threshold: float) -> dict[str, Array]:
    """Return by rule which samples give a verdict (R,)."""
    critical = stats.t.ppf(1 - level / 2, n - 1)
    t, johnson, hall = (np.abs(statistics[name]) > critical for name in ("t", "Johnson", "Hall"))
    grubbs, mad = statistics["Grubbs"] > outlying_threshold(n, OUTLYING_RATE), statistics["MAD"] > mad_threshold
    return {
        "t": t,
        "t / Grubbs": t & ~grubbs,
        "t / MAD": t & ~mad,
        "Johnson": johnson,
        "Hall": hall,
        "t and Hall": t & hall,
        "t and Hall / Grubbs": t & hall & ~grubbs,
    }


def compare_rules(draws: int, n: int) -> list[dict[str, Any]]:
    """Return the rows of `n` seeds."""
    rng = np.random.default_rng(n)
    samples = {law: draw(rng, (draws, n)) for law, draw in LAWS.items()}
    statistics = {law: compute_statistics(values) for law, values in samples.items()}
    effects = {effect: compute_statistics(samples["normal"] + effect) for effect in (1, 2)}
    mad_threshold = float(np.quantile(statistics["normal"]["MAD"], 1 - OUTLYING_RATE))
    rows = []
    for arms in (1, 8):
        judged = {law: apply_rules(values, n, LEVEL / arms, mad_threshold) for law, values in statistics.items()}
        powers = {effect: apply_rules(values, n, LEVEL / arms, mad_threshold) for effect, values in effects.items()}
        for rule in judged["normal"]:
            # With a steady reference the arms are independent.
            errors = {law: 1 - (1 - float(judged[law][rule].mean())) ** arms for law in LAWS}
            ratios = {f"power_{effect}sd": float(powers[effect][rule].mean() / powers[effect]["t"].mean()) for effect in powers}
            rows.append({"n": n, "arms": arms, "rule": rule, **errors, **ratios})
    return rows


def _normal_density(x_RN: Array, effect: float, scales_S: Array) -> Array:
    """Return the density (R,) of samples up to scale and sign, normal with mean `effect` and deviation 1; |x| = 1 for every sample."""
    n = x_RN.shape[-1]
    exponent = -0.5 * scales_S**2 - 0.5 * n * effect**2
    cross = effect * np.multiply.outer(x_RN.sum(-1), scales_S)
    return (scales_S ** (n - 1) * (np.exp(exponent + cross) + np.exp(exponent - cross))).sum(-1) * (scales_S[1] - scales_S[0])


def _exponential_density(x_RN: Array, nodes: int = 100) -> Array:
    """Return the density (R,) of samples up to scale and sign, exponential with mean 0 and deviation 1, up to normal constants."""
    n = x_RN.shape[-1]
    total = np.zeros(len(x_RN))
    for signed in (x_RN, -x_RN):
        largest = np.minimum(1 / np.maximum(-signed.min(-1), 1e-12), 60.0)
        scales = np.multiply.outer(largest, (np.arange(nodes) + 0.5) / nodes)
        total += (scales ** (n - 1) * np.exp(-n - scales * signed.sum(-1)[:, None])).mean(-1) * largest
    return total * (2 * math.pi) ** (n / 2)


def find_best_test(draws: int, n: int, arms: int) -> dict[str, Any]:
    """Return the row of the test with the smallest error on the exponential, by a grid over the Lagrange multipliers."""
    rng = np.random.default_rng(100 + n)
    level = LEVEL / arms
    samples = {law: draw(rng, (draws, n)) for law, draw in LAWS.items()}
    samples |= {f"power_{effect}sd": samples["normal"] + effect for effect in (1, 2)}
    critical = stats.t.ppf(1 - level / 2, n - 1)
    targets = {name: float((np.abs(compute_statistics(samples[name])["t"]) > critical).mean()) for name in samples}
    scales = np.linspace(0.02, 16.0, 160)
    densities = {}
    for name, values in samples.items():
        x = values / np.sqrt((values**2).sum(-1, keepdims=True))
        densities[name] = [*(_normal_density(x, effect, scales) for effect in (0.0, 1.0, 2.0)), _exponential_density(x)]
    best: dict[str, float] = {}
    for weight in np.linspace(0.0, 1.0, 21):
        for multiplier in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4):
            ratios = {
                name: ((1 - weight) * one + weight * two) / (multiplier * null + exponential + 1e-300)
                for name, (null, one, two, exponential) in densities.items()
            }
            powers = ("power_1sd", "power_2sd")
            cut = min(float(np.quantile(ratios[name], 1 - MIN_POWER * targets[name])) for name in powers)
            rates = {name: float((values >= cut).mean()) for name, values in ratios.items()}
            allowed = level + 2 * math.sqrt(level * (1 - level) / draws)
            if rates["normal"] <= allowed and rates["exponential"] < best.get("exponential", 1.0):
                best = rates
    errors = {law: 1 - (1 - best[law]) ** arms for law in LAWS}
    ratios_of_power = {name: best[name] / targets[name] for name in ("power_1sd", "power_2sd")}
    return {"n": n, "arms": arms, "rule": "best for exponential", **errors, **ratios_of_power}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the rules, write the table and print it."""
    parser = argparse.ArgumentParser(description="Compare outlier statistics and tests that adjust for skewness.")
    parser.add_argument("--draws", type=int, default=100_000, help="samples for each n and law")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    rows = [row for n in SEEDS for row in compare_rules(options.draws, n)]
    rows += [find_best_test(options.draws // 2, 5, arms) for arms in (1, 8)]
    write_rows(rows, options.output, {})
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    print("\n".join(markdown_table(list(rows[0]), cells)))


if __name__ == "__main__":
    main()
