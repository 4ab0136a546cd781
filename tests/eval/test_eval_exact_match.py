from pathlib import Path

import pytest

from eval import exact_match
from ift.errors import UserError
from ift.records import Prediction


def test_prompts_carry_the_input_as_context(alpaca_file: Path) -> None:
    prompts = list(exact_match.prepare(alpaca_file))
    assert [prompt.id for prompt in prompts] == ["exact_match-00000", "own-7", "exact_match-00002", "exact_match-00003"]
    assert prompts[0].messages == ({"role": "user", "content": "Say yes"},)
    assert prompts[1].messages == ({"role": "user", "content": "翻译", "context": "猫"},)
    assert (prompts[1].reference, prompts[1].options) == ("the  cat\n", ())
    assert [prompt.meta["category"] for prompt in prompts] == ["short", "short", "uncategorized", "uncategorized"]


def test_white_space_and_full_width_forms_do_not_count_but_case_does(alpaca_file: Path) -> None:
    responses = ["yes", " the cat", "anything", "12"]
    prompts = exact_match.prepare(alpaca_file)
    answers = [Prediction(prompt.id, "?", response=text) for prompt, text in zip(prompts, responses, strict=True)]
    report = exact_match.score(answers, alpaca_file)
    assert {name: (item.n, item.score) for name, item in report.categories.items()} == {
        "short": (2, 0.5),
        "uncategorized": (1, 1.0),
    }
    assert (report.overall.score, report.macro) == (pytest.approx(2 / 3), 0.75)
    assert report.excluded == {"empty output": 1}
    assert [item.answer for item in report.items] == ["yes", "the cat", "", "12"]


def test_ranked_predictions_are_refused(alpaca_file: Path) -> None:
    with pytest.raises(UserError, match="'own-7' has no 'response'"):
        exact_match.score([Prediction("own-7", "?", options=("a",), option_scores=(0.0,))], alpaca_file)


def test_a_report_over_nothing_is_refused(alpaca_file: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to score: all 1 items are excluded: empty output \(1\)"):
        exact_match.score([Prediction("exact_match-00002", "?", response="x")], alpaca_file)
