import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from eval.answer_sets import answer_sets, best_sets, options_of_sets
from ift.errors import UserError
from ift.records import Prediction

FOUR = ("A", "B", "C", "D")


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_set_of_letters_is_an_answer_once(count: int) -> None:
    answers = answer_sets("ABCDE"[:count])
    assert len(answers) == len({frozenset(answer) for answer in answers}) == 2**count - 1
    assert all("".join(sorted(answer)) == answer for answer in answers)
    assert list(map(len, answers)) == sorted(map(len, answers))


def prediction(likelihoods: Mapping[str, float], tokens: Mapping[str, int] | None = None) -> Prediction:
    """Return a prediction by the likelihoods of texts, one token per letter unless `tokens` says otherwise."""
    options = options_of_sets(FOUR)
    scores = [math.log(likelihoods[option]) if likelihoods.get(option) else -math.inf for option in options]
    sizes = [(tokens or {}).get(option, len(option)) for option in options]
    return Prediction("q", "", options=options, option_scores=tuple(scores), option_num_tokens=tuple(sizes))


def test_the_likeliest_whole_answer_is_found_among_random_models() -> None:
    """A model is a tree: after each letter it stops or goes on with a later one."""
    generator = random.Random(0)
    found = set()
    for _ in range(300):
        begins, whole = {"": 1.0}, {}
        for answer in ("", *answer_sets(FOUR)):
            later = [letter for letter in FOUR if letter > answer[-1:]]
            weights = [generator.random() ** 4 for _ in [*later, "stop"]]
            if not answer:
                weights[-1] = 0.0
            for letter, weight in zip(later, weights[:-1], strict=True):
                begins[answer + letter] = begins[answer] * weight / sum(weights)
            whole[answer] = begins[answer] * weights[-1] / sum(weights)
        expected = max(answer_sets(FOUR), key=lambda answer: whole[answer])
        assert best_sets(prediction(begins), FOUR) == [expected]
        found.add(expected)
    assert {len(answer) for answer in found} >= {1, 2, 3}


def test_a_longer_answer_may_win_though_no_text_is_likelier_than_its_beginning() -> None:
    likelihoods = {"A": 0.9, "AC": 0.8, "B": 0.1}
    assert best_sets(prediction(likelihoods), FOUR) == ["AC"]
    assert best_sets(prediction({**likelihoods, "AC": 0.4}), FOUR) == ["A"]


def test_letters_in_one_token_are_no_continuation() -> None:
    # `AC` is a token of its own: the likelihood of the token `A` does not contain it.
    likelihoods = {"A": 0.5, "AC": 0.4}
    assert best_sets(prediction(likelihoods), FOUR) == ["AC"]
    assert best_sets(prediction(likelihoods, {"AC": 1}), FOUR) == ["A"]


def test_the_spellings_of_an_answer_count_together() -> None:
    assert best_sets(prediction({"A": 0.3, "B": 0.2, " B": 0.2}), FOUR) == ["B"]


def test_equal_answers_are_tied_and_rounding_does_no_harm() -> None:
    assert best_sets(prediction({"A": 0.5, "C": 0.5}), FOUR) == ["A", "C"]
    assert best_sets(prediction({"A": 0.5, "AB": 0.5000001, "ABC": 0.1}), FOUR) == ["AB"]


@pytest.mark.parametrize(
    "change",
    [
        {"options": FOUR},
        {"option_scores": (-1.0,)},
        {"option_scores": (math.nan,) * 30},
        {"option_num_tokens": ()},
    ],
)
def test_predictions_about_other_options_are_refused(change: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(UserError, match="'q' needs a score and a number of tokens for each of the 30 options"):
        best_sets(replace(prediction({"A": 1.0}), **change), FOUR)  # type: ignore[arg-type]
