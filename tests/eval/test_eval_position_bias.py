"""A judge that favours a place is found out while a fair one is not, whatever systems and items are worth."""

import itertools

import numpy as np
import pytest

from eval.judged import rotations
from eval.position_bias import Placed, bias_markdown, placed_scores, position_bias
from ift.errors import UserError
from ift.records import Prediction

SYSTEMS = ["甲", "乙", "丙", "丁"]


def judged(seed: int, *, bonus: float, count: int = 40) -> list[Placed]:
    """A noisy judge whose first place gets a bonus; systems and items differ much more than that."""
    generator = np.random.default_rng(seed)
    worth = dict(zip(SYSTEMS, [8.0, 6.0, 5.0, 3.0], strict=True))
    scores = []
    for number, order in enumerate(rotations(SYSTEMS, count, seed)):
        level = generator.normal(0, 1.5)
        for place, system in enumerate(order, 1):
            score = worth[system] + level + generator.normal(0, 1) + (bonus if place == 1 else 0)
            scores.append(Placed(str(number), system, place, score))
    return scores


def test_the_test_keeps_its_level_and_has_power() -> None:
    fair = [position_bias(judged(seed, bonus=0), resamples=200).p_value for seed in range(100)]
    assert sum(value < 0.05 for value in fair) <= 13  # 5 expected; more than 13 happens once in 3,000
    assert 0.35 < float(np.mean(fair)) < 0.65
    biased = [position_bias(judged(seed, bonus=1.0), resamples=200) for seed in range(30)]
    assert sum(one.is_distinguishable for one in biased) >= 28
    # A bonus of 1 for one of four places shows as +0.75 there and -0.25 in the others.
    assert np.mean([one.places[0].effect for one in biased]) == pytest.approx(0.75, abs=0.1)
    assert np.mean([one.places[2].effect for one in biased]) == pytest.approx(-0.25, abs=0.1)
    covered = sum(one.places[0].interval[0] <= 0.75 <= one.places[0].interval[1] for one in biased)
    assert covered >= 24


def test_by_hand() -> None:
    """Two systems, two items, both orders: A is worth 4, B 2, and the first place adds 1."""
    scores = [Placed("x", "A", 1, 5.0), Placed("x", "B", 2, 2.0), Placed("y", "B", 1, 3.0), Placed("y", "A", 2, 4.0)]
    found = position_bias(scores, resamples=400)
    assert [(place.mean, place.effect) for place in found.places] == [(4.0, 0.5), (3.0, -0.5)]
    assert found.table == {"A": {1: (1, 5.0), 2: (1, 4.0)}, "B": {1: (1, 3.0), 2: (1, 2.0)}}
    # Of the four ways to shuffle two items, two are as extreme: p is about 1/2, nothing can be told from two items.
    assert found.p_value == pytest.approx(0.5, abs=0.1) and not found.is_distinguishable


def test_the_p_value_is_that_of_all_shuffles() -> None:
    scores = judged(5, bonus=0.8, count=4)
    found = position_bias(scores, resamples=4000)
    values = np.array([[one.score for one in scores[start : start + 4]] for start in range(0, 16, 4)])
    names = [[one.system for one in scores[start : start + 4]] for start in range(0, 16, 4)]
    means = {system: np.mean([one.score for one in scores if one.system == system]) for system in SYSTEMS}
    worth = np.array([[means[name] for name in row] for row in names])
    rest = values - values.mean(axis=1, keepdims=True) - worth + values.mean()
    shuffles = [[np.array(order) for order in itertools.permutations(row)] for row in rest.tolist()]
    observed = (rest.mean(axis=0) ** 2).sum()
    # 24^4 shuffles; the first item's can stay as it is, for only the places' names would change.
    spreads = [(((rest[0] + one + two + three) / 4) ** 2).sum() for one, two, three in itertools.product(*shuffles[1:])]
    exact = np.mean(np.array(spreads) >= observed - 1e-12)
    assert found.p_value == pytest.approx(exact, abs=0.03)


def test_incomplete_items_are_left_out_and_counted() -> None:
    scores = judged(1, bonus=0, count=8)[:-1]
    found = position_bias(scores, resamples=50)
    assert (found.n_items, found.left_out) == (7, 1)
    assert sum(count for row in found.table.values() for count, _ in row.values()) == 31
    with pytest.raises(UserError, match="no item has a score"):
        position_bias([one for one in scores if one.place != 4])
    fixed = [Placed(str(item), name, place, 5.0) for item in range(3) for place, name in enumerate("ab", 1)]
    with pytest.raises(UserError, match="one order in every item"):
        position_bias(fixed)


def test_from_replies_to_the_report() -> None:
    replies = [
        Prediction("1", "", "System1：8；好\nSystem2：6", meta={"item": "1", "systems": ["A", "B"]}),
        Prediction("2", "", "System1: 7\nSystem2: 7.5", meta={"item": "2", "systems": ["B", "A"]}),
        Prediction("3", "", "System1: 7\nSystem2: 77", meta={"item": "3", "systems": ["B", "A"]}),
    ]
    placed = placed_scores(replies)
    assert [(one.item, one.system, one.place, one.score) for one in placed] == [
        ("1", "A", 1, 8.0),
        ("1", "B", 2, 6.0),
        ("2", "B", 1, 7.0),
        ("2", "A", 2, 7.5),
        ("3", "B", 1, 7.0),
    ]
    text = bias_markdown(position_bias(placed, resamples=50))
    assert "not distinguishable" in text and "2 items, 1 left out" in text
    assert "| B | 7.000 (2) | 6.000 (1) |" in text
