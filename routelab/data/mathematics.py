"""Mathematics: arithmetic and algebra questions with their answers. Synthetic: written by the rules below."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

from routelab.core.seeds import key
from routelab.data.text import Document

SHEETS = 1000
SHEET = 4096
"""Bytes of a sheet, at least."""

Question = tuple[str, str]
"""What is asked, and the exact answer."""


def documents() -> list[Document]:
    """Sheets of questions of three kinds each. A sheet is drawn from its own number, and only when it is read."""
    return [Document(f"sheet-{number}", f"sheet-{number}", SHEET, _reader(number)) for number in range(SHEETS)]


def source() -> str:
    """Where the texts come from."""
    return "mathematics: generated questions (synthetic)"


def _reader(number: int) -> Callable[[], bytes]:
    return lambda: sheet(number)


def sheet(number: int) -> bytes:
    """Sheet `number`: a title that names its kinds, then a question and its answer to a line each. Its numbers have about 2
    to 4 digits: of shorter ones there are so few that sheets would share their questions (6% of those tested are trained on)."""
    drawn = random.Random(key("mathematics", number))
    kinds = drawn.sample(sorted(KINDS), 3)
    digits = drawn.randint(2, 4)
    lines = [f"Sheet: {', '.join(kinds)}"]
    length = 0
    while length < SHEET:
        asked, answer = KINDS[drawn.choice(kinds)](drawn, 10**digits)
        lines.append(f"{asked}\n{answer}")
        length += len(lines[-1]) + 1
    return ("\n".join(lines) + "\n").encode()


def _sum(drawn: random.Random, top: int) -> Question:
    numbers = [drawn.randint(-top, top) for _ in range(drawn.randint(2, 4))]
    return f"Add {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}.", str(sum(numbers))


def _difference(drawn: random.Random, top: int) -> Question:
    a, b = drawn.randint(0, 10 * top), drawn.randint(0, 10 * top)
    return f"{a} - {b} = ?", str(a - b)


def _product(drawn: random.Random, top: int) -> Question:
    a, b = drawn.randint(2, top + 10), drawn.randint(2, 99)
    return f"{a} * {b} = ?", str(a * b)


def _division(drawn: random.Random, top: int) -> Question:
    a, b = drawn.randint(10, 10 * top), drawn.randint(2, 30)
    return f"Divide {a} by {b}, with remainder.", f"{a // b} remainder {a % b}"


def _fractions(drawn: random.Random, top: int) -> Question:
    a, b = (Fraction(drawn.randint(1, top), drawn.randint(2, 12)) for _ in range(2))
    return f"{a} + {b} = ?", str(a + b)


def _divisor(drawn: random.Random, top: int) -> Question:
    common = drawn.randint(2, 30)
    a, b = common * drawn.randint(1, top), common * drawn.randint(1, top)
    return f"What is the greatest common divisor of {a} and {b}?", str(math.gcd(a, b))


def _linear(drawn: random.Random, top: int) -> Question:
    x, a, b = drawn.randint(-top, top), drawn.choice([-7, -5, -3, -2, 2, 3, 4, 6, 8, 9]), drawn.randint(-top, top)
    return f"Solve {polynomial([b, a])} = {a * x + b} for x.", f"x = {x}"


def _system(drawn: random.Random, top: int) -> Question:
    x, y, a = drawn.randint(-top, top), drawn.randint(-top, top), drawn.randint(2, 9)
    return f"Solve x + y = {x + y} and {a}*x - y = {a * x - y} for x and y.", f"x = {x}, y = {y}"


def _roots(drawn: random.Random, top: int) -> Question:
    # Roots of more than two digits are arithmetic on long numbers only.
    low, high = sorted(drawn.randint(-min(top, 99), min(top, 99)) for _ in range(2))
    return f"Factor {polynomial([low * high, -(low + high), 1])}.", f"({_factor(low)})*({_factor(high)})"


def _derivative(drawn: random.Random, top: int) -> Question:
    terms = [drawn.randint(-top, top) for _ in range(drawn.randint(2, 4))]
    return (
        f"Differentiate {polynomial(terms)} with respect to x.",
        polynomial([power * value for power, value in enumerate(terms)][1:]),
    )


def _value(drawn: random.Random, top: int) -> Question:
    terms, x = [drawn.randint(-9, 9) for _ in range(3)], drawn.randint(-min(top, 50), min(top, 50))
    return f"Let f(x) = {polynomial(terms)}. What is f({x})?", str(sum(value * x**power for power, value in enumerate(terms)))


def _sequence(drawn: random.Random, top: int) -> Question:
    start, step = drawn.randint(-top, top), drawn.choice([-12, -9, -7, -4, -3, 2, 3, 5, 6, 8, 11, 15])
    shown = ", ".join(str(start + step * place) for place in range(4))
    return f"What is the next term of {shown}?", str(start + step * 4)


KINDS: dict[str, Callable[[random.Random, int], Question]] = {
    "addition": _sum,
    "subtraction": _difference,
    "multiplication": _product,
    "division": _division,
    "fractions": _fractions,
    "common divisors": _divisor,
    "linear equations": _linear,
    "systems of equations": _system,
    "factoring": _roots,
    "derivatives": _derivative,
    "evaluation": _value,
    "sequences": _sequence,
}


def polynomial(terms: list[int]) -> str:
    """Coefficients from the constant on, as text from the highest power down: [2, 0, -1] -> "-x^2 + 2"."""
    text = ""
    for power in range(len(terms) - 1, -1, -1):
        value = terms[power]
        if not value:
            continue
        unit = {0: "", 1: "x"}.get(power, f"x^{power}")
        size = str(abs(value)) if not unit else unit if abs(value) == 1 else f"{abs(value)}*{unit}"
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        text += sign + size
    return text or "0"


def _factor(root: int) -> str:
    return polynomial([-root, 1])
