"""Every format by hand-computed values."""

import math
from functools import partial

import pytest

from routelab.core.number_format import (
    NO_VALUE,
    finite,
    format_binary_count,
    format_bytes,
    format_change,
    format_change_in_table,
    format_change_size,
    format_count,
    format_count_with_ratio,
    format_exact_change,
    format_half_width,
    format_interval,
    format_interval_parts,
    format_level,
    format_number,
    format_optional,
    format_percent,
    format_setting,
    format_short_percent,
    format_with_ratio,
    is_bounded,
    to_percent,
)

NAN, INF = math.nan, math.inf


def interval(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


HALF = interval(math.log(1.5), math.log(1.25), math.log(2.0))
"""Differences of log losses that are changes of +50%, +25% and +100%."""
OPEN = interval(math.log(1.5), -INF, INF)
"""A sequential interval of few seeds."""


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format_number, 0, "0"),
        (format_number, 0.001, "0.001"),
        (format_number, 99999, "99999"),
        (format_number, 100000, "1e5"),
        (format_number, -12.345, "-12.3"),
        (format_number, 1234.5, "1234"),
        (format_number, 1.234e9, "1.23e9"),
        (format_number, 0.00012, "1.2e-4"),
        (format_number, INF, NO_VALUE),
        (format_number, "text", NO_VALUE),
        (partial(format_number, digits=5), 1.23456, "1.2346"),
        (format_count, None, "n/a"),
        (format_count, 0, "0"),
        (format_count, 999, "999"),
        (format_count, 1000, "1k"),
        (format_count, 131392, "131k"),
        (format_count, 1.5e9, "1.5G"),
        (format_count, 46_702_792_704, "46.7G"),
        (format_count, 2.5e15, "2.5e+03T"),
        (format_binary_count, 1023, "1023"),
        (format_binary_count, 1024, "1Ki"),
        (format_binary_count, 3 * 2**29, "1.5Gi"),
        (format_binary_count, 2**41, "2Ti"),
        (format_bytes, 999, "999 B"),
        (format_bytes, 1500, "1.5 kB"),
        (format_bytes, -2e6, "-2 MB"),
        (format_bytes, 1.23456e9, "1.23 GB"),
        (format_level, 0.05, ".05"),
        (format_level, 0.1, ".1"),
        (format_setting, 0.00012345, "0.0001234"),
        (format_setting, 8, "8"),
        (format_setting, True, "True"),
        (format_setting, None, "None"),
        (partial(format_setting, digits=3), 1.25678, "1.26"),
        (format_percent, 0.125, "12.5%"),
        (format_percent, NAN, NO_VALUE),
        (format_short_percent, 0.0125, "1.25%"),
        (format_short_percent, None, NO_VALUE),
        (format_exact_change, math.log(1.5), "+50.00%"),
        (format_exact_change, NAN, None),
        (format_change_size, math.log(1.015), "1.5%"),
        (format_change_size, math.log(1.25), "25%"),
        (format_change_size, 700.0, "more than 1000%"),
    ],
)
def test_one_number(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (True, 1.0), ("1", None), (None, None), (NAN, None), (INF, None), ([], None), (10**400, None)],
)
def test_finite(value, number):
    assert finite(value) == number


def test_sizes_with_ratios():
    assert format_with_ratio(1_200_000, 0.98) == "1.2e6 (0.98\u00d7)"
    assert format_with_ratio(1_200_000, None) == "1.2e6"
    assert format_count_with_ratio(1_200_000, 0.98) == "1.2M 0.98x"
    assert format_count_with_ratio(None, None) == "n/a"


def test_optional_numbers():
    assert format_optional(2.5e9, ".1f", 1e9) == "2.5"
    assert format_optional(0.125, ".1%") == "12.5%"
    assert format_optional(None, ".1f") == "-"


def test_changes():
    assert format_change(HALF) == "+50.0% [+25.0, +100.0]"
    assert format_change(OPEN) == "+50.0%"
    assert format_change(None) == ""
    assert format_change(interval(NAN, NAN, NAN), "none") == "none"


def test_changes_in_the_terminal_s_table():
    assert format_change_in_table(HALF) == "+50.0% [+25.0, +100.0]"
    assert format_change_in_table(interval(math.log(1.5), NAN, NAN)) == "+50.0%"
    assert format_change_in_table(OPEN) == "+50.0% [-100.0, +inf]"
    assert format_change_in_table(None) == "-"


def test_half_widths():
    assert format_half_width(interval(1.5, 1.25, 1.75)) == "1.5000 ±0.2500"
    assert format_half_width(interval(1.5, NAN, NAN)) == "1.5000"
    assert format_half_width(None) == "-"


def test_intervals():
    assert format_interval(interval(1.5, 1.25, 1.75)) == "1.5 [1.25, 1.75]"
    assert format_interval(interval(0.5, 0.25, 0.75), format_percent) == "50.0% [25.0%, 75.0%]"
    assert format_interval(interval(1.5, NAN, NAN)) == "1.5"
    assert format_interval(None) == NO_VALUE


def test_interval_parts_have_the_decimals_that_the_width_deserves():
    assert format_interval_parts(interval(0.5, 0.5 - 2**-9, 0.5 + 2**-9)) == {"mean": "0.5000", "bounds": "[0.4980, 0.5020]"}
    assert format_interval_parts(interval(20.0, 10.0, 30.0), signed=True) == {"mean": "+20.00", "bounds": "[+10.00, +30.00]"}
    assert format_interval_parts(interval(0.5, None, None)) == {"mean": "0.5000", "bounds": ""}
    assert format_interval_parts(None) == {"mean": NO_VALUE, "bounds": ""}


def test_bounded_intervals():
    assert is_bounded(interval(1.0, 0.5, 1.5))
    assert not is_bounded(interval(1.0, NAN, 1.5))
    assert not is_bounded(interval(1.0, None, 1.5))
    assert not is_bounded(None)


def test_a_difference_that_is_not_a_number_is_no_infinite_change():
    assert math.isnan(to_percent(math.nan))
    assert to_percent(math.inf) == to_percent(700.0) == math.inf
    assert to_percent(-math.inf) == -100.0
