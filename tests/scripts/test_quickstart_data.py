"""The quickstart's bundled data: reproducible, split cleanly, and shuffled only where shuffling is asked for."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

SCRIPTS = ROOT / "scripts" / "quickstart"
DATA = SCRIPTS / "data"
sys.path.insert(0, str(SCRIPTS))

from make_data import QUIZ_INSTRUCTION, is_held_out, shuffle_responses  # noqa: E402


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return load("train.json")


def test_the_generator_writes_exactly_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / "make_data.py"), "--output", str(tmp_path)], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in DATA.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name


def test_held_out_records_are_about_other_items(train: list[dict[str, Any]]) -> None:
    held_out = load("heldout.json")
    assert len(held_out) >= 150
    asked = {(record["category"], record["instruction"], record["input"]) for record in train}
    assert not asked & {(record["category"], record["instruction"], record["input"]) for record in held_out}
    # The item decides the side, whatever the wording and the language of the instruction.
    assert all(is_held_out(record["item"]) for record in held_out)
    assert not any(is_held_out(record["item"]) for record in train if record["category"] != "quiz")


def test_no_document_shows_the_answer_to_a_held_out_list() -> None:
    documents = {json.loads(line)["text"] for line in (DATA / "text.jsonl").read_text(encoding="utf-8").splitlines()}
    lists = [r for r in load("heldout.json") if r["category"] in ("repeat", "backwards", "first", "last", "count")]
    begun = {document.split("\n")[0] for document in documents}
    assert not begun & {record["input"] for record in lists}


def test_documents_are_no_instructions(train: list[dict[str, Any]]) -> None:
    text = (DATA / "text.jsonl").read_text(encoding="utf-8")
    for record in train:
        if record["category"] != "quiz":
            assert json.dumps(record["instruction"], ensure_ascii=False)[1:-1] not in text


def test_the_quiz_is_new_balanced_and_in_mmcus_layout(train: list[dict[str, Any]]) -> None:
    quiz = load("quiz.json")
    letters = Counter(item["答案"] for item in quiz)
    assert set(letters) == set("ABCD") and max(letters.values()) - min(letters.values()) <= 1
    known = {record["instruction"] for record in train}
    for item in quiz:
        assert set(item) == {"类别", "题目", "选项", "答案"}
        assert [line[:2] for line in item["选项"].split("\n")] == ["A:", "B:", "C:", "D:"]
        assert QUIZ_INSTRUCTION.format(question=item["题目"], options=item["选项"]) not in known


def test_both_languages_are_there(train: list[dict[str, Any]]) -> None:
    chinese = sum(any("一" <= c <= "龥" for c in record["instruction"]) for record in train) / len(train)
    assert 0.3 < chinese < 0.8


def test_shuffling_moves_responses_and_nothing_else(train: list[dict[str, Any]]) -> None:
    shuffled = shuffle_responses(train, seed=0)
    assert Counter(r["output"] for r in shuffled) == Counter(r["output"] for r in train)
    assert [{**r, "output": ""} for r in shuffled] == [{**r, "output": ""} for r in train]
    assert sum(a["output"] != b["output"] for a, b in zip(shuffled, train, strict=True)) > 0.8 * len(train)
