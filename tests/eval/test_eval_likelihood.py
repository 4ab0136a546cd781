"""Named rules from option scores to a choice, against hand computations."""

import itertools
import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from tiny import ROOT

from eval.likelihood import SCORINGS, Choice, Option, Scoring, choose, log_sum, scoring, spelled, texts
from ift.errors import UserError
from ift.records import Prediction

LETTERS = spelled(("A", "B", "C"))


def predicted(options: tuple[Option, ...], scores: list[float], num_tokens: list[int] | None = None) -> Prediction:
    numbers = tuple(num_tokens or [1] * len(options))
    return Prediction("q", "p", options=texts(options), option_scores=tuple(scores), option_num_tokens=numbers)


def logs(*shares: float) -> list[float]:
    return [math.log(share) for share in shares]


def test_options_of_letters_and_texts() -> None:
    assert texts(spelled("AB")) == ("A", " A", "B", " B")
    assert [option.answer for option in spelled("AB")] == ["A", "A", "B", "B"]
    full = spelled({"A": "河流 ", "B": "a stone"}, blanks=(" ",))
    assert full == (Option(" 河流", "A", "text"), Option(" a stone", "B", "text"))


def test_sum_adds_probabilities_and_max_takes_one() -> None:
    """B is likelier in all, though A has the likeliest spelling."""
    prediction = predicted(LETTERS, logs(0.30, 0.01, 0.2, 0.2, 0.1, 0.1))
    summed, highest = choose(prediction, LETTERS), choose(prediction, LETTERS, scoring("letter_max"))
    assert (summed.answer, highest.answer) == ("B", "A")
    assert {key: math.exp(value) for key, value in summed.scores.items()} == pytest.approx(
        {"A": 0.31, "B": 0.4, "C": 0.2}
    )
    assert {key: math.exp(value) for key, value in highest.scores.items()} == pytest.approx(
        {"A": 0.3, "B": 0.2, "C": 0.1}
    )


def test_lengths() -> None:
    options = spelled({"A": "河流河流", "B": "ab"}, blanks=(" ",))
    prediction = predicted(options, [-8.0, -6.0], [4, 2])
    expected = {
        "text_sum": ({"A": -8.0, "B": -6.0}, "B"),
        "text_sum_tokens": ({"A": -2.0, "B": -3.0}, "A"),
        "text_sum_characters": ({"A": -2.0, "B": -3.0}, "A"),
        "text_max_bytes": ({"A": -8 / 12, "B": -3.0}, "A"),
    }
    for name, (scores, answer) in expected.items():
        found = choose(prediction, options, scoring(name))
        assert (dict(found.scores), found.answer) == (pytest.approx(scores), answer)


def test_the_length_in_tokens_is_that_of_the_likeliest_spelling() -> None:
    options = spelled({"A": "ab"})
    prediction = predicted(options, [-9.0, -6.0], [2, 3])
    assert choose(prediction, options, scoring("text_max_tokens")).scores == {"A": -2.0}


def test_letters_and_texts_of_one_question_are_told_apart() -> None:
    options = (*spelled("AB", blanks=("",)), *spelled({"A": "河流", "B": "石头"}, blanks=("",)))
    prediction = predicted(options, [-1.0, -2.0, -5.0, -4.0])
    assert [choose(prediction, options, scoring(name)).answer for name in ("letter_sum", "text_sum")] == ["A", "B"]
    with pytest.raises(UserError, match="'q' was asked without options of kind 'text'"):
        choose(predicted(LETTERS, [-1.0] * 6), LETTERS, scoring("text_sum"))


def test_lm_evals_accuracies() -> None:
    """Its `acc` is the highest sum, its `acc_norm` the highest sum over the characters of the choice."""
    rng = random.Random(0)
    for _ in range(100):
        choices = ["字" * rng.randrange(1, 9) for _ in range(4)]
        options = spelled(dict(zip("ABCD", choices, strict=True)), blanks=(" ",))
        sums = [-rng.uniform(1, 30) for _ in choices]
        acc = "ABCD"[int(np.argmax(sums))]
        acc_norm = "ABCD"[int(np.argmax(np.array(sums) / np.array([float(len(one)) for one in choices])))]
        prediction = predicted(options, sums)
        found = [choose(prediction, options, scoring(name)).answer for name in ("text_max", "text_max_characters")]
        assert found == [acc, acc_norm]


def test_pmi_takes_off_what_is_likely_anyway() -> None:
    prediction, base = predicted(LETTERS, logs(0.5, 0.1, 0.2, 0.1, 0.05, 0.05)), logs(0.7, 0.1, 0.1, 0.02, 0.04, 0.04)
    found = choose(prediction, LETTERS, scoring("letter_sum_pmi"), baselines=[predicted(LETTERS, base)])
    assert found.scores == pytest.approx(
        {"A": math.log(0.6 / 0.8), "B": math.log(0.3 / 0.12), "C": math.log(0.1 / 0.08)}
    )
    assert found.answer == "B"


def test_contextual_calibration_is_zhao_et_als() -> None:
    """W = diag(mean of p_cf)^-1, b = 0: their code's `mode="diagonal_W"`, p normalized over the labels."""
    rng = np.random.default_rng(0)
    options = spelled("ABCD", blanks=("",))
    for _ in range(50):
        p, *free = rng.dirichlet(np.ones(5), size=4)[:, :4]  # the fifth part is what is no option
        p_cf = np.mean([one / one.sum() for one in free], axis=0)
        expected = np.linalg.inv(np.identity(4) * p_cf) @ (p / p.sum())
        found = choose(
            predicted(options, logs(*p)),
            options,
            scoring("letter_sum_contextual"),
            baselines=[predicted(options, logs(*one)) for one in free],
        )
        assert np.exp(list(found.scores.values())) == pytest.approx(expected)
        assert found.answer == "ABCD"[int(np.argmax(expected))]


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [("letter_sum", 1, "uses no prompt"), ("letter_sum_pmi", 2, "found 2"), ("letter_max_contextual", 0, "found none")],
)
def test_prompts_without_content_that_a_rule_does_not_take(name: str, number: int, told: str) -> None:
    prediction = predicted(LETTERS, [-1.0] * 6)
    with pytest.raises(UserError, match=told):
        choose(prediction, LETTERS, scoring(name), baselines=[prediction] * number)


def test_ties_are_reported() -> None:
    found = choose(predicted(LETTERS, [-1.0, -2.0, -1.0, -2.0, -3.0, -3.0]), LETTERS)
    assert (found.best, found.answer) == (("A", "B"), None)
    assert Choice({"A": 0.0}, ("A",)).answer == "A"


def test_the_order_of_the_options_changes_nothing() -> None:
    scores = dict(zip(LETTERS, logs(0.30, 0.01, 0.2, 0.2, 0.1, 0.1), strict=True))
    for order in itertools.islice(itertools.permutations(LETTERS), 0, 720, 37):
        found = choose(predicted(order, [scores[option] for option in order]), order)
        assert found.answer == "B" and found.scores["A"] == pytest.approx(math.log(0.31))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ("A", " A")},
        {"option_scores": (-1.0,)},
        {"option_num_tokens": ()},
        {"option_scores": (-1.0, -1.0, -1.0, math.nan, -1.0, -1.0)},
        {"option_scores": (-1.0, -1.0, -1.0, -math.inf, -1.0, -1.0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_predictions_that_do_not_fit(changes: dict[str, Any]) -> None:
    whole = vars(predicted(LETTERS, [-1.0] * 6))
    with pytest.raises(UserError, match="--predictions: 'q' needs a finite score"):
        choose(Prediction(**{**whole, **changes}), LETTERS)


def test_every_rule_has_its_name() -> None:
    assert len(SCORINGS) == 2 * 2 * (4 + 2)
    assert all(SCORINGS[name].name == name for name in SCORINGS)
    assert scoring("text_max_characters") == Scoring("text", "max", "characters")
    with pytest.raises(UserError, match="letter_sum"):
        scoring("letter_sun")


def test_log_sum_does_not_overflow() -> None:
    assert log_sum([-2000.0, -2000.0]) == pytest.approx(-2000 + math.log(2))
    assert log_sum([-math.inf, -math.inf]) == -math.inf


def test_it_starts_without_torch() -> None:
    code = "import sys, eval.likelihood, eval.perplexity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
