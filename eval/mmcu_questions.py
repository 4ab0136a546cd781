r"""MMCU's questions, from either shape in which the data goes about.

- A folder with `test/` and, for worked examples, `dev/`, each holding `.xlsx` files (`mmcu_workbooks.py`).
- One JSON file, an array or lines of `类别`, `题目`, `选项`, `答案`, as Alpaca-CoT has it; `选项` is one
  string `A:…\nB:…`.

Ids count a subject's questions from 0 in the order of the file: `mmcu-心理-0504`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.mmcu_rules import LETTERS, original_label, split_options, strict_option
from eval.mmcu_subjects import Subject, get_subject
from eval.mmcu_workbooks import WorkbookRow, read_workbooks
from eval.rows import read_rows
from ift.errors import UserError


@dataclass(frozen=True)
class Key:
    """What scoring needs to know of a question."""

    id: str
    subject: Subject
    answer: str
    """As found."""
    label: str
    """What `mmcu_readme` compares with."""
    letters: tuple[str, ...]
    """Of the options that have a text."""
    texts: tuple[str, ...] = ()
    """Of these options, in the same order; empty where they are not known."""


@dataclass(frozen=True)
class Question:
    """One question as found."""

    id: str
    subject: Subject
    source: str
    """Name of the workbook, whose worked examples are its own; empty for a JSON file."""
    text: str
    options: tuple[str | None, ...]
    """By column, A first, their labels still in front; `None` for an empty cell. Empty where a JSON row's options
    cannot be told apart."""
    joined: str
    """The options as one string, as Alpaca-CoT writes them."""
    answer: str

    @property
    def key(self) -> Key:
        """What scoring needs to know."""
        return Key(self.id, self.subject, self.answer, original_label(self.answer), self.letters, self._texts)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options that have a text."""
        return tuple(letter for letter, _ in self.filled_options)

    @property
    def _texts(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.filled_options)

    @property
    def filled_options(self) -> tuple[tuple[str, str], ...]:
        """Letter and text, without its label, of the options that have one."""
        named = zip(LETTERS, self.options, strict=False)
        texts = ((letter, strict_option(text, letter)) for letter, text in named if text is not None)
        return tuple((letter, text) for letter, text in texts if text)


def read_questions(path: Path) -> list[Question]:
    """Read all questions to be asked.

    Raises:
        UserError: nothing there, a file that cannot be read, a name that is no subject of MMCU, or no questions.
    """
    if path.is_dir():
        folder = path / "test" if (path / "test").is_dir() else path
        return _questions(read_workbooks(folder))
    if path.suffix == ".xlsx":
        raise UserError(f"--data: {path}: one file of MMCU's. Give the folder that holds it, or 'dev' and 'test'.")
    return _from_json(path)


def read_examples(path: Path) -> Mapping[str, list[Question]]:
    """Read the worked examples of `dev/` by workbook; of one with several sheets the first, as MMCU's scripts do.

    Raises:
        UserError: the data has none.
    """
    if not (path / "dev").is_dir():
        raise UserError(
            f"--shots: {path}: the worked examples are in the folder 'dev' of MMCU's own distribution, beside 'test'. "
            "Give the folder that holds both, or leave --shots out."
        )
    examples: dict[str, list[Question]] = {}
    for question in _questions(read_workbooks(path / "dev", first_sheet=True)):
        examples.setdefault(question.source, []).append(question)
    return examples


def _questions(rows: list[WorkbookRow]) -> list[Question]:
    ids = _Ids()
    return [
        Question(
            id=ids.next(row.subject),
            subject=row.subject,
            source=row.source,
            text=row.question,
            options=row.options,
            joined=_joined(row.options),
            answer=row.answer,
        )
        for row in rows
    ]


def _from_json(path: Path) -> list[Question]:
    ids = _Ids()
    questions = []
    for row in read_rows(path):
        subject = get_subject(f"{row.place}: 类别", row.text("类别"))
        joined = row.text("选项")
        questions.append(
            Question(
                id=ids.next(subject),
                subject=subject,
                source="",
                text=row.text("题目"),
                options=split_options(joined),
                joined=joined,
                answer=row.optional_text("答案", ""),
            )
        )
    return questions


def _joined(options: tuple[str | None, ...]) -> str:
    named = zip(LETTERS, options, strict=False)
    return "\n".join(f"{letter}:{strict_option(text, letter)}" for letter, text in named if text is not None)


class _Ids:
    """Counts the questions of each subject."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def next(self, subject: Subject) -> str:
        number = self._count[subject.name]
        self._count[subject.name] += 1
        return question_id(subject, number)


def question_id(subject: Subject, number: int) -> str:
    """Return the id of a subject's question, counted from 0."""
    return f"mmcu-{subject.name}-{number:04d}"
