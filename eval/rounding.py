"""Decimal rounding as published tables have it: half up, on exact fractions.

Python's `round` and `format` round the binary value next to a decimal number, and halves to even: `f"{0.2465:.3f}"` may
be either neighbour. What comes in here is therefore exact, such as `Fraction(right, asked)`.
"""

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

Exact = Fraction | Decimal | int


def half_up(value: Exact, digits: int) -> Decimal:
    """Return the value with that many decimals, halves away from zero.

    Args:
        value: an exact number; a float is refused, as it is not the number that it was written as.
        digits: decimals to keep, 0 or more.

    Raises:
        TypeError: the value is a float.
    """
    if isinstance(value, float):
        raise TypeError(f"half_up needs an exact number; found the float {value!r}.")
    exact = Fraction(value)
    whole = (abs(exact) * 10**digits * 2 + 1) // 2
    return Decimal(int(whole) if exact >= 0 else -int(whole)).scaleb(-digits)


def exact_mean(values: Iterable[Exact]) -> Fraction:
    """Return the plain mean, exactly; at least one value is needed."""
    exact = [Fraction(value) for value in values]
    return sum(exact, Fraction()) / len(exact)
