"""Reads result files as MMCU published them: predictions and labels together, so that no data is needed to score them.

Two shapes: the original folder with one file per subject, a line `prediction|||label|||True` per question and at last
`Average accuracy 0.xxx - subject`; and one JSON file `{"model", "setting", "subjects": {name: {"reported_accuracy",
"pred": [], "label": [], "correct": []}}}` with the same. Labels stand there as the run cleaned them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from eval.extraction_legacy import mmcu_first_match
from eval.mmcu_questions import Key, question_id
from eval.mmcu_subjects import Subject, get_subject
from ift.errors import UserError
from ift.records import Prediction

# Predictions and labels may hold line breaks.
_LINE = re.compile(r"(.*?)\|\|\|(.*?)\|\|\|(True|False)(?:\n|$)", flags=re.DOTALL)
_LAST = re.compile(r"\s*Average accuracy (\d+(?:\.\d+)?|nan) - [^\n]*\s*")
_KEYS = ("pred", "label", "correct")
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Published:
    """What result files hold."""

    predictions: tuple[Prediction, ...]
    keys: tuple[Key, ...]
    """In the same order."""
    notes: tuple[str, ...]
    """Where a file does not agree with itself."""


@dataclass(frozen=True)
class _Result:
    """One subject's results."""

    place: str
    subject: Subject
    predictions: tuple[str, ...]
    labels: tuple[str, ...]
    correct: tuple[bool, ...]
    reported: Fraction | None


def read_published(path: Path) -> Published:
    """Read one model's published results.

    Args:
        path: a JSON file, a folder of files per subject, or one that holds nothing but such a folder.

    Raises:
        UserError: neither of these, a name that is no subject, or a file whose parts do not fit together.
    """
    results = list(_from_folder(path) if path.is_dir() else _from_json(path))
    names = [result.subject.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not results or twice:
        found = f"{', '.join(twice)} twice" if twice else "no subject"
        raise UserError(f"--predictions: {path}: one result per subject is needed; found {found}.")
    keys = [key for result in results for key in _keys(result)]
    texts = [text for result in results for text in result.predictions]
    predictions = [
        Prediction(key.id, "", response=text, reference=key.answer) for key, text in zip(keys, texts, strict=True)
    ]
    notes = tuple(note for result in results for note in _notes(result))
    return Published(tuple(predictions), tuple(keys), notes)


def _keys(result: _Result) -> Iterator[Key]:
    for number, label in enumerate(result.labels):
        yield Key(question_id(result.subject, number), result.subject, label, label, _LETTERS)


def _notes(result: _Result) -> Iterator[str]:
    """Yield where flags or the accuracy do not follow from predictions and labels."""
    right = [
        mmcu_first_match(text).letters == label for text, label in zip(result.predictions, result.labels, strict=True)
    ]
    changed = sum(one != other for one, other in zip(right, result.correct, strict=True))
    if changed:
        yield f"{result.place}: {changed} of {len(right)} questions are marked otherwise than their labels say."
    if result.reported is not None and abs(Fraction(sum(right), len(right)) - result.reported) > Fraction(1, 2000):
        yield (
            f"{result.place}: accuracy {float(result.reported):.3f} is reported; {sum(right)} of {len(right)} "
            "questions are right."
        )


def _from_folder(folder: Path) -> Iterator[_Result]:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if len(entries) == 1 and entries[0].is_dir():
        yield from _from_folder(entries[0])
        return
    json_files = [path.name for path in entries if path.suffix == ".json"]
    if json_files:
        raise UserError(
            f"--predictions: {folder}: a folder with {len(json_files)} JSON files. Published results are one such "
            f"file: give {folder / json_files[0]}, or the folder of text files that MMCU's scripts wrote for one model."
        )
    for path in entries:
        if path.is_dir():
            raise UserError(f"--predictions: {path}: found a folder beside others. Give the folder of one run.")
        yield _parse(path, get_subject(f"--predictions: {path.parent}: file name", path.name))


def _parse(path: Path, subject: Subject) -> _Result:
    text = _read(path)
    rows: list[tuple[str, str, str]] = []
    position = 0
    while not _LAST.fullmatch(text, position):
        found = _LINE.match(text, position)
        if not found:
            number = text.count("\n", 0, position) + 1
            raise UserError(
                f"--predictions: {path} line {number}: expected 'prediction|||label|||True' or, at last, "
                "'Average accuracy 0.xxx - subject'. Give the file as MMCU's scripts wrote it."
            )
        rows.append((found[1], found[2], found[3]))
        position = found.end()
    last = _LAST.fullmatch(text, position)
    assert last is not None
    if not rows:
        raise UserError(f"--predictions: {path}: no predictions above the average accuracy.")
    return _Result(
        place=str(path),
        subject=subject,
        predictions=tuple(row[0] for row in rows),
        labels=tuple(row[1] for row in rows),
        correct=tuple(row[2] == "True" for row in rows),
        reported=_fraction(last[1]),
    )


def _from_json(path: Path) -> Iterator[_Result]:
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"--predictions: {path} line {error.lineno}: not valid JSON ({error.msg}). Predictions of `ift predict` "
            "need --data; published results are one JSON object with 'subjects', or a folder."
        ) from error
    subjects = content.get("subjects") if isinstance(content, dict) else None
    if not isinstance(subjects, dict):
        raise UserError(
            f"--predictions: {path}: published results are a JSON object with 'subjects'; found none. Give --data "
            "where these are predictions of `ift predict`."
        )
    for name, own in subjects.items():
        yield _subject_of_json(f"{path}: subjects: {name}", name, own)


def _subject_of_json(place: str, name: str, own: object) -> _Result:
    subject = get_subject(f"--predictions: {place}", name)
    lists = [own.get(key) for key in _KEYS] if isinstance(own, Mapping) else []
    pred, label, correct = (one if isinstance(one, list) else [] for one in (lists or [None] * 3))
    typed = all(isinstance(one, str) for one in (*pred, *label)) and all(isinstance(one, bool) for one in correct)
    if not pred or not len(pred) == len(label) == len(correct) or not typed:
        raise UserError(
            f"--predictions: {place}: needs lists of equal length: texts 'pred', texts 'label', booleans 'correct'; "
            f"found {len(pred)}, {len(label)} and {len(correct)}."
        )
    reported = own.get("reported_accuracy") if isinstance(own, Mapping) else None
    accuracy = None if reported is None else _fraction(str(reported))
    return _Result(place, subject, tuple(pred), tuple(label), tuple(correct), accuracy)


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--predictions: {path}: not UTF-8 (byte {error.start}). Convert the file to UTF-8.") from error
