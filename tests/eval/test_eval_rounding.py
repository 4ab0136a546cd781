import random
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest

from eval.rounding import exact_mean, half_up


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (Fraction(493, 2000), 3, "0.247"),  # 0.2465: its float is below, and would be rounded down
        (Decimal("2.375"), 2, "2.38"),
        (Decimal("-2.375"), 2, "-2.38"),
        (Fraction(1, 3), 4, "0.3333"),
        (Fraction(1, 2), 0, "1"),
        (7, 3, "7.000"),
        (0, 1, "0.0"),
    ],
)
def test_halves_go_away_from_zero(value: Fraction | Decimal | int, digits: int, expected: str) -> None:
    assert str(half_up(value, digits)) == expected


def test_rounding_agrees_with_the_decimal_module_where_that_is_exact() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        value = Decimal(generator.randint(-(10**7), 10**7)).scaleb(-generator.randint(0, 6))
        digits = generator.randint(0, 5)
        assert half_up(value, digits) == value.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)


def test_a_float_is_refused_because_it_is_not_the_number_that_was_written() -> None:
    with pytest.raises(TypeError, match="0.2465"):
        half_up(0.2465, 3)  # type: ignore[arg-type]


def test_means_are_exact() -> None:
    assert exact_mean([Decimal("0.1"), Decimal("0.2"), Fraction(3, 10)]) == Fraction(1, 5)
