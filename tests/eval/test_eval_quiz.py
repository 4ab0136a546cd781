import json
from pathlib import Path

import pytest

from eval import quiz
from ift.errors import UserError
from ift.records import Prediction

FOUR = ("A", "B", "C", "D")


def ranked(index: int, scores: tuple[float, ...]) -> Prediction:
    return Prediction(f"quiz-{index:05d}", "?", options=FOUR[: len(scores)], option_scores=scores)


def written(index: int, response: str) -> Prediction:
    return Prediction(f"quiz-{index:05d}", "?", response=response, finish_reason="stop")


def test_prompts_have_the_wording_of_alpaca_cot(quiz_file: Path) -> None:
    first, second, third, *_ = quiz.prepare(quiz_file)
    # PhoebusSi/Alpaca-CoT @ bd46c44, the instruction its MMCU driver builds.
    expected = "请阅读以下选择题并给出正确选项，不要解释原因。\n问一\nA:一\nB:二\nC:三\nD:四\n正确答案的序号是：\n"
    assert first.messages == ({"role": "user", "content": expected},)
    assert (first.id, first.options, first.reference, first.meta) == ("quiz-00000", FOUR, "A", {"category": "医疗"})
    assert second.reference == "B"
    assert third.options == ("A", "B")


def test_generation_prompts_differ_only_in_their_options(quiz_file: Path) -> None:
    generated = list(quiz.prepare_generate(quiz_file))
    assert [item.options for item in generated] == [()] * 5
    assert [item.messages for item in generated] == [item.messages for item in quiz.prepare(quiz_file)]


def test_likelihoods_are_scored_by_their_maximum_and_ties_are_wrong(quiz_file: Path) -> None:
    scores = [(-1.0, -2.0, -3.0, -4.0), (-5.0, -1.0, -1.0, -2.0), (-2.0, -1.5), (-1.0, -2.0, -3.0, -4.0), (-1.0, -2.0)]
    report = quiz.score([ranked(index, values) for index, values in enumerate(scores)], quiz_file)
    assert (report.overall.n, report.overall.score) == (3, pytest.approx(2 / 3))
    assert {name: (item.n, item.score) for name, item in report.categories.items()} == {
        "医疗": (2, 0.5),
        "法律": (1, 1),
    }
    assert report.macro == 0.75
    assert (report.tied, dict(report.unparsed), report.answers) == (1, {}, "ranked")
    assert report.excluded == {"several answers": 1, "answer is none of the options": 1}
    assert [item.answer for item in report.items] == ["A", "B/C", "B", "", ""]


def test_responses_are_scored_by_their_letter_and_unparsed_ones_are_wrong(quiz_file: Path) -> None:
    responses = ["答案是A", "维生素B", "b", "A", "A"]
    report = quiz.score([written(index, response) for index, response in enumerate(responses)], quiz_file)
    assert (report.overall.n, report.overall.score) == (3, pytest.approx(2 / 3))
    assert dict(report.unparsed) == {"quiz-00001": "维生素B"}
    assert (report.answers, report.finish_reasons) == ("generated", {"stop": 5})


def test_mixed_answers_are_refused(quiz_file: Path) -> None:
    mixed = [ranked(0, (-1.0, -2.0, -3.0, -4.0)), written(1, "B")]
    with pytest.raises(UserError, match="Score them apart"):
        quiz.score(mixed, quiz_file)


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction("quiz-00000", "?"),
        ranked(0, (-1.0, -2.0)),
        ranked(0, (-1.0, float("nan"), -3.0, -4.0)),
        Prediction("quiz-00000", "?", options=FOUR, option_scores=(-1.0,)),
    ],
)
def test_unusable_predictions_are_refused_by_id(quiz_file: Path, prediction: Prediction) -> None:
    with pytest.raises(UserError, match="'quiz-00000'"):
        quiz.score([prediction], quiz_file)


@pytest.mark.parametrize("options", ["甲\n乙", "A:甲\nC:丙", "A:甲"])
def test_options_without_their_labels_are_refused(tmp_path: Path, options: str) -> None:
    path = tmp_path / "quiz.json"
    path.write_text(json.dumps([{"类别": "x", "题目": "y", "选项": options, "答案": "A"}]), encoding="utf-8")
    with pytest.raises(UserError, match=r"quiz.json \[0\]: '选项' needs one option per line"):
        list(quiz.prepare(path))


def test_a_missing_key_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "quiz.json"
    path.write_text('{"类别": "x", "问题": "y"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="quiz.json line 1: a row of this benchmark needs '选项'; found '类别', '问题'"):
        list(quiz.prepare(path))
