"""The sequential rule: against the Bayes factor it comes from, and its error rate under repeated looks, simulated."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from routelab.comparison.statistics.power import seeds_needed
from routelab.comparison.statistics.sequential import anytime_interval, e_value, look, seeds_to_settle
from routelab.core.intervals import mean_interval


def test_e_value_by_hand() -> None:
    # 1, 2, 3: mean 2, deviation 1, t^2 = 12, nu = 2; 1 + 3g = 4: 4^-0.5 * (7 / 2.5)^1.5
    assert e_value([1.0, 2.0, 3.0]) == pytest.approx(0.5 * 2.8**1.5)
    assert e_value([1.0, 2.0, 3.0], theta=2.0) == pytest.approx(0.5)
    assert e_value([0.3]) == 1.0
    assert e_value([0.0, 0.0]) == 1.0
    assert e_value([1.0, 1.0]) == math.inf
    assert math.isnan(e_value([1.0, math.nan]))


@pytest.mark.parametrize("g", [0.3, 1.0])
def test_e_value_is_the_ratio_of_noncentral_to_central_t(g: float) -> None:
    d = [0.4, -0.1, 0.7, 0.2, 0.5]
    t = float(stats.ttest_1samp(d, 0.0).statistic)

    def under(delta: float) -> float:
        return float(stats.nct.pdf(t, 4, delta * math.sqrt(5)) * stats.norm.pdf(delta, scale=math.sqrt(g)))

    marginal, _ = integrate.quad(under, -8, 8)
    assert e_value(d, prior_variance=g) == pytest.approx(marginal / stats.t.pdf(t, 4), rel=1e-6)


def test_interval_holds_the_values_that_are_not_rejected() -> None:
    d = [0.4, -0.1, 0.7, 0.2, 0.5, 0.3]
    found = anytime_interval(d, 0.05)
    assert e_value(d, found.low) == pytest.approx(20, rel=1e-9)
    assert e_value(d, found.high) == pytest.approx(20, rel=1e-9)
    fixed = mean_interval(d)
    assert found.low < fixed.low < fixed.high < found.high, "looking again has its price"


def test_interval_at_its_edges() -> None:
    assert anytime_interval([0.5]).high == math.inf
    # With two differences the ratio can reach 3 at most: 3^-0.5 * 3 = 1.7 is below 1 / 0.05.
    assert anytime_interval([0.5, 0.50001]).low == -math.inf
    assert math.isnan(anytime_interval([]).mean)
    assert math.isnan(anytime_interval([1.0, math.inf]).low)
    with pytest.raises(ValueError, match="alpha"):
        anytime_interval([1.0], alpha=5)


def wrong_ever(rng: np.random.Generator, alpha: float, draw) -> tuple[float, float]:
    """Share of 2000 sequences of 40 seeds in which a look after every seed from the third on excludes the true mean 0 at
    least once: by the anytime interval, and by the ordinary t-interval."""
    trials, longest = 2000, 40
    anytime = np.zeros(trials, bool)
    ordinary = np.zeros(trials, bool)
    for i in range(trials):
        d = draw(rng, longest)
        n = np.arange(1, longest + 1)
        mean = d.cumsum() / n
        deviation = np.sqrt(np.maximum((d**2).cumsum() - n * mean**2, 1e-300)[2:] / (n[2:] - 1))
        t = np.abs(mean[2:]) / deviation * np.sqrt(n[2:])
        ordinary[i] = (t > stats.t.ppf(1 - alpha / 2, n[2:] - 1)).any()
        anytime[i] = any(e_value(d[:k]) >= 1 / alpha for k in n[2:][t > 2.0])
    return float(anytime.mean()), float(ordinary.mean())


def test_error_rate_holds_under_repeated_looks() -> None:
    """38 looks: the ordinary interval is wrong in about a third of all sequences, the anytime one in fewer than 5%."""
    anytime, ordinary = wrong_ever(np.random.default_rng(0), 0.05, lambda rng, n: rng.normal(0, 0.3, n))
    assert anytime <= 0.05
    assert ordinary > 0.2


def test_error_rate_of_several_arms_together() -> None:
    """Five arms without any difference, looked at after each of 30 seeds: in how many experiments is any called different?"""
    rng = np.random.default_rng(1)
    wrong, trials = 0, 300
    for _ in range(trials):
        d = {f"arm{i}": rng.normal(0, 0.1, 30) for i in range(5)}
        wrong += any(
            each.state in ("better", "worse")
            for n in range(3, 31, 3)
            for each in look({arm: values[:n] for arm, values in d.items()}, margin=1e-9).values()
        )
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_real_differences_are_settled() -> None:
    """Effects of one and of two deviations: seeds needed by the median sequence, and the wrong sign never."""
    rng = np.random.default_rng(2)
    for effect, most in ((1.0, 22), (2.0, 10)):
        needed = []
        for _ in range(60):
            d = rng.normal(-effect, 1.0, 60)
            states = [look({"arm": d[:n]}, margin=1e-9)["arm"].state for n in range(2, 61)]
            assert "worse" not in states
            needed.append(states.index("better") + 2)
        assert np.median(needed) <= most


def test_look() -> None:
    rng = np.random.default_rng(3)
    found = look(
        {
            "better": rng.normal(-1, 0.1, 12),
            "worse": rng.normal(1, 0.1, 12),
            "same": rng.normal(0, 0.005, 12),
            "open": [0.1, -1.0],
        },
        margin=0.05,
    )
    assert {name: each.state for name, each in found.items()} == {
        "better": "better",
        "worse": "worse",
        "same": "equivalent",
        "open": "open",
    }
    assert found["open"].level == 0.05 / 4
    with pytest.raises(ValueError, match="margin"):
        look({}, margin=0)


def test_seeds_to_settle_are_those_of_the_wider_interval() -> None:
    """Simulated: with as many seeds as it says, one look finds the difference 8 times in 10; the t-test's number is too small."""
    rng = np.random.default_rng(4)
    d = rng.normal(0, 1, 6)
    d = (d - d.mean()) / d.std(ddof=1) + 0.8
    n = seeds_to_settle(d.tolist(), 0.05)
    assert n is not None
    assert n > 1.5 * seeds_needed(d.tolist())

    def found(seeds: int) -> float:
        return float(np.mean([anytime_interval(rng.normal(0.8, 1, seeds)).low > 0 for _ in range(1000)]))

    assert found(n) == pytest.approx(0.8, abs=0.04)
    assert found(seeds_needed(d.tolist())) < 0.5
