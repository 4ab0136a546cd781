"""Quantiles and tail probabilities of the few distributions that comparisons need, without scipy.

Student's t through the regularized incomplete beta function; the symmetric binomial in whole numbers, so exactly.
"""

import math
from statistics import NormalDist

_TINY = 1e-300
_STEPS = 10_000
"""Far more than the continued fraction needs for any arguments that occur here."""


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), for x in [0, 1] and positive a and b.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored function converges faster
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """Return 1 + d₁/(1 + d₂/(1 + …)), the denominator of the beta function's continued fraction."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, _STEPS):
        m, odd = divmod(step, 2)
        if odd:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + numerator * d) or _TINY)
        c = (1 + numerator / c) or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def t_two_sided(t: float, degrees: float) -> float:
    """Return the probability that Student's t with so many degrees of freedom is at least as far from 0."""
    if math.isinf(t):
        return 0.0
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def t_quantile(level: float, degrees: float) -> float:
    """Return the quantile of Student's t at a level above 0.5 and below 1.

    By bisection of the two-sided tail: it falls from 1 at 0 to 0 at infinity.
    """
    tail, low, high = 2 * (1 - level), 0.0, 1.0
    while t_two_sided(high, degrees) > tail:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_two_sided(middle, degrees) > tail else (low, middle)
    return high


def normal_tail(value: float) -> float:
    """Return the probability of the standard normal distribution above a value."""
    return NormalDist().cdf(-value)


def sign_test(wins: int, losses: int, *, mid_p: bool) -> float:
    """Return the two-sided p value of so many wins and losses where both are equally likely.

    Exact: twice the binomial tail, at most 1. `mid_p` counts half of the observed table's own probability (H. O.
    Lancaster, JASA 56 (1961) 223-234).
    """
    trials, fewer = wins + losses, min(wins, losses)
    own = math.comb(trials, fewer)
    # C(n, k - 1) = C(n, k)·k / (n - k + 1), from the middle to the end of the tail.
    tail, term = own, own
    for k in range(fewer, 0, -1):
        term = term * k // (trials - k + 1)
        tail += term
    # Whole numbers of any size divide to the nearest float.
    p_value: float = (2 * tail - (own if mid_p else 0)) / 2**trials
    return min(1.0, p_value)
