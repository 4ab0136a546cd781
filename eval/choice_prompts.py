"""The prompts of an exam: a line that names the subject, worked examples, and the question, as one user message."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmark import Prepare
from eval.choice_exam import LETTERS, Exam, Question, read_paper
from eval.likelihood import Option, texts
from ift.records import PromptRecord

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

    def prompt(self, subject: str, question: Question, examples: Sequence[Question]) -> str:
        """Return the whole text."""
        header = self.header.format(subject=subject) if examples or self.header_alone else ""
        shots = "".join(self._fill(self.shot, example) for example in examples)
        return header + shots + self._fill(self.question, question)

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
            text = wording.prompt(
                exam.subjects[question.subject].chinese, question, paper.examples.get(question.subject, ())
            )
            yield PromptRecord(
                id=question.id,
                messages=({"role": "user", "content": text},),
                options=ranked,
                reference=question.answer,
                meta={"category": question.subject} | ({"join_options": True} if ranked else {"reading": reading}),
            )

    return prepare
