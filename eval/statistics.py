"""Intervals around a share of right answers."""

import math

Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, without continuity correction.

    It stays inside [0, 1] and keeps its coverage near 0 and 1 and for small n, where the usual p ± 1.96·SE fails.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927) 209-212.

    Args:
        successes: number of right answers, 0 to `trials`.
        trials: number of answers, at least 1.
    """
    share = successes / trials
    z_squared = Z_95 * Z_95
    denominator = 1 + z_squared / trials
    center = (share + z_squared / (2 * trials)) / denominator
    half = Z_95 / denominator * math.sqrt(share * (1 - share) / trials + z_squared / (4 * trials * trials))
    # At 0 and at n successes the bound is 0 or 1 exactly; rounding errors would put it just beside.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return low, high
