"""Published replies and what their projects read from them: exam replies of GPT-4, judge replies, MMCU predictions."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from eval.extraction import extract_letters
from eval.extraction_legacy import gaokao_multi, gaokao_sub_questions, last_letter, mmcu_first_match
from eval.extraction_lists import extract_answers
from eval.ordering import extract_ordering, mean_rank, mean_rank_score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository"),
]
EXAMS = sorted((SHARED / "gaokao_gpt4_replies").glob("*_MCQs.json"))
JUDGED = SHARED / "llmzoo_judge_replies"
LETTERS = "ABCDEF"  # what occurs in MMCU's files


def exam(path: Path) -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["example"]
    return examples


def read(path: Path, reply: str, count: int) -> list[str]:
    if count > 1:
        return [answer.letters or "" for answer in extract_answers(reply, count)]
    found = extract_letters(reply, kind="multi" if "Physics" in path.name else "single")
    return [found.letters or ""]


@pytest.mark.parametrize("path", EXAMS, ids=lambda path: path.stem)
def test_exam_replies_are_read_as_published(path: Path) -> None:
    different = []
    for example in exam(path):
        found = read(path, example["model_output"], len(example["standard_answer"]))
        published = ["".join(sorted(answer)) for answer in example["model_answer"]] or [""]
        if found != published:
            different.append((example["index"], found, published))
    total = len(exam(path))
    print(f"{path.stem}: {total - len(different)} of {total} as published; different: {different}")
    # History 135: the reply says `A、B、C`, and GAOKAO-Bench takes the last letter of it.
    assert different == ([(135, ["ABC"], ["C"])] if "History" in path.name else [])


def test_exam_replies_agree_with_the_published_answers_in_97_percent() -> None:
    pairs = [
        (read(path, example["model_output"], len(example["standard_answer"])), example["model_answer"] or [""])
        for path in EXAMS
        for example in exam(path)
    ]
    assert len(pairs) == 136
    agreeing = sum(found == ["".join(sorted(answer)) for answer in published] for found, published in pairs)
    assert agreeing / len(pairs) >= 0.97


def test_thoughts_without_the_marked_answer_are_never_read_as_another() -> None:
    """The marked answer cut off, what is still read must be that answer: nothing is guessed from an analysis."""
    statuses: Counter[str] = Counter()
    for path in EXAMS:
        for example in exam(path):
            if len(example["standard_answer"]) == 1:
                thought = re.sub("【答案】.*", "", example["model_output"], flags=re.DOTALL)
                found = extract_letters(thought, kind="multi" if "Physics" in path.name else "single")
                statuses[found.status] += 1
                if found.letters:
                    assert [found.letters] == read(path, example["model_output"], 1), (path.name, example["index"])
    assert statuses["read"] >= 65  # of 127: the others declare nothing before the marker


@pytest.mark.parametrize("path", EXAMS, ids=lambda path: path.stem)
def test_rules_of_the_exam_are_reproduced(path: Path) -> None:
    for example in exam(path):
        reply, count = example["model_output"], len(example["standard_answer"])
        if "Geography" in path.name:
            assert gaokao_sub_questions(reply, count) == example["model_answer"]
        else:
            letters = (gaokao_multi if "Physics" in path.name else last_letter)(reply).letters
            assert ([letters] if letters else []) == example["model_answer"], example["index"]


def test_first_match_finds_the_published_answer_in_72_of_127_thoughts() -> None:
    """The number of evaluation.md: why this rule is for letters alone."""
    single = [item for path in EXAMS for item in exam(path) if len(item["standard_answer"]) == 1]
    found = sum([mmcu_first_match(item["model_output"]).letters] == item["model_answer"] for item in single)
    assert (found, len(single)) == (72, 127)


@pytest.mark.parametrize(
    "path", sorted((SHARED / "mmcu_predictions").glob("*_results_*.json")), ids=lambda path: path.stem
)
def test_letters_alone_are_read_the_same_by_every_rule(path: Path) -> None:
    subjects = json.loads(path.read_text(encoding="utf-8"))["subjects"]
    predictions = [prediction for subject in subjects.values() for prediction in subject["pred"]]
    assert len(predictions) == 11845
    for prediction, count in Counter(predictions).items():
        legacy, strict = mmcu_first_match(prediction), extract_letters(prediction, letters=LETTERS)
        assert (legacy.letters or "未成功回答") == prediction, count
        assert strict.letters == ("".join(sorted(legacy.letters)) if legacy.letters else None), count


def test_judge_replies_are_ordered_as_published() -> None:
    rows = [
        json.loads(line)
        for line in (JUDGED / "review_zh__zh__general__review.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    metric = json.loads((JUDGED / "review_zh__zh__general__metric.json").read_text(encoding="utf-8"))
    ranks: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found = extract_ordering(row["text"], len(row["order"])).ranks
        assert found == tuple(row["order"]), row["question_id"]
        for system, rank in zip(row["metadata"]["model_ids"], found or (), strict=True):
            ranks[system].append(rank)
    assert len(rows) == 70
    for system, published in metric.items():
        assert float(mean_rank(ranks[system])) == pytest.approx(published["order"], abs=1e-12)
        assert float(mean_rank_score(ranks[system])) == pytest.approx(published["score"], abs=1e-12)
