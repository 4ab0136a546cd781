"""Paired comparisons: small tables by hand, formulas of the literature, and coverage and errors in simulations."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from scipy import stats

from eval.aggregation import Cell, group_macro, group_micro, macro, micro
from eval.paired import (
    compare_right_or_wrong,
    compare_scores,
    holm,
    mcnemar_p_value,
    proportions_interval,
    with_holm,
)
from eval.paired_resampling import PairedSample, bootstrap_difference, permutation_p_value


def sample(first: object, second: object, category: str = "", group: str = "") -> PairedSample:
    return PairedSample(category, group, tuple(map(float, first)), tuple(map(float, second)))  # type: ignore[call-overload]


# McNemar -------------------------------------------------------------------------------------------------------------


def test_mcnemar_on_small_tables_by_hand() -> None:
    # 5 against 0: the tail is (1/2)^5 on either side, and mid-p counts half of it.
    assert mcnemar_p_value(5, 0, mid_p=False) == 2 / 32
    assert mcnemar_p_value(5, 0) == 1 / 32
    # 1 against 3: 1 + 4 of 16, twice; mid-p counts the 4 of the table itself by half.
    assert mcnemar_p_value(1, 3, mid_p=False) == 10 / 16
    assert mcnemar_p_value(3, 1) == 6 / 16
    assert mcnemar_p_value(0, 0) == mcnemar_p_value(4, 4) == 1


def test_right_or_wrong_answers_are_counted_in_pairs() -> None:
    first = [True] * 10 + [False] * 6 + [True] * 3
    second = [True] * 8 + [False] * 2 + [True] * 1 + [False] * 5 + [True] * 3
    found = compare_right_or_wrong(first, second)
    assert (found.wins, found.ties, found.losses) == (2, 16, 1)
    assert found.estimate == pytest.approx(1 / 19)
    assert found.p_value == mcnemar_p_value(2, 1) == 5 / 8  # (1 + 3)·2 - 3 of 8
    assert found.verdict == "not distinguishable"
    turned = compare_right_or_wrong(second, first)
    assert turned.p_value == found.p_value and turned.interval == pytest.approx([-one for one in found.interval[::-1]])


def test_the_interval_is_that_of_bonett_and_price() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation in 21 children (1 before, 7 after), the
    # example of Fagerland et al. 2014: estimate -0.286, Wald with Bonett-Price adjustment from -0.508 to -0.013.
    assert proportions_interval(1, 7, 21) == pytest.approx((-0.508, -0.013), abs=6e-4)
    assert proportions_interval(0, 0, 50) == pytest.approx((-0.0533, 0.0533), abs=1e-4)  # 1.96·sqrt(2) / 52
    assert proportions_interval(5, 0, 5)[1] == 1


def test_mcnemar_keeps_its_level_and_the_interval_its_coverage() -> None:
    generator = np.random.default_rng(11)
    runs, n, shift = 4000, 120, 0.1
    # Each item is right with its own chance, the same for both systems: no difference.
    level = chance = 0.0
    for _ in range(runs):
        easy = generator.beta(1, 1, size=n)
        one, other = generator.random((2, n)) < easy
        level += mcnemar_p_value(int(np.sum(one & ~other)), int(np.sum(other & ~one))) < 0.05
        better = generator.random(n) < shift + (1 - shift) * easy  # its expectation is 0.5·shift above
        low, high = proportions_interval(int(np.sum(better & ~other)), int(np.sum(other & ~better)), n)
        chance += low <= shift / 2 <= high
    # Three standard errors of a share near 0.05 in 4000 runs are 0.0103.
    assert level / runs == pytest.approx(0.05, abs=0.0103)
    assert chance / runs == pytest.approx(0.95, abs=0.0103)


# Bootstrap and permutation -------------------------------------------------------------------------------------------


def test_few_items_are_permuted_in_every_way() -> None:
    first, second = [3.0, 2.5, 4.0, 1.0, 5.0], [2.0, 2.0, 4.0, 2.0, 1.0]
    differences = [1.0, 0.5, -1.0, 4.0]  # the tie cannot change anything
    reached = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= 4.5 for signs in product((1, -1), repeat=4)
    )
    p_value, exact = permutation_p_value([sample(first, second)], micro, clustered=False)
    assert exact and p_value == reached / 16
    reference = stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert p_value == reference.pvalue


def test_many_items_are_permuted_at_random() -> None:
    generator = np.random.default_rng(3)
    second = generator.normal(size=80)
    first = second + generator.normal(0.2, 1, size=80)
    p_value, exact = permutation_p_value([sample(first, second)], micro, clustered=False)
    reference = stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        n_resamples=20_000, vectorized=True, random_state=np.random.default_rng(0),
    )  # fmt: skip
    assert not exact and p_value == pytest.approx(reference.pvalue, abs=0.015)
    assert permutation_p_value([sample(first, first)], micro, clustered=False) == (1, True)


def test_whole_categories_are_swapped_where_they_are_a_sample() -> None:
    samples = [sample([1, 1, 0], [0, 0, 0], str(place)) for place in range(8)]
    p_value, exact = permutation_p_value(samples, macro, clustered=True)
    assert exact and p_value == 2 / 2**8
    alone = permutation_p_value([*samples, sample([1, 0], [0, 1], "own", "other")], macro, clustered=True)
    # The two items of the category that is alone count one by one: three of their four swaps leave as much as before.
    assert alone == (2 * 3 / 2**10, True)


def test_a_mean_is_bootstrapped_as_students_t_says() -> None:
    generator = np.random.default_rng(5)
    differences = generator.normal(1, 2, size=30)
    zeros = np.zeros(30)
    estimate, (low, high) = bootstrap_difference([sample(differences, zeros)], micro, clustered=False, resamples=40_000)
    reference = stats.ttest_1samp(differences, 0).confidence_interval()
    assert estimate == pytest.approx(differences.mean())
    # The bootstrap bends with the sample's skewness; half of a standard error covers that and its noise.
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.15)
    assert bootstrap_difference([sample(differences, zeros)], micro, clustered=False) == bootstrap_difference(
        [sample(differences, zeros)], micro, clustered=False
    )


def test_averages_are_those_of_the_cells() -> None:
    samples = [
        sample([1, 0, 1], [0, 0, 1], "a", "x"),
        sample([1], [0], "b", "x"),
        sample([0, 1], [1, 1], "c", "y"),
    ]
    # By hand: categories 1/3, 1, -1/2; group x 2/3, group y -1/2.
    for function, expected in ((micro, 1 / 6), (macro, (1 / 3 + 1 - 1 / 2) / 3), (group_macro, (2 / 3 - 1 / 2) / 2)):
        found = compare_scores(samples, function)
        assert found.estimate == pytest.approx(expected)
        low, high = found.interval
        assert low <= expected <= high
        assert (found.wins, found.ties, found.losses) == (2, 3, 1)


@pytest.mark.parametrize("function", [micro, macro, group_micro, group_macro])
def test_plain_averages_are_fast_and_the_same(function: Callable[[Sequence[Cell]], float]) -> None:
    """A wrapped one is computed cell by cell."""
    generator = np.random.default_rng(9)
    sizes = [4, 9, 5, 7, 3]
    samples = [
        sample(generator.random(size), generator.random(size), str(place), "xxxyy"[place])
        for place, size in enumerate(sizes)
    ]
    for clustered in (False, True):
        fast, slow = (
            (
                bootstrap_difference(samples, own, clustered=clustered, resamples=400),
                permutation_p_value(samples, own, clustered=clustered, permutations=400),
            )
            for own in (function, lambda cells: function(cells))
        )
        assert fast[0][0] == slow[0][0]
        assert fast[0][1] == pytest.approx(slow[0][1]) and fast[1] == slow[1]


def test_an_average_that_rounds_is_computed_for_every_resample() -> None:
    def rounded(cells: list[Cell]) -> float:
        return round(macro(cells), 1)

    generator = np.random.default_rng(2)
    samples = [sample(generator.random(40) < 0.7, generator.random(40) < 0.5, str(place)) for place in range(3)]
    estimate, interval = bootstrap_difference(samples, rounded, clustered=False, resamples=300)  # type: ignore[arg-type]
    assert estimate == pytest.approx(round(estimate, 1))
    assert [round(10 * bound, 6) % 1 for bound in interval] == [0, 0]


def test_too_few_items_give_no_interval() -> None:
    _, interval = bootstrap_difference([sample([1.0], [0.5])], micro, clustered=False)
    assert all(map(math.isnan, interval))
    assert permutation_p_value([sample([1.0], [0.5])], micro, clustered=False) == (1, True)


@pytest.mark.parametrize("n", [12, 40])
def test_bootstrap_intervals_keep_their_coverage(n: int) -> None:
    """Judges' scores in tenths, bounded and skewed, the systems alike on each item."""
    generator = np.random.default_rng(n)
    runs, held, found = 300, 0, 0
    for run in range(runs):
        easy = generator.beta(2, 1, size=n)
        one, other = (np.round(generator.binomial(10, easy) / 10, 1) for _ in range(2))
        _, (low, high) = bootstrap_difference([sample(one, other)], micro, clustered=False, resamples=800, seed=run)
        held += low <= 0 <= high
        found += permutation_p_value([sample(one, other)], micro, clustered=False, permutations=500, seed=run)[0] < 0.05
    # Three standard errors in 300 runs are 0.038.
    assert held / runs == pytest.approx(0.95, abs=0.038)
    assert found / runs == pytest.approx(0.05, abs=0.038)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_over_categories_keep_their_coverage(spread: float) -> None:
    """Subjects differ in how much one system is better there: by nothing, and by more than their items do."""
    generator = np.random.default_rng(17)
    runs, held, found = 250, 0, 0
    for run in range(runs):
        shifts = generator.normal(0, spread, size=20)
        samples = [
            sample(generator.normal(shift, 0.6, size=15), np.zeros(15), str(k)) for k, shift in enumerate(shifts)
        ]
        _, (low, high) = bootstrap_difference(samples, micro, clustered=True, resamples=250, seed=run)
        held += low <= 0 <= high
        found += permutation_p_value(samples, micro, clustered=True, permutations=250, seed=run)[0] < 0.05
    # Three standard errors in 250 runs are 0.041.
    assert held / runs == pytest.approx(0.95, abs=0.041)
    assert found / runs == pytest.approx(0.05, abs=0.041)


# Many comparisons ----------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 0.01·4, 0.02·3, 0.03·2, 0.04·1, none below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_decides_the_verdict() -> None:
    clear, weak = compare_right_or_wrong([True] * 12, [False] * 12), compare_right_or_wrong([True] * 6, [False] * 6)
    assert weak.verdict == "distinguishable"  # 1/64 alone
    adjusted = with_holm([clear, weak, weak, weak, weak])
    assert [one.verdict for one in adjusted] == ["distinguishable"] + ["not distinguishable"] * 4
    assert adjusted[1].adjusted == pytest.approx(4 / 64) and adjusted[1].p_value == 1 / 64


def test_holm_keeps_the_chance_of_any_false_find() -> None:
    generator = np.random.default_rng(23)
    any_found = np.mean([min(holm(list(generator.random(10)))) < 0.05 for _ in range(4000)])
    assert any_found == pytest.approx(1 - 0.995**10, abs=0.0103)  # 0.0489; three standard errors
