from collections import Counter

import pytest

from eval.judge_reading import read_choice, read_class_score, read_rating, read_system_scores
from eval.judged import rotations, side_by_side
from ift.errors import UserError
from ift.records import Prediction


@pytest.mark.parametrize("count", [6, 7, 8])
def test_every_system_stands_in_every_place_equally_often(count: int) -> None:
    names = ("a", "b", "c")
    orders = rotations(names, count, seed=5)
    for place in range(3):
        found = Counter(order[place] for order in orders)
        assert max(found.values()) - min(found.values()) <= 1
    assert set(orders) == {("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")}
    assert rotations(names, count, seed=5) == orders


def test_the_seed_decides_which_item_gets_which_order() -> None:
    assert len({tuple(rotations(("a", "b"), 20, seed)) for seed in range(5)}) == 5


def test_systems_must_have_answered_the_same_items() -> None:
    one, two = Prediction("1", "?", "x"), Prediction("2", "?", "x")
    assert [item.id for item in side_by_side({"a": [one, two], "b": [one, two]})] == ["1", "2"]
    for other in ([one], [two, one], [one, two, one]):
        with pytest.raises(UserError, match="'b' and 'a' did not answer the same prompts"):
            list(side_by_side({"a": [one, two], "b": other}))


@pytest.mark.parametrize(
    ("reply", "value"),
    [("得分: 0.8", 0.8), ("得分：０．８分", 0.8), ("得分:80%", 0.8), ("得分: 1.0\n因为", 1.0), ("得分: 0", 0.0)],
)
def test_class_scores_are_read(reply: str, value: float) -> None:
    assert read_class_score(reply).value == value


@pytest.mark.parametrize("reply", ["得分: 8", "很好", "", "得分：高"])
def test_no_class_score_is_guessed_or_clamped(reply: str) -> None:
    reading = read_class_score(reply)
    assert reading.value is None and reading.problem


def test_system_scores_are_read_one_by_one() -> None:
    reply = "两者都不错。\nSystem1: 8.5\nSystem2: 12\n"
    assert [reading.value for reading in read_system_scores(reply, 3)] == [8.5, None, None]
    assert [reading.value for reading in read_system_scores("**System1:** 7\n**System2:** 9/10", 2)] == [7, 9]


def test_ratings_are_read() -> None:
    assert read_rating("Good. Rating: [[8]]").value == 8
    assert read_rating("Rating: [[7.5]]").value == 7.5
    for reply in ("Rating: 8", "[[11]]", "[[0]]", "[[A]]", ""):
        assert read_rating(reply).value is None and read_rating(reply).problem


def test_choices_are_read_with_their_case() -> None:
    names = ("m", "M", "A", "B")
    assert [read_choice(reply, names) for reply in ("m", " M\n", '"m".', "I say [[B]]", "**M**")] == [
        "m",
        "M",
        "m",
        "B",
        "M",
    ]
    for reply in ("", "both", "m and M", "[[A]] or [[B]]", "[[D]]", "Model m is better"):
        assert read_choice(reply, names) is None
