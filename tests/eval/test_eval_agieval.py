"""AGIEval's Chinese choice sets: prompts, exact sets of letters, partial credit."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from exam_files import written
from tiny import ROOT

from eval import agieval
from eval.report import Report
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

SHARED = ROOT.parent / "shared" / "data" / "agieval_zh"
OPTIONS = ["(A)一{x}", "(B)二", "(C)三", "(D)四"]
ALL = ["".join(own) for size in range(1, 5) for own in combinations("ABCD", size)]


def row(label: Any, *, passage: str | None = None, options: list[str] | None = None) -> dict[str, Any]:
    return {"passage": passage, "question": "哪些正确?", "options": options or OPTIONS, "label": label, "answer": None}


def write(folder: Path, **sets: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        (folder / f"{name.replace('_', '-')}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Law with one and several right letters, and logic with one."""
    law = [row(["A", "C"]), row(["B"]), row(["D", "B", "A"]), row([])]
    return write(tmp_path / "sets", jec_qa_kd=law, logiqa_zh=[row("C", passage="一段话。"), row("B")])


def likely(prompt: PromptRecord, likelihoods: dict[str, float]) -> Prediction:
    """Return a prediction with these likelihoods of options, and next to none of the others."""
    scores = tuple(math.log(likelihoods.get(option, 1e-9)) for option in prompt.options)
    tokens = tuple(len(option.strip()) for option in prompt.options)
    return Prediction(prompt.id, "?", options=prompt.options, option_scores=scores, option_num_tokens=tokens)


def ranked(prompts: list[PromptRecord], answers: list[str]) -> list[Prediction]:
    """Return predictions that begin with the answer's letters, in one of its spellings, and go no further."""
    return [
        likely(prompt, {" " + answer[: length + 1]: 0.9 - 0.01 * length for length in range(len(answer))})
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def by_id(report: Report) -> dict[str, tuple[str, str, bool]]:
    return {item.id: (item.status, item.answer, item.correct) for item in report.items}


def test_prompts_are_those_of_the_original_program(folder: Path) -> None:
    # ruixiangcui/AGIEval @ 5c77d07, src/dataset_loader.py, convert_zero_shot.
    prompts = {prompt.id: prompt for prompt in agieval.prepare(folder)}
    line = {"passage": "一段话。", "question": "哪些正确?", "options": OPTIONS}
    expected = (
        str(line["passage"])
        + "问题："
        + str(line["question"])
        + " "
        + "选项："
        + " ".join(OPTIONS)
        + "\n答案：从A到{}, 我们应选择".format("ABCDEFG"[len(OPTIONS) - 1])
    )
    assert prompts["logiqa-zh-00000"].messages == ({"role": "user", "content": expected},)
    assert prompts["jec-qa-kd-00000"].messages[0]["content"] == expected.removeprefix("一段话。")
    assert prompts["jec-qa-kd-00002"].reference == "ABD"


def test_only_sets_with_several_right_letters_rank_combinations(folder: Path) -> None:
    options = {prompt.meta["category"]: prompt.options for prompt in agieval.prepare(folder)}
    assert options["logiqa-zh"] == ("A", " A", "B", " B", "C", " C", "D", " D")
    assert sorted(options["jec-qa-kd"]) == sorted(text for answer in ALL for text in (answer, f" {answer}"))
    assert {prompt.options for prompt in agieval.prepare_generate(folder)} == {()}


def test_exact_sets_count_and_kinds_stand_apart(folder: Path) -> None:
    prompts = list(agieval.prepare(folder))
    assert [prompt.id for prompt in prompts] == [f"logiqa-zh-0000{i}" for i in (0, 1)] + [
        f"jec-qa-kd-0000{i}" for i in range(4)
    ]
    report = agieval.score(ranked(prompts, ["C", "A", "AC", "AB", "AB", "A"]), folder)
    assert by_id(report)["jec-qa-kd-00000"] == ("read", "AC", True)
    assert by_id(report)["jec-qa-kd-00002"] == ("read", "AB", False)
    assert dict(report.excluded) == {"label is empty or none of the options": 1}
    averages = {name: one.score for name, one in report.aggregates.items()}
    assert report.headline[0] == "macro"
    assert averages["macro"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert averages["micro"] == pytest.approx(2 / 5)
    # Half for AB of ABD; none for AB of B, which holds a wrong letter.
    assert averages["partial_credit"] == pytest.approx((1 / 2 + (1 + 0 + 0.5) / 3) / 2)
    assert (report.kinds["single"].n, report.kinds["single"].score) == (3, pytest.approx(1 / 3))
    assert (report.kinds["multi"].n, report.kinds["multi"].score) == (2, 0.5)
    assert "Several letters may be right in jec-qa-kd" in report.notes[0]
    assert "not in the data: jec-qa-ca, gaokao-chinese" in report.notes[1]


def test_letters_are_ranked_by_both_spellings_and_combinations_as_whole_answers(folder: Path) -> None:
    prompts = list(agieval.prepare(folder))
    single, *_ = prompts
    multi = next(prompt for prompt in prompts if prompt.id == "jec-qa-kd-00000")
    others = [prompt for prompt in prompts if prompt not in (single, multi)]
    predictions = [
        *ranked(others, ["A"] * len(others)),
        likely(single, {"A": 0.4, "C": 0.3, " C": 0.3}),
        likely(multi, {"A": 0.5, "AC": 0.4, "B": 0.2}),  # A alone: 0.5 - 0.4
    ]
    found = by_id(agieval.score(predictions, folder))
    assert found["logiqa-zh-00000"][1] == "C"
    assert found["jec-qa-kd-00000"][1] == "AC"


def test_ties_and_scores_that_do_not_fit(folder: Path) -> None:
    prompts = list(agieval.prepare(folder))
    predictions = ranked(prompts, ["C", "A", "AC", "AB", "AB", "A"])
    flat = replace(predictions[0], option_scores=(-1.0,) * 8)
    report = agieval.score([flat, *predictions[1:]], folder)
    assert by_id(report)["logiqa-zh-00000"] == ("tied", "A/B/C/D", False)
    with pytest.raises(UserError, match=r"needs a (finite )?score and a number of tokens for each"):
        agieval.score([replace(predictions[0], option_num_tokens=()), *predictions[1:]], folder)


def test_responses_are_read_as_sets(folder: Path) -> None:
    prompts = list(agieval.prepare_generate(folder))
    report = agieval.score(written(prompts, ["C", "不清楚", "CA", "答案是B", "A、B、D。", "A"]), folder)
    assert [item.answer for item in report.items] == ["C", "", "AC", "B", "ABD", ""]
    assert dict(report.unparsed) == {"logiqa-zh-00001": "不清楚"}
    assert report.aggregates["macro"].score == pytest.approx((1 / 2 + 3 / 3) / 2)


def test_labels_as_found_in_the_wild_become_sets(tmp_path: Path) -> None:
    labels: list[Any] = ["A C", "ACD", ["B"], "Ｂ", None, "E", "A,B"]
    path = write(tmp_path, gaokao_mathqa=[row(label) for label in labels]) / "gaokao-mathqa.jsonl"
    assert [prompt.reference for prompt in agieval.prepare(path)] == ["AC", "ACD", "B", "B", "", "", "AB"]


def test_what_is_no_choice_set_is_refused_or_named(tmp_path: Path, folder: Path) -> None:
    write(folder, sat_math=[row("A")])
    report = agieval.score(written(list(agieval.prepare_generate(folder)), ["A"] * 6), folder)
    assert report.notes[-1] == "Left out, being no Chinese choice sets of AGIEval: sat-math.jsonl."
    cloze = write(tmp_path / "cloze", gaokao_mathqa=[{**row("A"), "options": None}])
    with pytest.raises(UserError, match=r"line 1: a question needs 'options'"):
        list(agieval.prepare(cloze))
    with pytest.raises(UserError, match="none of AGIEval's Chinese choice sets lies there: logiqa-zh"):
        list(agieval.prepare(write(tmp_path / "other", sat_math=[row("A")])))


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
def test_every_real_question_is_asked_and_a_perfect_ranking_scores_one() -> None:
    prompts = list(agieval.prepare(SHARED))
    assert Counter(prompt.meta["category"] for prompt in prompts) == {
        "jec-qa-kd": 200,
        "jec-qa-ca": 200,
        "gaokao-physics": 100,
        "gaokao-history": 118,
        "gaokao-chinese": 50,
        "logiqa-zh": 109,
    }
    report = agieval.score(ranked(prompts, [prompt.reference or "" for prompt in prompts]), SHARED)
    assert {one.score for one in report.aggregates.values()} == {1.0} and not report.excluded
    # Counted in the files by another program: 99 + 96 + 15 questions with several right letters.
    assert report.kinds["multi"].n == 99 + 96 + 15
    assert sum(len(prompt.options) == 30 for prompt in prompts) == 500
