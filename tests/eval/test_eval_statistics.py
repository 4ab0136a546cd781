import pytest

from eval.statistics import wilson_interval


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998) 857-872,
# Table I, method 3 (Wilson score without continuity correction), four digits as printed.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_bounds_solve_the_score_equation() -> None:
    """The interval's ends are the p with |share - p| = z * sqrt(p(1-p)/n), which is its definition."""
    for bound in wilson_interval(7, 12):
        assert abs(7 / 12 - bound) == pytest.approx(1.959963984540054 * (bound * (1 - bound) / 12) ** 0.5)


def test_mirrored_counts_give_the_mirrored_interval_inside_zero_and_one() -> None:
    for trials in (1, 2, 9, 1000):
        for successes in {0, 1, trials // 2, trials}:
            low, high = wilson_interval(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1
            mirrored = wilson_interval(trials - successes, trials)
            assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))
