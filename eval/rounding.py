"""Rounding as published tables round: half up, on exact decimals."""

from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction


def half_up(value: Fraction | Decimal | int, digits: int) -> Decimal:
    """Return the value rounded to so many digits after the point, a half away from zero.

    Floats are not taken: 0.0585 as a float is a little less than that, and Python's own `round` goes half to even.

    Args:
        value: an exact number.
        digits: after the decimal point, 0 or more.
    """
    if isinstance(value, Fraction):
        # Exact: the numerator is scaled first, so that only whole numbers are divided.
        scaled = abs(value) * 10**digits
        whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
        return (Decimal(whole) if value >= 0 else -Decimal(whole)).scaleb(-digits)
    with localcontext() as context:
        context.prec = 60
        return Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
