import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import belle_eval
from eval.aggregation import Cell
from eval.belle_eval import ALPACA_COT, BELLE, BENCHMARK
from eval.benchmark import Judge
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

PROMPTS = [
    {"class": "math", "prompt": "按结果打分。"},
    {"class": "open QA", "prompt": "按参考打分。"},
    {"class": "closed QA", "prompt": "按材料打分。"},
    {"class": "Rewrite", "prompt": "按要求打分。"},
    {"class": "code", "prompt": "按运行打分。"},
]
QUESTIONS = [
    {"question": "一加一", "std_answer": "二", "class": "math"},
    {"question": "天的颜色", "std_answer": "蓝", "class": "open qa"},
    {"question": "地的颜色", "std_answer": "黄", "class": "closed\u00a0qa"},
    {"question": "改写：你好{x}", "std_answer": "您好", "class": "rewrite"},
    {"question": "写程序", "std_answer": "print(1)", "class": "ＣＯＤＥ"},
    {"question": "一加二", "std_answer": "三", "class": "math"},
]


def write(folder: Path, questions: list[dict[str, str]], prompts: list[dict[str, str]], *, lines: bool) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (("eval_set.json", questions), ("eval_prompt.json", prompts)):
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(texts) if lines else "[" + ",\n".join(texts) + "]"
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "belle", QUESTIONS, PROMPTS, lines=True)


def answers(folder: Path, response: str = "答\n### 小结\n完") -> list[Prediction]:
    return [
        Prediction(one.id, "…", response, "stop", reference=one.reference, meta=one.meta)
        for one in belle_eval.prepare(folder)
    ]


def judge(protocol: str = "alpaca_cot") -> Judge:
    found = BENCHMARK.all_protocols()[protocol].judge
    assert found is not None
    return found


def replies(asked: Sequence[PromptRecord], texts: Sequence[str]) -> list[Prediction]:
    return [Prediction(one.id, "…", text, meta=one.meta) for one, text in zip(asked, texts, strict=True)]


def test_lines_and_arrays_and_the_file_itself_read_the_same(folder: Path, tmp_path: Path) -> None:
    arrays = write(tmp_path / "arrays", QUESTIONS, PROMPTS, lines=False)
    found = list(belle_eval.prepare(folder))
    assert found == list(belle_eval.prepare(arrays)) == list(belle_eval.prepare(folder / "eval_set.json"))
    assert [one.meta["category"] for one in found] == ["math", "open qa", "closed qa", "rewrite", "code", "math"]
    assert found[0] == PromptRecord(
        "belle_eval-00000", ({"role": "user", "content": "一加一"},), reference="二", meta={"category": "math"}
    )


def test_a_class_without_a_prompt_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "belle", [*QUESTIONS, {**QUESTIONS[0], "class": "poems"}], PROMPTS, lines=True)
    with pytest.raises(UserError, match=r"eval_set.json line 7: the class 'poems' has no prompt .*'math', 'open qa'"):
        list(belle_eval.prepare(folder))


def test_a_missing_prompt_file_is_named_before_anything_is_answered(folder: Path) -> None:
    (folder / "eval_prompt.json").unlink()
    with pytest.raises(UserError, match=r"no eval_prompt.json beside .*eval_set.json"):
        list(belle_eval.prepare(folder))


def test_two_prompts_for_one_class_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "belle", QUESTIONS, [*PROMPTS, {"class": "open\u00a0qa", "prompt": "另一个"}], lines=True)
    with pytest.raises(UserError, match="'open qa' has another prompt already"):
        list(belle_eval.prepare(folder))


def test_the_judge_reads_the_words_of_alpaca_cot(folder: Path) -> None:
    asked = list(judge().ask({"mine": answers(folder)}, folder, 0))
    assert all(one.messages[0] == {"role": "system", "content": "You are a helpful assistant."} for one in asked)
    assert asked[0].messages[1]["content"] == (
        "按结果打分。 一加一 标准回答： 二 模型回答： '答\n### 小结\n完'。请针对模型回答给出得分，顺便给出理由："
    )
    assert asked[3].messages[1]["content"] == (
        "按要求打分。 改写：你好{x} 模型回答： '答\n### 小结\n完'。请针对模型回答给出得分，顺便给出理由："
    ), "a rewrite's reference is never shown"
    assert [one.meta for one in asked] == [
        {"item": f"belle_eval-0000{number}", "systems": ["mine"]} for number in range(6)
    ]


def test_belles_own_page_has_other_blanks_and_no_system_message(folder: Path) -> None:
    asked = list(judge("belle").ask({"mine": answers(folder, "答 ")}, folder, 0))
    assert [[message["role"] for message in one.messages] for one in asked] == [["user"]] * 6
    tail = "。请针对模型回答给出得分，顺便给出理由："
    assert asked[1].messages[0]["content"] == f"按参考打分。 天的颜色 标准回答:蓝  模型回答：' 答'{tail}"
    assert asked[3].messages[0]["content"] == f"按要求打分。 改写：你好{{x}}  模型回答： '答'{tail}"
    assert BELLE.system_message is None and ALPACA_COT.system_message is not None


def test_only_the_legacy_protocol_cuts_at_hashes(folder: Path) -> None:
    text = next(iter(judge("alpaca_cot_cut").ask({"mine": answers(folder)}, folder, 0))).messages[1]["content"]
    assert "'答'" in text and "小结" not in text


def test_the_three_classes_without_reference(tmp_path: Path) -> None:
    names = ["generation", "brainstorming", "rewrite", "code", "math", "extract"]
    folder = write(
        tmp_path / "all",
        [{"question": "问", "std_answer": "参考", "class": name} for name in names],
        [{"class": name, "prompt": "评"} for name in names],
        lines=True,
    )
    asked = judge().ask({"mine": answers(folder)}, folder, 0)
    assert ["参考" in one.messages[-1]["content"] for one in asked] == [False] * 3 + [True] * 3


def test_replies_become_all_averages(folder: Path) -> None:
    """By hand: math 60 and 100, open 50, closed 70, rewrite 80, code 40; one system more, all 100."""
    systems = {"mine": answers(folder), "other": answers(folder)}
    asked = list(judge().ask(systems, folder, 0))
    texts = ["得分: 0.6", "得分：0.5分", "得分: 0.7/1\n很好", "得分: 80%", "得分: 0.4", "得分: 1"]
    reports = judge().score(replies(asked, texts + ["得分: 1.0"] * 6), systems, folder)
    mine = reports["mine"]
    assert {name: score.score for name, score in mine.categories.items()} == pytest.approx(
        {"code": 40, "open qa": 50, "math": 80, "rewrite": 80, "closed qa": 70}
    )
    assert list(mine.categories) == ["code", "open qa", "math", "rewrite", "closed qa"], "columns as in the paper"
    expected = {
        "average_10": (40 + 50 + 80 + 80 + 70) / 5,
        "macro_9": (50 + 80 + 70 + (60 + 100 + 40) / 3) / 4,
        "macro_8": (50 + 80 + 70) / 3,
        "micro": (60 + 50 + 70 + 80 + 40 + 100) / 6,
    }
    found: dict[str, Any] = {name: mine.aggregates[name].score for name in expected}
    assert found == pytest.approx(expected)
    assert mine.headline[0] == "average_10"
    assert judge("belle").score(replies(asked, ["得分: 1"] * 12), systems, folder)["mine"].headline[0] == "macro_9"
    assert reports["other"].headline[1].score == 100
    assert [(item.id, item.value, item.answer) for item in mine.items[:2]] == [
        ("belle_eval-00000", 60, "0.6"),
        ("belle_eval-00001", 50, "0.5"),
    ]


def test_what_cannot_be_read_or_is_out_of_range_is_shown_and_never_a_score(folder: Path) -> None:
    systems = {"mine": answers(folder)}
    asked = list(judge().ask(systems, folder, 0))
    texts = ["得分: 8", "无法评价", "得分: 0.7", "得分: 0.8", "得分: 0.4", "得分: 1"]
    report = judge().score(replies(asked, texts), systems, folder)["mine"]
    assert set(report.unread) == {"belle_eval-00000", "belle_eval-00001"}
    assert report.categories["math"].n == 1 and report.categories["math"].score == 100
    assert "open qa" not in report.categories
    assert report.overall.n == 4 and report.overall.score == pytest.approx(72.5)
    assert report.notes == ("2 of 6 items (33.3%) have no usable score of the judge and are left out of every mean.",)
    assert report.items[0].status == "unread" and report.items[0].value is None


def test_an_answer_without_a_reply_is_an_error(folder: Path) -> None:
    systems = {"mine": answers(folder)}
    asked = list(judge().ask(systems, folder, 0))
    with pytest.raises(UserError, match="no reply about 'belle_eval-00005' of 'mine'"):
        judge().score(replies(asked[:5], ["得分: 1"] * 5), systems, folder)


def test_ranked_predictions_cannot_be_judged(folder: Path) -> None:
    ranked = [Prediction(one.id, "…", options=("a",), option_scores=(0.0,)) for one in belle_eval.prepare(folder)]
    with pytest.raises(UserError, match="'belle_eval-00000' has no 'response'"):
        list(judge().ask({"mine": ranked}, folder, 0))


def test_others_is_one_class_of_all_its_questions() -> None:
    cells = [Cell("math", "", 3, 300.0), Cell("code", "", 1, 0.0), Cell("extract", "", 5, 250.0)]
    assert belle_eval.macro_9(cells) == pytest.approx((75 + 50) / 2)
    assert belle_eval.macro_8(cells) == pytest.approx(50)
    assert belle_eval.average_10(cells) == pytest.approx(50)
    assert belle_eval.macro_9(cells[2:]) == belle_eval.macro_8(cells[2:]) == 50
