"""Exams of many subjects with four options per question, read from csv files, a `datasets` folder or a hub.

What comes in: a folder with one csv per subject and split (`val/law_val.csv`), such a split's own folder, a folder that
`datasets` can load with subjects as configurations, or the id of one on a hub (`ceval/ceval-exam`, and with a split
`ceval/ceval-exam/test`). What goes out: the questions of the subjects that are there, and their worked examples.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ift.errors import UserError, unknown_name

LETTERS = ("A", "B", "C", "D")
_EXAMPLES = "dev"
"""The split of the worked examples, in both exams."""


@dataclass(frozen=True)
class Subject:
    """One subject of an exam."""

    chinese: str
    """As it stands in the prompts."""
    group: str


@dataclass(frozen=True)
class Question:
    """One question with its options, in their order, and its answer."""

    id: str
    """`<split>-<subject>-<index>`, the index counted from 0 in the subject's file."""
    subject: str
    text: str
    options: tuple[str, ...]
    answer: str
    """As the data says; not always one of `LETTERS`."""
    explanation: str = ""
    """Why the answer is right, where the data has it."""


@dataclass(frozen=True)
class Exam:
    """Where a benchmark keeps its questions, and which there are."""

    title: str
    """The benchmark's name."""
    subjects: Mapping[str, Subject]
    split: str
    """The split that is scored unless the path names another."""
    splits: Mapping[str, int | None]
    """The splits that can be scored and the number of their questions, where it is known."""
    file: str
    """Name of a csv file, from `subject` and `split`."""
    question: str
    """Column of the question."""
    answer: str
    """Column of the right letter."""
    explanation: str = ""
    """Column of the explanation; empty where there is none."""
    pointer: str = ""
    """What to do where a split has no answers, as a sentence."""


@dataclass(frozen=True)
class Paper:
    """What was found of an exam."""

    exam: Exam
    split: str
    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]]
    """Worked examples by subject; empty where none were asked for."""

    @property
    def missing(self) -> list[str]:
        """The exam's subjects that the data does not have."""
        found = {question.subject for question in self.questions}
        return [name for name in self.exam.subjects if name not in found]


def read_paper(exam: Exam, path: Path, *, shots: int) -> Paper:
    """Read the questions of one split, and the first `shots` worked examples of each of their subjects.

    Raises:
        UserError: nothing there, an unknown subject, a missing column or cell, a split without answers, or too few
            examples.
    """
    source, split = _source(exam, path)
    asked = source.read(split)
    questions = tuple(question for own in asked.values() for question in own)
    if not any(question.answer for question in questions):
        raise UserError(f"--data: {path}: the split '{split}' has no answers, so that nothing can score it.{_to(exam)}")
    examples = source.read(_EXAMPLES) if shots else {}
    for subject in asked if shots else ():
        if len(examples.get(subject, ())) < shots:
            raise UserError(
                f"--shots: {shots}: {path} has {len(examples.get(subject, ()))} worked examples ('{_EXAMPLES}') of "
                f"{subject}. Give fewer, or complete the data."
            )
    return Paper(exam, split, questions, {subject: tuple(examples[subject][:shots]) for subject in examples})


def _to(exam: Exam) -> str:
    return f" {exam.pointer}" if exam.pointer else ""


@dataclass(frozen=True)
class _Files:
    """Csv files in one folder per split."""

    exam: Exam
    root: Path

    def read(self, split: str) -> dict[str, list[Question]]:
        """Return the questions of a split's csv files by subject."""
        before, after = self.exam.file.format(subject="\n", split=split).split("\n")
        folder = self.root / split
        found: dict[str, list[Question]] = {}
        for path in sorted(folder.glob("[!.]*.csv")):
            name = path.name.removeprefix(before).removesuffix(after)
            if not path.name.endswith(after) or name not in self.exam.subjects:
                raise unknown_name(str(path), name, self.exam.subjects, hint=f"{self.exam.title} has one file each.")
            found[name] = _questions(self.exam, split, name, _rows(path))
        if not found:
            wanted = self.exam.file.format(subject="SUBJECT", split=split)
            raise UserError(f"--data: {folder}: no file {wanted} lies there. Give the folder that holds '{split}'.")
        return {name: found[name] for name in self.exam.subjects if name in found}


@dataclass(frozen=True)
class _Hub:
    """What `datasets` loads, subjects as configurations, from a folder or a hub."""

    exam: Exam
    name: str

    def read(self, split: str) -> dict[str, list[Question]]:
        """Return the questions of a split on the hub by subject."""
        import datasets

        try:
            there = set(datasets.get_dataset_config_names(self.name))
            loaded = {
                subject: datasets.load_dataset(self.name, subject, split=split)
                for subject in self.exam.subjects
                if subject in there
            }
        except Exception as error:  # whatever a hub, a cache or a loading script may raise
            raise UserError(
                f"--data: {self.name}: neither a folder with csv files nor a data set that `datasets` can load "
                f"({type(error).__name__}: {error}). Give the folder of {self.exam.title}, or its id on the hub."
            ) from error
        if not loaded:
            raise UserError(f"--data: {self.name}: none of its configurations is a subject of {self.exam.title}.")
        return {
            subject: _questions(
                self.exam, split, subject, ((f"{self.name} {subject} [{i}]", dict(row)) for i, row in enumerate(rows))
            )
            for subject, rows in loaded.items()
        }


def _source(exam: Exam, path: Path) -> tuple[_Files | _Hub, str]:
    """Return where the questions lie, and the split that the path names."""
    if path.is_file():
        raise UserError(f"--data: {path}: {exam.title} has one file per subject. Give the folder of all its files.")
    named = path.name in exam.splits
    if path.is_dir():
        if named and not (path / path.name).is_dir():
            return _Files(exam, path.parent), path.name
        if any((path / split).is_dir() for split in exam.splits):
            return _Files(exam, path), exam.split
        return _Hub(exam, str(path)), exam.split
    if named:
        return _Hub(exam, path.parent.as_posix()), path.name
    return _Hub(exam, path.as_posix()), exam.split


def _rows(path: Path) -> Iterable[tuple[str, dict[str, object]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield f"{path} line {reader.line_num}", dict(row)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Convert the file to UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a csv file ({error}).") from error


def _questions(exam: Exam, split: str, subject: str, rows: Iterable[tuple[str, dict[str, object]]]) -> list[Question]:
    return [_question(exam, f"{split}-{subject}-{i:04d}", subject, place, row) for i, (place, row) in enumerate(rows)]


def _question(exam: Exam, name: str, subject: str, place: str, row: Mapping[str, object]) -> Question:
    # A test file without answers has no such column, or an empty one.
    for column in (exam.question, *LETTERS):
        if row.get(column) is None:
            found = ", ".join(f"'{key}'" for key, value in row.items() if value is not None)
            raise UserError(f"{place}: a question of {exam.title} needs '{column}'; found {found or 'nothing'}.")
    if None in row:  # where csv puts the cells beyond the header's
        raise UserError(f"{place}: more cells than the header has. Put cells with commas or line breaks into quotes.")
    explanation = row.get(exam.explanation) if exam.explanation else ""
    return Question(
        id=name,
        subject=subject,
        text=str(row[exam.question]),
        options=tuple(str(row[letter]) for letter in LETTERS),
        answer=str(row.get(exam.answer) or "").strip(),
        explanation=str(explanation or ""),
    )
