"""Numbers as text: the formats of the terminal, of reports and figures, and of generated documents.

A function here is pure and returns one text. Where two functions format the same quantity, their docstrings say which output
uses which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Interval = Mapping[str, Any]
"""A mean with its bounds: `mean`, `low` and `high`, as in `summary.json`; a bound may be None, NaN or infinite."""

NO_VALUE = "\u2013"
"""Text of a report, a figure or an analysis where there is no value; the terminal's tables have "-" or "n/a"."""

_DECIMAL_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY_PREFIXES = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))


def finite(value: object) -> float | None:
    """Return a finite number as a float, anything else as None."""
    if value is None or isinstance(value, str):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def are_finite(*values: float | None) -> bool:
    """Return whether all values are finite numbers.

    Args:
        *values: Numbers; None is not finite.
    """
    return all(value is not None and math.isfinite(value) for value in values)


def is_bounded(interval: Interval | None) -> bool:
    """Return whether an interval has a finite mean and finite bounds."""
    return are_finite(*((interval or {}).get(key) for key in ("mean", "low", "high")))


def format_number(value: object, digits: int = 3) -> str:
    """Return a number in few characters, `1.2e9` rather than `1.2e+09`, for reports, figures and analyses.

    Args:
        value: Number; None and what is not finite become `NO_VALUE`.
        digits: Significant digits.
    """
    number = finite(value)
    if number is None:
        return NO_VALUE
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        text = f"{number:.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def format_count(value: float | None) -> str:
    """Return a count in three digits and a letter, `1.5G`, for the terminal and generated documents; `n/a` for None."""
    return "n/a" if value is None else _format_prefixed(value, _DECIMAL_PREFIXES)


def format_binary_count(value: float) -> str:
    """Return a count in three digits and a power of 1024, `1.5Gi`: bytes in the table of `routelab count`."""
    return _format_prefixed(value, _BINARY_PREFIXES)


def _format_prefixed(value: float, prefixes: tuple[tuple[float, str], ...]) -> str:
    for unit, letter in prefixes:
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"


def format_bytes(count: float) -> str:
    """Return bytes with a decimal unit, `1.5 MB`, for the analysis of serving."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{format_number(count / size)} {unit}"
    return f"{format_number(count)} B"


def format_with_ratio(value: object, ratio: object) -> str:
    """Return a size and its ratio to the reference's, `1.2e6 (0.98×)`, for the report.

    Args:
        value: Size.
        ratio: Size over the reference's; None leaves it out.
    """
    return format_number(value) if ratio is None else f"{format_number(value)} ({format_number(ratio)}\u00d7)"


def format_count_with_ratio(value: float | None, ratio: float | None) -> str:
    """Return a count and its ratio to the reference's, `1.2M 0.98x`, for the terminal.

    Args:
        value: Count.
        ratio: Count over the reference's; None leaves it out.
    """
    return format_count(value) if ratio is None else f"{format_count(value)} {ratio:.2f}x"


def format_optional(value: float | None, form: str, unit: float = 1.0) -> str:
    """Return a number in a format of its own, `-` for None, for the terminal.

    Args:
        value: Number.
        form: Format specification, such as ".3f".
        unit: Number that `value` is divided by.
    """
    return "-" if value is None else format(value / unit, form)


def format_setting(value: object, digits: int = 4) -> str:
    """Return the value of a setting: a float in a few significant digits, anything else as it is.

    Args:
        value: Value of a configuration's key.
        digits: Significant digits: 4 on the terminal and in documents, 3 in names of MLflow runs.
    """
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def format_level(level: float) -> str:
    """Return a level of significance without its leading zero, `.05`."""
    return f"{level:g}".lstrip("0")


def format_percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal, `12.5%`, for analyses; `NO_VALUE` for NaN."""
    return NO_VALUE if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def format_short_percent(fraction: object) -> str:
    """Return a fraction in percent in three significant digits, `1.25%`, for the report; `NO_VALUE` if it is not finite."""
    number = finite(fraction)
    return NO_VALUE if number is None else f"{format_number(100 * number)}%"


def format_change(difference: Interval | None, missing: str = "") -> str:
    """Return a difference of log losses as a change in percent with its bounds, `+1.2% [+0.8, +1.6]`, for reports and documents.

    Args:
        difference: Difference of log losses; bounds that are not finite are left out.
        missing: Text where there is no difference.
    """
    mean, low, high = (finite((difference or {}).get(key)) for key in ("mean", "low", "high"))
    mean, low, high = (None if log is None else to_percent(log) for log in (mean, low, high))
    if mean is None:
        return missing
    if low is None or high is None:
        return f"{mean:+.1f}%"
    decimals = change_decimals(low, high)
    return f"{mean:+.{decimals}f}% [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def change_decimals(low: float, high: float) -> int:
    """Return the decimals of a change in percent: one, or as many as show half of its interval's width in one digit, at most 6.

    Args:
        low: Lower bound in percent.
        high: Upper bound in percent.
    """
    half = (high - low) / 2
    # A width of rounding errors deserves no digits.
    if not math.isfinite(half) or half < 1e-9:
        return 1
    return min(6, max(1, -math.floor(math.log10(half))))


def format_change_in_table(difference: Interval | None) -> str:
    """Return a difference of log losses as a change in percent, for the terminal's table, `-` for None.

    Unlike `format_change` it prints infinite bounds, which sequential intervals of few seeds have: `[-100.0, +inf]`.
    """
    if difference is None:
        return "-"
    low, mean, high = (to_percent(difference[key]) for key in ("low", "mean", "high"))
    decimals = change_decimals(low, high)
    return f"{mean:+.{decimals}f}% [{low:+.{decimals}f}, {high:+.{decimals}f}]" if math.isfinite(low) else f"{mean:+.1f}%"


def format_exact_change(log: object) -> str | None:
    """Return a difference of logs as a change in percent with two decimals, `+1.25%`, for the CSV of series; None if it is not finite."""
    value = finite(log)
    return None if value is None else f"{math.expm1(value):+.2%}"


def format_change_size(log: float) -> str:
    """Return the size of a difference of logs, or of its standard error, in percent in two digits, `4.1%`.

    Args:
        log: Difference of logs, at least 0.
    """
    percent = 100 * math.expm1(min(log, 10.0))
    return "more than 1000%" if percent > 1000 else f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def pluralise(noun: str) -> str:
    """Return the plural of the name of a test unit, `documents` or `licence families`.

    Args:
        noun: The name in the singular.
    """
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def join_names(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, `a, b and c`.

    Args:
        names: Names, at least one.
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_units(number: int, unit: str) -> str:
    """Return a number of test units with their name, `360 examples`.

    Args:
        number: Number of test units.
        unit: Name of the test unit in the singular.
    """
    return f"{number:,} {unit if number == 1 else pluralise(unit)}"


def to_percent(log: float) -> float:
    """Return a difference of logs as a change in percent; infinity if the change is too large for a float, NaN for NaN.

    Args:
        log: Difference of logs.
    """
    return math.inf if log >= 700 else 100 * math.expm1(log)


def format_half_width(interval: Interval | None) -> str:
    """Return a mean and half the width of its interval, `0.1234 ±0.0012`, for the terminal and documents; `-` for None."""
    if interval is None:
        return "-"
    half = interval["high"] - interval["mean"]
    return f"{interval['mean']:.4f}" + (f" ±{half:.4f}" if math.isfinite(half) else "")


def format_interval(interval: Interval | None, write: Callable[[float], str] = format_number) -> str:
    """Return a mean, or a median, and its bounds, `1.5 [1.2, 1.8]`, for analyses.

    Args:
        interval: Mean and bounds; bounds that are not finite are left out. None becomes `NO_VALUE`.
        write: Format of one number.
    """
    if interval is None:
        return NO_VALUE
    mean = write(interval["mean"])
    return f"{mean} [{write(interval['low'])}, {write(interval['high'])}]" if is_bounded(interval) else mean


def format_interval_parts(interval: Interval | None, signed: bool = False) -> dict[str, str]:
    """Return a mean and its bounds as two texts, for the cells of the report.

    All three numbers have as many decimals as the width of the interval deserves, from 2 to 8.

    Args:
        interval: Mean and bounds; bounds that are not finite are left out.
        signed: Whether positive numbers get a plus sign.

    Returns:
        Texts under "mean" and "bounds".
    """
    mean, low, high = (finite((interval or {}).get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return {"mean": NO_VALUE, "bounds": ""}
    width = abs(mean) / 100 if low is None or high is None or high <= low else high - low
    decimals = min(8, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 4
    sign = "+" if signed else ""
    bounds = "" if low is None or high is None else f"[{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"
    return {"mean": f"{mean:{sign}.{decimals}f}", "bounds": bounds}
