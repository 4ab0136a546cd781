"""Student's t and the sign test against scipy."""

import math

import pytest
from scipy import special, stats

from eval.distributions import incomplete_beta, normal_tail, sign_test, t_quantile, t_two_sided

DEGREES = [0.5, 1, 1.7, 2, 3, 4.2, 7, 10, 29, 99, 1000, 12_345.6]


@pytest.mark.parametrize("a", [0.25, 0.5, 1.0, 3.5, 40.0, 6000.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0, 25.0])
def test_incomplete_beta_is_scipys(a: float, b: float) -> None:
    for x in (0.0, 1e-12, 0.01, 0.3, 0.5, 0.77, 0.999, 1 - 1e-9, 1.0):
        assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-290)


@pytest.mark.parametrize("degrees", DEGREES)
def test_students_t_is_scipys(degrees: float) -> None:
    for t in (0.0, 0.1, -0.1, 1.0, 2.5, -7.0, 60.0):
        assert t_two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-9)
    for level in (0.6, 0.9, 0.975, 0.9995):
        assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf(level, degrees), rel=1e-9)


def test_students_t_has_the_values_of_printed_tables() -> None:
    for degrees, quantile in ((1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (120, 1.980)):
        assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-4)
    assert t_two_sided(math.inf, 3) == 0


def test_normal_tail_is_scipys() -> None:
    for value in (-3.0, 0.0, 1.96, 5.0):
        assert normal_tail(value) == pytest.approx(stats.norm.sf(value), rel=1e-9)


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (0, 5), (5, 0), (3, 3), (8, 1), (10, 4), (37, 53), (700, 800), (6000, 5800)]
)
def test_the_sign_test_is_the_binomial_test(wins: int, losses: int) -> None:
    n, fewer = wins + losses, min(wins, losses)
    exact = stats.binomtest(wins, n, 0.5).pvalue if n else 1.0
    assert sign_test(wins, losses, mid_p=False) == pytest.approx(exact, rel=1e-9)
    mid_p = 2 * stats.binom.cdf(fewer, n, 0.5) - stats.binom.pmf(fewer, n, 0.5)
    assert sign_test(wins, losses, mid_p=True) == pytest.approx(min(1.0, mid_p), rel=1e-9)
