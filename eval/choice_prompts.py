"""The prompts of an exam: a line that names the subject, worked examples, and the question, as one user message."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.baselines import Calibrated, with_baselines
from eval.benchmark import Prepare
from eval.choice_exam import LETTERS, Exam, Paper, Question, read_paper
from eval.likelihood import CONTENT_FREE, Option, texts
from eval.scorings import lettered_and_full
from ift.records import Json, PromptRecord

OPTIONS = "\nA. {A}\nB. {B}\nC. {C}\nD. {D}"
"""The four options, as all protocols write them."""


@dataclass(frozen=True)
class Wording:
    """The texts of a protocol, with fields in braces: `subject`; `question`, `A` to `D`, `answer`, `explanation`."""

    header: str
    """Stands before everything; `subject` is the Chinese name."""
    question: str
    """The question that is asked; the answer follows at once."""
    shot: str
    """A worked example, with what parts it from the next."""
    header_alone: bool = True
    """Whether the header stands there without worked examples too."""
    strips: bool = False
    """Whether white space around a question's text is left out."""

    def prompt(self, subject: str, examples: Sequence[Question], question: Question) -> str:
        """Return the whole text."""
        header = self.header.format(subject=subject) if examples or self.header_alone else ""
        shots = "".join(self._fill(self.shot, example) for example in examples)
        return header + shots + self._fill(self.question, question)

    @property
    def premise(self) -> str:
        """What stands between options and answer, which asks nothing by itself."""
        return self.question.rpartition("{D}")[2].lstrip("\n")

    def _fill(self, template: str, question: Question) -> str:
        return template.format(
            question=question.text.strip() if self.strips else question.text,
            **dict(zip(LETTERS, question.options, strict=True)),
            answer=question.answer,
            explanation=question.explanation,
        )


def asking(exam: Exam, wording: Wording, *, options: Sequence[Option] = (), reading: str = "letter") -> Prepare:
    """Return the function that makes the prompts of an exam.

    Args:
        exam: what is asked.
        wording: how.
        options: what is to be ranked; empty to have the model write.
        reading: how the letter is to be found in what it writes; goes into `meta`.
    """
    ranked = texts(options)

    def prepare(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
        paper = read_paper(exam, path, shots=shots)
        for question in paper.questions:
            text = wording.prompt(*_subject(paper, question), question)
            meta: dict[str, Json] = {"join_options": True} if ranked else {"reading": reading}
            yield _prompt(question, text, options=ranked, meta=meta)

    return prepare


def asking_for_every_rule(exam: Exam, wording: Wording) -> Prepare:
    """Return the function that makes the prompts of an exam for all of `eval.likelihood.SCORINGS`.

    A content-free input stands in the place of the question and of each of its options; header and worked examples stay
    before it.
    """

    def calibrated(paper: Paper) -> Iterator[Calibrated]:
        for question in paper.questions:
            before = _subject(paper, question)
            free = [replace(question, text=text, options=(text,) * len(LETTERS)) for text in CONTENT_FREE]
            text, options = wording.prompt(*before, question), texts(every_option(question))
            yield Calibrated(
                _prompt(question, text, options=options, meta={"join_options": True}),
                {"pmi": (wording.premise,), "contextual": [wording.prompt(*before, one) for one in free]},
            )

    def prepare(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
        return with_baselines(calibrated(read_paper(exam, path, shots=shots)))

    return prepare


def every_option(question: Question) -> tuple[Option, ...]:
    """Return letters and full texts of a question's options, each in both spellings.

    Raises:
        UserError: an option has no text.
    """
    return lettered_and_full(question.id, dict(zip(LETTERS, question.options, strict=True)))


def _subject(paper: Paper, question: Question) -> tuple[str, Sequence[Question]]:
    """Return the Chinese name and the worked examples of a question's subject."""
    return paper.exam.subjects[question.subject].chinese, paper.examples.get(question.subject, ())


def _prompt(question: Question, text: str, *, options: tuple[str, ...], meta: dict[str, Json]) -> PromptRecord:
    return PromptRecord(
        id=question.id,
        messages=({"role": "user", "content": text},),
        options=options,
        reference=question.answer,
        meta={"category": question.subject, **meta},
    )
