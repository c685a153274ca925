"""The sequential rule: against the Bayes factor it comes from, and its error rate under repeated looks, simulated."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.power import seeds_needed
from routelab.comparison.statistics.sequential import analyse_interim, anytime_interval, e_value, seeds_to_settle
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


def over_seeds(values) -> dict[str, Contrast]:
    """Return contrasts without test units from differences by arm."""
    return {arm: Contrast(np.asarray(differences, float)) for arm, differences in values.items()}


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
            for each in analyse_interim(over_seeds({arm: values[:n] for arm, values in d.items()}), margin=1e-9).values()
        )
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_real_differences_are_settled() -> None:
    """Effects of one and of two deviations: seeds needed by the median sequence, and the wrong sign never."""
    rng = np.random.default_rng(2)
    for effect, most in ((1.0, 22), (2.0, 10)):
        needed = []
        for _ in range(60):
            d = rng.normal(-effect, 1.0, 60)
            states = [analyse_interim(over_seeds({"arm": d[:n]}), margin=1e-9)["arm"].state for n in range(2, 61)]
            assert "worse" not in states
            needed.append(states.index("better") + 2)
        assert np.median(needed) <= most


def test_states_of_an_interim_analysis() -> None:
    rng = np.random.default_rng(3)
    found = analyse_interim(
        over_seeds(
            {
                "better": rng.normal(-1, 0.1, 12),
                "worse": rng.normal(1, 0.1, 12),
                "same": rng.normal(0, 0.005, 12),
                "open": [0.1, -1.0],
            }
        ),
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
        analyse_interim({}, margin=0)


def test_seeds_to_settle_are_those_of_the_wider_interval() -> None:
    """Simulated: with as many seeds as it says, one look finds the difference 8 times in 10; the t-test's number is too small."""
    rng = np.random.default_rng(4)
    d = rng.normal(0, 1, 6)
    d = (d - d.mean()) / d.std(ddof=1) + 0.8
    n = seeds_to_settle(d.tolist(), 0.05)
    fewer = seeds_needed(d.tolist(), lambda n: float(stats.t.ppf(0.975, n - 1) ** 2))
    assert n is not None
    assert fewer is not None
    assert n > 1.5 * fewer

    def found(seeds: int) -> float:
        return float(np.mean([anytime_interval(rng.normal(0.8, 1, seeds)).low > 0 for _ in range(1000)]))

    assert found(n) == pytest.approx(0.8, abs=0.04)
    assert found(fewer) < 0.5


def units_and_seeds(
    rng: np.random.Generator, seeds: int, units: int, seed_sd: float, unit_sd: float, mean: float = 0.0
) -> Contrast:
    """Return a contrast with crossed random effects of seeds and units, and an error as large as the seeds' effects."""
    unit_effects = unit_sd * rng.normal(size=units) * math.sqrt(units)
    table = mean + seed_sd * rng.normal(size=(seeds, 1)) + unit_effects + seed_sd * rng.normal(size=(seeds, units))
    return Contrast(table.mean(1), table)


def test_the_interval_is_that_over_seeds_widened_by_units() -> None:
    contrast = units_and_seeds(np.random.default_rng(0), 8, 50, 0.1, 0.05)
    found = analyse_interim({"arm": contrast}, margin=0.01, alpha=0.05, first_look=5)["arm"]
    seeds = anytime_interval(contrast.values_S.tolist(), 0.025)
    errors = [contrast.table_SU[:k].mean(0).std(ddof=1) / math.sqrt(50) for k in (5, 6, 7, 8)]
    half = stats.t.ppf(1 - 0.025 / 2, 49) * max(errors)
    assert found.unit_half == pytest.approx(half)
    # Hall's bounds can only be wider than those of the t interval.
    assert found.interval.low <= seeds.low - half
    assert found.interval.high >= seeds.high + half
    alone = analyse_interim({"arm": contrast}, margin=0.01, uncertainty=["seeds"])["arm"]
    assert alone.unit_half == 0
    assert alone.interval.low > found.interval.low


@pytest.mark.parametrize("arms", [1, 4])
def test_error_rate_about_the_population_of_units(arms: int) -> None:
    """Units whose standard error is the seeds' deviation: seeds alone are wrong in a third of all sequences, both are not."""
    rng, trials = np.random.default_rng(5), 120
    wrong = {"seeds": 0, "both": 0}
    for _ in range(trials):
        contrasts = {f"arm{k}": units_and_seeds(rng, 20, 60, 1.0, 1.0) for k in range(arms)}
        for name, uncertainty in (("seeds", ["seeds"]), ("both", ["seeds", "examples"])):
            wrong[name] += any(
                result.state in ("better", "worse")
                for n in range(5, 21, 3)
                for result in analyse_interim(
                    {arm: c.with_first_seeds(n) for arm, c in contrasts.items()}, 1e-9, 0.05, uncertainty
                ).values()
            )
    assert wrong["both"] / trials <= 0.05
    assert wrong["seeds"] / trials > 0.2


@pytest.mark.parametrize(("unit_sd", "margin", "limited"), [(1.0, 0.01, True), (0.001, 0.01, False), (1.0, 50.0, False)])
def test_the_test_set_is_the_limit_only_where_seeds_cannot_decide(unit_sd: float, margin: float, limited: bool) -> None:
    """Large unit effects are the limit, small ones are not, and neither are large ones within a margin that is larger still."""
    contrast = units_and_seeds(np.random.default_rng(6), 20, 60, 0.05, unit_sd)
    found = analyse_interim({"arm": contrast}, margin)["arm"]
    assert found.limited is limited
    if limited:
        # With any number of seeds the interval over seeds would shrink to a point inside unit_half.
        assert found.state == "open"
        assert abs(found.interval.mean) < found.unit_half


def test_a_pair_that_does_not_depend_on_the_seed_is_judged_at_its_first_analysis() -> None:
    row = np.random.default_rng(7).normal(0.5, 1, 400)
    table = np.tile(row, (2, 1))
    contrast = Contrast(table.mean(1), table, depends_on_seed=False)
    found = analyse_interim({"arm": contrast}, margin=0.01)["arm"]
    expected = stats.ttest_1samp(row, 0.0).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    assert found.state == "worse"
    nothing = analyse_interim({"arm": Contrast(table.mean(1), None, depends_on_seed=False)}, margin=0.01)["arm"]
    assert nothing.interval.high == math.inf
