"""Means over seeds against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from eval.seed_statistics import compare_seeds, over_seeds


def test_the_mean_has_students_interval() -> None:
    scores = [0.412, 0.431, 0.405, 0.44]
    found = over_seeds(scores)
    reference = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (found.num_seeds, found.mean) == (4, pytest.approx(np.mean(scores)))
    assert found.deviation == pytest.approx(np.std(scores, ddof=1))
    assert found.interval == pytest.approx((reference.low, reference.high))


def test_two_seeds_by_hand() -> None:
    # Deviation 0.02/sqrt(2), its error 0.01, and 12.706 of these on either side.
    assert over_seeds([0.40, 0.42]).interval == pytest.approx((0.41 - 0.12706, 0.41 + 0.12706), abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([0.4])
    assert found.mean == 0.4 and all(map(math.isnan, (*found.interval, found.deviation)))


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0, 4.0], [0.5, 0.6]), ([3.0, 3.1], [2.9, 3.3, 3.0, 3.2])])
def test_configurations_are_compared_as_welch_does(first: list[float], second: list[float]) -> None:
    found, reference = compare_seeds(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert found.p_value == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_seeds_without_any_spread_say_nothing_about_chance() -> None:
    found = compare_seeds([0.5, 0.5], [0.4, 0.4])
    assert found.estimate == pytest.approx(0.1) and math.isnan(found.p_value)
