"""Agreement between raters, held against scipy and scikit-learn, by hand, and on published judges."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from eval.agreement import agreement, cohen_kappa, mid_ranks, pearson, spearman
from ift.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dreamergpt_eval" / "published_scores.csv"


@pytest.mark.parametrize("seed", range(20))
def test_coefficients_are_those_of_other_libraries(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(5, 60))
    first = generator.integers(0, 6, size).astype(float)
    second = np.clip(first + generator.integers(-2, 3, size), 0, 5)
    assert mid_ranks(first) == pytest.approx(stats.rankdata(first), abs=0)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    # scikit-learn weights by place in the list of labels; all six are given, so that places are the scores.
    reference = cohen_kappa_score(first, second, weights="quadratic", labels=list(range(6)))
    assert cohen_kappa(first, second, weights="quadratic") == pytest.approx(reference, abs=1e-12)


def test_kappa_by_hand() -> None:
    # 20 + 15 of 50 agree; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 would: (0.7 - 0.5) / (1 - 0.5) = 0.4.
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    first, second = zip(*pairs, strict=True)
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-12)


def test_halves_keep_their_distance_in_the_weighted_kappa() -> None:
    """Scores 0, 9.5 and 10 are no equally spaced classes: to differ by a half counts little."""
    near = cohen_kappa([0, 9.5, 10, 0], [0, 10, 9.5, 0], weights="quadratic")
    assert near > 0.99 and cohen_kappa([0, 9.5, 10, 0], [0, 10, 9.5, 0]) < 0.5


def test_a_constant_rater_has_no_correlation() -> None:
    assert math.isnan(pearson([0.1] * 7, list(range(7)))) and math.isnan(spearman([3, 3], [1, 2]))
    assert math.isnan(cohen_kappa([3, 3], [3, 3])) and cohen_kappa([3, 3], [2, 2]) == 0
    found = agreement({"a": 1, "b": 1}, {"a": 1, "b": 2}, resamples=50)
    assert math.isnan(found.spearman.value) and found.mean_absolute_difference.value == 0.5


def test_intervals_cover_the_truth_and_depend_on_the_seed_only() -> None:
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        left = generator.normal(size=80)
        right = 0.6 * left + 0.8 * generator.normal(size=80)  # correlation 0.6
        raters = [{str(place): value for place, value in enumerate(side.tolist())} for side in (left, right)]
        found = agreement(*raters, resamples=150)
        covered += found.pearson.interval[0] <= 0.6 <= found.pearson.interval[1]
        assert found.pearson.interval[0] <= found.pearson.value <= found.pearson.interval[1]
    assert covered >= 32  # 38 of 40 expected; fewer than 32 would happen once in 5,000
    assert agreement(*raters, resamples=150) == found != agreement(*raters, resamples=150, seed=1)


def test_only_shared_items_count() -> None:
    first, second = {"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 2.0, "c": 3.0, "d": 9.0}
    assert agreement(first, second, resamples=20).n == 2
    with pytest.raises(UserError, match="share 1 items"):
        agreement({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0})


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_file(), reason="needs the shared published scores")
def test_dreamergpts_published_judges() -> None:
    """GPT-4, GPT-3.5 and people over 40 cells of task and system; scipy gives the same coefficients."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    with SHARED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores[row["judge"]][f"{row['file']} {row['system']}"] = float(row["score_of_100"])
    assert len(scores) == 3 and all(len(own) == 40 for own in scores.values())
    names = sorted(scores)
    for first in names:
        for second in names:
            found = agreement(scores[first], scores[second], resamples=200)
            cells = sorted(scores[first])
            left, right = ([scores[name][cell] for cell in cells] for name in (first, second))
            assert found.n == 40
            assert found.spearman.value == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)
            assert found.pearson.value == pytest.approx(stats.pearsonr(left, right).statistic, abs=1e-12)
            assert found.mean_absolute_difference.value == pytest.approx(np.abs(np.subtract(left, right)).mean())
            if first == second:
                assert found.kappa.value == found.weighted_kappa.value == 1
            else:
                assert 0.3 < found.spearman.value < 1
