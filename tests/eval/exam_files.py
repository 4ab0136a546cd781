"""Small exams as csv files, written for these tests, and predictions of them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ift.records import Prediction, PromptRecord

LETTERS = ("A", "B", "C", "D")
ODD = [" 下列{集合}中, 正确的是\n(换行)", "  $\\{x\\mid x>0\\}$ 等于 ", '他说"对", 是吗', "Ａ与A不同", "最后一题{0}{A}"]
"""Texts with braces, quotes, commas, line breaks and blanks around."""


def write_ceval(folder: Path, subjects: Mapping[str, str], *, split: str = "val", labelled: bool = True) -> Path:
    """Write C-Eval files; `subjects` gives one right letter per question; five examples go with them."""
    for subject, answers in subjects.items():
        names = ["id", "question", *LETTERS, *(["answer", "explanation"] if labelled else [])]
        rows = [
            _row(i, f"{subject}题{i}{ODD[i % 5]}", [letter, "解释"] if labelled else [])
            for i, letter in enumerate(answers)
        ]
        _write(folder / split / f"{subject}_{split}.csv", names, rows)
        examples = [_row(i, f"{subject}例{i}{ODD[i]}", [LETTERS[i % 4], f"1. 因为{i}。"]) for i in range(5)]
        _write(folder / "dev" / f"{subject}_dev.csv", ["id", "question", *LETTERS, "answer", "explanation"], examples)
    return folder


def write_cmmlu(folder: Path, subjects: Mapping[str, str]) -> Path:
    """Write CMMLU files, as `write_ceval`."""
    for subject, answers in subjects.items():
        rows = [_row(i, f"{subject}题{i}{ODD[i % 5]}", [letter]) for i, letter in enumerate(answers)]
        examples = [_row(i, f"{subject}例{i}{ODD[i]}", [LETTERS[i % 4]]) for i in range(5)]
        for split, own in (("test", rows), ("dev", examples)):
            _write(folder / split / f"{subject}.csv", ["", "Question", *LETTERS, "Answer"], own)
    return folder


def ranked(prompts: Sequence[PromptRecord], letters: str) -> list[Prediction]:
    """Return predictions that rank the given letter of each prompt first, in all of its spellings."""
    return [
        Prediction(
            prompt.id,
            "?",
            options=prompt.options,
            option_scores=tuple(-1.0 if option.strip() == letter else -3.0 for option in prompt.options),
            option_num_tokens=(1,) * len(prompt.options),
            reference=prompt.reference,
            meta=prompt.meta,
        )
        for prompt, letter in zip(prompts, letters, strict=True)
    ]


def written(prompts: Sequence[PromptRecord], responses: Sequence[str]) -> list[Prediction]:
    """Return predictions with these responses."""
    return [
        Prediction(prompt.id, "?", response=text, finish_reason="stop", reference=prompt.reference, meta=prompt.meta)
        for prompt, text in zip(prompts, responses, strict=True)
    ]


def _row(index: int, question: str, more: list[str]) -> list[str]:
    return [str(index), question, f"甲{index}", f"1,5{{{index}}}", " 丙 ", "DNA和维生素A", *more]


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
