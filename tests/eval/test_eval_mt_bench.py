import json
from pathlib import Path

import pytest

from eval.conversations import join
from eval.mt_bench import BENCHMARK, prepare, prepare_second
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write {it}", "Shorter"], "reference": ["unseen", "unseen"]},
    {"question_id": 2, "category": "math", "turns": ["1+1?", "Times 3?"], "reference": ["ref two", "ref six"]},
    {"question_id": 3, "category": "coding", "turns": ["Loop", "Faster"]},
]
JUDGE_PROMPTS = [
    {"name": "single-v1", "system_prompt": "S1", "prompt_template": "Q {question} A {answer} [[rating]]"},
    {"name": "single-math-v1", "system_prompt": "S2", "prompt_template": "Q {question} R {ref_answer_1} A {answer}"},
    {
        "name": "single-v1-multi-turn",
        "system_prompt": "S3",
        "prompt_template": "{question_1}/{answer_1}/{question_2}/{answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "",
        "prompt_template": "{ref_answer_1}/{ref_answer_2}/{question_1}/{answer_1}/{question_2}/{answer_2}",
    },
    {"name": "pair-v2", "system_prompt": "P", "prompt_template": "{answer_a}"},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "question.jsonl", [dict(row) for row in QUESTIONS])
    write(tmp_path / "judge_prompts.jsonl", [dict(row) for row in JUDGE_PROMPTS])
    return tmp_path


def answer(prompts: list[PromptRecord], name: str = "own") -> list[Prediction]:
    return [Prediction(one.id, "…", f"{name}{len(one.messages)}", "stop", meta=one.meta) for one in prompts]


def both_turns(folder: Path) -> list[Prediction]:
    first = answer(list(prepare(folder)))
    return join([first, answer(list(prepare_second(folder, first)))])


def texts(folder: Path, protocol: str, predictions: list[Prediction]) -> dict[str, tuple[str | None, str]]:
    judge = BENCHMARK.all_protocols()[protocol].judge
    assert judge is not None and judge.single
    return {
        one.meta["item"]: (
            one.messages[0]["content"] if len(one.messages) == 2 else None,
            one.messages[-1]["content"],
        )
        for one in judge.ask({"mine": predictions}, folder, 0)
    }


def test_the_second_turn_follows_the_models_own_first_answer(folder: Path) -> None:
    prompts = list(prepare(folder))
    assert [one.id for one in prompts] == ["mt_bench-1", "mt_bench-2", "mt_bench-3"]
    assert prompts == list(prepare(folder / "question.jsonl"))
    second = list(prepare_second(folder, answer(prompts)))
    assert second[1].messages == (
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "own1"},
        {"role": "user", "content": "Times 3?"},
    )
    stranger = [Prediction("mt_bench-9", "…", "x", meta={"turns": ["a", "b"], "answers": []})]
    with pytest.raises(UserError, match="'mt_bench-9' is not in"):
        list(prepare_second(folder, stranger))


def test_the_file_of_the_user_gives_the_words_of_fastchat(folder: Path) -> None:
    found = texts(folder, "fastchat", both_turns(folder))
    assert found == {
        "mt_bench-1-turn-1": ("S1", "Q Write {it} A own1 [[rating]]"),
        "mt_bench-1-turn-2": ("S3", "Write {it}/own1/Shorter/own3"),
        "mt_bench-2-turn-1": ("S2", "Q 1+1? R ref two A own1"),
        "mt_bench-2-turn-2": (None, "ref two/ref six/1+1?/own1/Times 3?/own3"),
        "mt_bench-3-turn-1": ("S1", "Q Loop A own1 [[rating]]"),
        "mt_bench-3-turn-2": ("S3", "Loop/own1/Faster/own3"),
    }


def test_a_file_without_the_needed_words_is_refused(folder: Path) -> None:
    write(folder / "judge_prompts.jsonl", [dict(row) for row in JUDGE_PROMPTS[1:]])
    with pytest.raises(UserError, match="lacks the prompts single-v1"):
        texts(folder, "fastchat", both_turns(folder))
    changed = [{**JUDGE_PROMPTS[0], "prompt_template": "{question} {reply}"}, *JUDGE_PROMPTS[1:]]
    write(folder / "judge_prompts.jsonl", [dict(row) for row in changed])
    with pytest.raises(UserError, match="'single-v1' has places for reply"):
        texts(folder, "fastchat", both_turns(folder))
    (folder / "judge_prompts.jsonl").unlink()
    with pytest.raises(UserError, match=r"judge_prompts\.jsonl: no such file"):
        texts(folder, "fastchat", both_turns(folder))


def test_our_own_words_show_the_same_and_name_the_form_of_the_rating(folder: Path) -> None:
    (folder / "judge_prompts.jsonl").unlink()
    found = texts(folder, "own_wording", both_turns(folder))
    for item, (system, text) in found.items():
        number, turn = item.split("-")[1], item[-1]
        assert "Rating: [[7]]" in f"{system} {text}", item
        assert ("ref two" in text) == (number == "2"), "references of math, reasoning and coding only"
        assert ("ref six" in text) == (item == "mt_bench-2-turn-2")
        assert "own1" in text and ("own3" in text) == (turn == "2")
    assert all("unseen" not in text for _, text in found.values())
    assert "Write {it}" in found["mt_bench-1-turn-1"][1]


def test_ratings_are_averaged_over_turns_categories_and_all(folder: Path) -> None:
    judge, systems = BENCHMARK.judge, {"mine": both_turns(folder)}
    assert judge is not None
    ratings = ["[[8]]", "[[4]]", "Rating: [[9]]", "[[6.5]]", "no rating", "[[12]]"]
    asked = list(judge.ask(systems, folder, 0))
    replies = [Prediction(one.id, "…", text, meta=one.meta) for one, text in zip(asked, ratings, strict=True)]
    report = judge.score(replies, systems, folder)["mine"]
    assert report.headline[0] == "micro" and report.headline[1].score == pytest.approx((8 + 4 + 9 + 6.5) / 4)
    assert {name: one.score for name, one in report.kinds.items()} == {"turn_1": 8.5, "turn_2": 5.25}
    assert {name: one.score for name, one in report.categories.items()} == {"writing": 6, "math": 7.75}
    assert list(report.unread) == ["mt_bench-3-turn-1", "mt_bench-3-turn-2"]
    assert report.notes[-1] == "1 questions of math, reasoning or coding have no reference: mt_bench-3."


def test_first_turns_alone_can_be_judged_and_the_rest_is_counted(folder: Path) -> None:
    judge, systems = BENCHMARK.judge, {"mine": answer(list(prepare(folder)))}
    assert judge is not None
    asked = list(judge.ask(systems, folder, 0))
    assert [one.meta["item"][-6:] for one in asked] == ["turn-1"] * 3
    replies = [Prediction(one.id, "…", "[[5]]", meta=one.meta) for one in asked]
    report = judge.score(replies, systems, folder)["mine"]
    assert report.overall.n == 3 and report.excluded == {"turn 2 is not answered": 3}


def test_a_question_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "question.jsonl", [dict(QUESTIONS[0]), dict(QUESTIONS[1]), dict(QUESTIONS[0])])
    with pytest.raises(UserError, match=r"question\.jsonl line 3: the question 'mt_bench-1' occurs twice"):
        list(prepare(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": []}, "'turns' must be a list of texts"),
        ({"turns": ["a", "b", "c"]}, "'turns' must hold one or two texts; found 3"),
        ({"category": "math", "reference": ["one"]}, "1 references for 2 turns"),
        ({"category": "math", "reference": "one"}, "'reference' must be a list of texts"),
    ],
)
def test_questions_of_another_shape_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path / "question.jsonl", [{**QUESTIONS[0], **change}])
    with pytest.raises(UserError, match=rf"question\.jsonl line 1: {message}"):
        list(prepare(path))
