"""The published predictions of five models give the published table, cell by cell."""

import csv
import json
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval import mmcu
from eval.aggregation import Cell
from eval.mmcu_published import read_published
from eval.mmcu_questions import read_questions
from eval.mmcu_scoring import alpaca_cot_discipline, alpaca_cot_overall, readme_subject
from eval.mmcu_subjects import find_subject
from eval.report import Report

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = SHARED / "mmcu_predictions"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real records are not part of this repository"),
]
MODELS = {
    "bloomz_560m": "bloomz_560m_test_results_0514.json",
    "bloomz_1b1": "bloomz_1b1_test_results_0515.json",
    "bloomz_3b": "bloomz_3b_test_results_0515.json",
    "MOSS 16B": "MOSS16B_test_results_0515.json",
    "GPT-3.5-turbo": "gpt3.5turbo_test_results_0512.json",
}


@cache
def report_of(model: str, protocol: str) -> Report:
    published = mmcu.BENCHMARK.all_protocols()[protocol].published
    assert published is not None
    return published(FOLDER / MODELS[model])


def subjects_of(model: str) -> dict[str, Any]:
    subjects: dict[str, Any] = json.loads((FOLDER / MODELS[model]).read_text(encoding="utf-8"))["subjects"]
    return subjects


def right_of(report: Report) -> int:
    return sum(item.correct for item in report.items)


@pytest.mark.parametrize("model", MODELS)
def test_every_cell_of_the_published_table(model: str) -> None:
    with (FOLDER / "published_tables.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    report = report_of(model, "mmcu_readme")
    computed = {}
    for row in rows:
        table, name = row["table"], row["row"]
        if table == "四大领域平均分数" and name == "平均":
            computed[table, name] = report.headline[1].score
        elif table == "四大领域平均分数":
            computed[table, name] = report.groups[name.removesuffix("学")].score
        elif "平均" in name:
            computed[table, name] = report.groups[table[:2]].score
        else:
            score = report.categories[f"教育_{name}" if table.startswith("教育") else name]
            computed[table, name] = float(readme_subject(Cell(name, "", score.n, round(score.score * score.n))))
    assert len(rows) == 30
    assert computed == {(row["table"], row["row"]): float(row["score"]) for row in rows}


@pytest.mark.parametrize("model", MODELS)
def test_every_question_is_marked_as_published(model: str) -> None:
    published = read_published(FOLDER / MODELS[model])
    assert published.notes == ()  # marks and reported accuracies follow from predictions and labels
    marks = [mark for own in subjects_of(model).values() for mark in own["correct"]]
    assert [item.correct for item in report_of(model, "mmcu_readme").items] == marks
    assert len(marks) == 11845


@pytest.mark.parametrize("model", MODELS)
def test_numbers_of_questions(model: str) -> None:
    report = report_of(model, "mmcu_readme")
    assert {name: score.n for name, score in report.groups.items()} == {
        "医疗": 2819,
        "心理": 2000,
        "法律": 3695,
        "教育": 3331,
    }
    assert len(report.categories) == 25
    multi = {name: score.n for name, score in report.kinds.items() if name.startswith("multi ")}
    assert multi == {"multi 医疗": 194, "multi 心理": 465, "multi 法律": 1712, "multi 教育": 58}


@pytest.mark.parametrize("model", MODELS)
def test_sets_change_at_most_one_question_and_two_are_excluded(model: str) -> None:
    original, strict = report_of(model, "mmcu_readme"), report_of(model, "strict")
    assert right_of(strict) - right_of(original) in (0, 1)
    assert strict.excluded == {"the answer names an option that is not there": 2}
    assert right_of(report_of(model, "alpaca_cot")) == right_of(strict)


def test_several_answers_are_what_these_models_cannot_give() -> None:
    for model in MODELS:
        multi = report_of(model, "strict").kinds["multi"].score
        assert multi == 0 if model != "GPT-3.5-turbo" else multi > 0
    law = report_of("GPT-3.5-turbo", "strict").kinds["multi 法律"]
    assert (law.n, round(100 * law.score, 1)) == (1712, 4.9)


def test_the_odd_answers_are_named() -> None:
    odd = {
        "mmcu-心理-0504": "AC\n",
        "mmcu-心理-0106": "ABFD",
        "mmcu-心理-1539": "ABCF",
        "mmcu-寄生虫学-0096": "ACBD",
        "mmcu-教育_地理-0472": "D\u3000",
        "mmcu-教育_地理-0489": "D\u3000",
        "mmcu-教育_政治-0076": "c",
        "mmcu-法律-1559": "BCDD",
    }
    for model in MODELS:
        keys = {key.id: key for key in read_published(FOLDER / MODELS[model]).keys}
        assert {name: keys[name].answer for name in odd} == odd
        changed = "A" if model == "GPT-3.5-turbo" else "B"
        for protocol in mmcu.BENCHMARK.all_protocols():
            notes = "\n".join(report_of(model, protocol).notes)
            assert all(f"{name}: " in notes and repr(answer) in notes for name, answer in odd.items())
            assert "mmcu-传染病学-0124: published files disagree" in notes
            assert f"here it is '{changed}'" in notes
            assert len([note for note in notes.split("\n") if note.startswith("mmcu-")]) == len(odd) + 1


def test_files_rebuilt_as_the_scripts_wrote_them_give_the_same(tmp_path: Path) -> None:
    for subject, own in subjects_of("bloomz_3b").items():
        lines = [
            f"{pred}|||{label}|||{correct}\n"
            for pred, label, correct in zip(own["pred"], own["label"], own["correct"], strict=True)
        ]
        text = "".join(lines) + f"Average accuracy {own['reported_accuracy']} - {subject}\n"
        (tmp_path / subject).write_text(text, encoding="utf-8")
    rebuilt, single = read_published(tmp_path), read_published(FOLDER / MODELS["bloomz_3b"])
    assert rebuilt.notes == ()
    assert {one.id: one for one in rebuilt.keys} == {one.id: one for one in single.keys}
    assert {one.id: one.response for one in rebuilt.predictions} == {one.id: one.response for one in single.predictions}


@pytest.mark.parametrize("table", ["table3_llms_mmcu", "table7_datasets_mmcu"])
def test_averages_of_the_paper_follow_from_whole_numbers_of_right_answers(table: str) -> None:
    sizes = {"medicine": 2819, "psychology": 2000, "law": 3695, "education": 3331}
    with (SHARED / "paper_tables" / f"{table}.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["education"] != "-"]
    for row in rows:
        cells = [Cell(name, name, n, round(Fraction(row[name]) * n / 100)) for name, n in sizes.items()]
        assert [round(100 * alpaca_cot_discipline([cell]), 2) for cell in cells] == [float(row[name]) for name in sizes]
        assert round(100 * alpaca_cot_overall(cells), 2) == float(row["avg"])
    assert len(rows) >= 10


def test_the_record_that_alpaca_cot_ships(tmp_path: Path) -> None:
    path = FOLDER / "alpaca_cot_test_example.json"
    row = json.loads(path.read_text(encoding="utf-8"))[0]
    (question,) = read_questions(path)
    assert (question.text, question.joined, question.answer) == (row["题目"], row["选项"], row["答案"])
    assert question.letters == ("A", "B", "C", "D")
    (prompt,) = mmcu.ALPACA_COT.prepare(path)
    assert f"\n{row['题目']}\n{row['选项']}\n" in prompt.messages[-1]["content"]


def test_all_names_of_the_files_are_subjects() -> None:
    for model in MODELS:
        found = Counter(subject.discipline for name in subjects_of(model) if (subject := find_subject(name)))
        assert found == {"医疗": 15, "教育": 8, "心理": 1, "法律": 1}
