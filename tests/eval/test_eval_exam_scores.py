"""Which letter was answered, and the averages over subjects."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exam_files import ranked, write_ceval, write_cmmlu, written
from tiny import ROOT

from eval.benchmark import Benchmark, get_benchmark
from eval.choice_scores import read_letter
from eval.report import Report
from ift.errors import UserError
from ift.records import Prediction

SHARED = ROOT.parent / "shared" / "data"
without_records = pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
# Three subjects in three groups and of different sizes; college_physics is in C-Eval Hard.
SUBJECTS = {"college_physics": "AB", "law": "ABCD", "accountant": "CCCCCC"}
ANSWERS = "AA" + "ABCA" + "CCCAAA"
"""Right: 1 of 2, 3 of 4, 3 of 6."""


def score(benchmark: Benchmark, data: Path, letters: str) -> Report:
    assert benchmark.score is not None
    return benchmark.score(ranked(list(benchmark.prepare(data, shots=0)), letters), data)


def averages(report: Report) -> dict[str, float]:
    return {name: one.score for name, one in report.aggregates.items()}


@pytest.mark.parametrize(
    ("protocol", "headline"), [("official", "macro"), ("lm_eval", "micro"), ("chinese_llama_alpaca", "micro")]
)
def test_both_averages_are_reported_and_the_protocol_says_which_leads(
    tmp_path: Path, protocol: str, headline: str
) -> None:
    report = score(get_benchmark("ceval", protocol), write_ceval(tmp_path, SUBJECTS), ANSWERS)
    assert report.headline[0] == headline
    assert averages(report)["micro"] == pytest.approx(7 / 12)
    assert averages(report)["macro"] == pytest.approx((1 / 2 + 3 / 4 + 3 / 6) / 3)
    if protocol == "lm_eval":
        assert averages(report)["acc"] == averages(report)["acc_norm"] == averages(report)["micro"]
    if protocol != "chinese_llama_alpaca":
        hard = report.aggregates["hard_macro"]
        assert (hard.n, hard.score) == (2, 0.5)
        assert (report.kinds["hard"].n, report.kinds["hard"].score) == (2, 0.5)


def test_groups_are_means_over_subjects_officially_and_over_questions_elsewhere(tmp_path: Path) -> None:
    data = write_cmmlu(tmp_path, {"anatomy": "AB", "virology": "ABCDAB", "ancient_chinese": "A", "ethnology": "BB"})
    letters = (
        "AB" + "ACDBCC" + "A" + "AA"
    )  # in the file's order: anatomy, virology (STEM), the other two China-specific
    official = score(get_benchmark("cmmlu"), data, letters)
    micro = score(get_benchmark("cmmlu", "lm_eval"), data, letters)
    assert official.groups["STEM"].score == pytest.approx((2 / 2 + 1 / 6) / 2)
    assert micro.groups["STEM"].score == pytest.approx(3 / 8)
    assert official.groups["Social Science"].score == averages(official)["china_specific_macro"] == 0.5
    assert micro.groups["Social Science"].score == micro.kinds["china_specific"].score == pytest.approx(1 / 3)


def test_a_part_of_the_exam_is_never_called_the_exam(tmp_path: Path) -> None:
    report = score(get_benchmark("ceval"), write_ceval(tmp_path, SUBJECTS), ANSWERS)
    assert report.notes[0] == "Split 'val' of the data: 3 of 52 subjects, 12 of 1346 questions."
    assert "A part of C-Eval, not the benchmark: 49 subjects are not in the data: computer_network, " in report.notes[1]
    assert "law," not in report.notes[1] and "hard_macro" in report.aggregates
    without = score(get_benchmark("ceval"), write_ceval(tmp_path / "law", {"law": "A"}), "A")
    assert "hard_macro" not in without.aggregates


def test_a_question_without_a_usable_answer_is_excluded(tmp_path: Path) -> None:
    data = write_ceval(tmp_path, {"law": "A"})
    path = data / "val" / "law_val.csv"
    path.write_text(path.read_text(encoding="utf-8") + "1,问,一,二,三,四,E,\n2,问,一,二,三,四,,\n", encoding="utf-8")
    report = score(get_benchmark("ceval"), data, "ABC")
    assert dict(report.excluded) == {"answer is none of A to D: 'E'": 1, "no answer in the data": 1}
    assert report.overall.n == 1


def one_question(tmp_path: Path, protocol: str, scores: tuple[float, ...]) -> Report:
    benchmark = get_benchmark("ceval", protocol)
    data = write_ceval(tmp_path, {"law": "B"})
    (prediction,) = ranked(list(benchmark.prepare(data, shots=0)), "A")
    assert benchmark.score is not None
    return benchmark.score([replace(prediction, option_scores=scores)], data)


def test_likelihoods_of_both_spellings_are_added_officially(tmp_path: Path) -> None:
    # A has the best single spelling; B has more in all: 0.3 + 0.3 > 0.4 + 0.1.
    likelihoods = (0.4, 0.1, 0.3, 0.3, 0.01, 0.01, 0.01, 0.01)
    report = one_question(tmp_path, "official", tuple(math.log(value) for value in likelihoods))
    assert report.items[0].answer == "B" and report.overall.score == 1


def test_chinese_llama_alpaca_adds_logits_so_that_likelihoods_multiply(tmp_path: Path) -> None:
    # 0.2 · 0.2 > 0.5 · 0.01, though 0.5 + 0.01 > 0.2 + 0.2.
    likelihoods = (0.5, 0.01, 0.2, 0.2, 0.01, 0.01, 0.01, 0.01)
    scores = tuple(math.log(value) for value in likelihoods)
    assert one_question(tmp_path / "1", "chinese_llama_alpaca", scores).items[0].answer == "B"
    assert one_question(tmp_path / "2", "official", scores).items[0].answer == "A"


def test_ties_are_wrong_officially_and_the_first_counts_for_lm_eval(tmp_path: Path) -> None:
    tied = one_question(tmp_path / "1", "official", (-2.0, -9.0, -2.0, -9.0, -3.0, -9.0, -3.0, -9.0))
    assert (tied.items[0].status, tied.items[0].answer, tied.tied) == ("tied", "A/B", 1)
    # numpy's argmax, which lm-evaluation-harness uses, takes the first of equal ones: B before C.
    first = one_question(tmp_path / "2", "lm_eval", (-3.0, -2.0, -2.0, -4.0))
    assert (first.items[0].status, first.items[0].answer, first.overall.score) == ("read", "B", 1.0)
    assert "1 questions have several best options" in first.notes[-1]


@pytest.mark.parametrize("scores", [(-1.0, -2.0), (math.nan,) + (-1.0,) * 7])
def test_scores_that_do_not_fit_the_options_are_refused(tmp_path: Path, scores: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"'val-law-0000' needs a finite score .* \['A', ' A', 'B'"):
        one_question(tmp_path, "official", scores)


def test_predictions_of_another_protocol_are_refused(tmp_path: Path) -> None:
    data = write_ceval(tmp_path, {"law": "B"})
    foreign = ranked(list(get_benchmark("ceval").prepare(data, shots=0)), "B")
    other = get_benchmark("ceval", "lm_eval")
    assert other.score is not None
    with pytest.raises(UserError, match=r"options \[' A', ' B', ' C', ' D'\]"):
        other.score(foreign, data)
    with pytest.raises(UserError, match="neither 'option_scores' nor a 'response'"):
        other.score([Prediction("val-law-0000", "?")], data)


READINGS = [
    ("letter", "B", "B"),
    ("letter", " b. ", "B"),
    ("letter", "B\n\n题目：下一题\nA. 一\n答案是：C", "B"),
    ("letter", "B\n\n下一题\nA. 一\nB. 二\nC. 三\nD. 四\n答案：C\n\n再下一题", "B"),
    ("letter", "A\n\n解析：B和C都不对。", "A"),
    ("letter", "正确答案是C。因为A和B不符合题意。", "C"),
    ("letter", "这道题很难", None),
    ("letter", "A和C", "AC"),  # not one letter, and so wrong
    ("letter", "应该是维生素C和B12", None),
    ("letter", "", None),
    ("cot", "先看A，再看B。\n所以答案是D。", "D"),
    ("cot", "答案是A。不对，重新想。\n所以答案是B。", "B"),
    ("cot", "因为如此。\n所以答案是B。\n\n下一题\nA. 一\n答案：让我们一步一步思考，\n所以答案是C。", "B"),
    ("cot", "答案：让我们一步一步思考，\n1. 因为如此。\n所以答案是B。", "B"),
    ("cot", "B", "B"),
    ("cot", "这样想下去，没有结论", None),
]


@pytest.mark.parametrize(("reading", "response", "letter"), READINGS)
def test_letters_are_read_and_never_guessed(reading: str, response: str, letter: str | None) -> None:
    assert read_letter(response, reading) == letter


def test_responses_without_a_letter_are_unparsed_and_wrong(tmp_path: Path) -> None:
    benchmark = get_benchmark("cmmlu")
    assert benchmark.score is not None
    data = write_cmmlu(tmp_path, {"anatomy": "ABC"})
    prompts = list(benchmark.modes["generate"](data, shots=0))
    reports = [benchmark.score(written(prompts, ["A", "不知道", "选C"]), data) for _ in range(2)]
    assert reports[0] == reports[1]  # the original takes a random letter instead
    assert dict(reports[0].unparsed) == {"test-anatomy-0001": "不知道"}
    assert reports[0].overall.score == pytest.approx(2 / 3)


def published(name: str) -> Any:
    return json.loads((SHARED / "ceval_run_log" / name).read_text(encoding="utf-8"))


@pytest.mark.real_data
@without_records
def test_the_published_ceval_run_has_its_published_scores(tmp_path: Path) -> None:
    # Its log prints every subject's number of right answers, but only a part of the answers themselves.
    summary = published("summary.json")
    groups, overall = summary.pop("grouped"), summary.pop("All")
    data = write_ceval(tmp_path, {name: "A" * one["num"] for name, one in summary.items()})
    benchmark = get_benchmark("ceval", "chinese_llama_alpaca")
    prompts = list(benchmark.prepare(data, shots=0))
    right = {name: round(one["correct"]) for name, one in summary.items()}
    letters = ["A" if int(prompt.id[-4:]) < right[prompt.meta["category"]] else "B" for prompt in prompts]
    report = score(benchmark, data, "".join(letters))
    assert not any("part of" in note for note in report.notes)
    assert (report.overall.n, report.overall.score) == (1346, pytest.approx(494 / 1346))
    assert round(100 * report.overall.score, 2) == 36.70 and report.overall.score == pytest.approx(overall["score"])
    assert round(100 * averages(report)["macro"], 2) == 36.33  # evaluation.md, section 6
    for name, one in groups.items():
        assert report.groups[name].score == pytest.approx(one["score"]) and report.groups[name].n == one["num"]
    for name, one in summary.items():
        assert 100 * report.categories[name].score == pytest.approx(one["score"])


@pytest.mark.real_data
@without_records
def test_the_published_ceval_answers_are_asked_and_scored_as_printed(tmp_path: Path) -> None:
    lines = (SHARED / "ceval_run_log" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    form = re.compile(r"(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\n答案是什么？ ", re.DOTALL)
    parts = [form.fullmatch(row["question"]) for row in rows]
    kept = [(row, part) for row, part in zip(rows, parts, strict=True) if part is not None]
    assert len(kept) == len(rows) == 187
    data = write_ceval(tmp_path, {"law": "A"})
    with (data / "val" / "law_val.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "A", "B", "C", "D", "answer"])
        writer.writerows([str(i), *part.groups(), row["ground_truth"]] for i, (row, part) in enumerate(kept))
    benchmark = get_benchmark("ceval", "chinese_llama_alpaca")
    prompts = list(benchmark.prepare(data, shots=0))
    assert [prompt.messages[0]["content"] for prompt in prompts] == [row["question"] for row in rows]
    report = score(benchmark, data, "".join(row["ans"] for row in rows))
    assert report.overall.score == pytest.approx(sum(row["ans"] == row["ground_truth"] for row in rows) / 187)
    # Its freely chosen first tokens: letters are read, 根据 and 这 are no answers.
    read = [read_letter(row["response"], "letter") for row in rows]
    assert [letter or "" for letter in read] == [
        row["response"].upper() if row["response"].upper() in "ABCD" else "" for row in rows
    ]
