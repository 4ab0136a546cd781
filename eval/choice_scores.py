"""The score of an exam: which letter was answered, and the averages over subjects."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.aggregation import MACRO, Aggregation
from eval.choice_exam import LETTERS, Exam, Paper, Question, read_paper
from eval.extraction import extract_letters
from eval.likelihood import Option, choose, spelled
from eval.report import Outcome, Report, summarize
from ift.errors import UserError
from ift.records import Prediction

_NEXT_REASONING = "答案：让我们一步一步思考"
"""How the answer to C-Eval's next question begins."""


@dataclass(frozen=True)
class Ranking:
    """How the likelihoods of a letter's spellings become its score: their likelihoods are added up."""

    blanks: tuple[str, ...] = ("", " ")
    """What stands before a letter, one spelling each."""
    multiplies: bool = False
    """Whether the likelihoods are multiplied instead, which is to add up log-likelihoods."""
    first_of_ties: bool = False
    """Whether letters of equal score are decided for the first, as `argmax` does, rather than reported as tied."""

    @property
    def options(self) -> tuple[Option, ...]:
        """Every spelling of A, then of B and so on."""
        return spelled(LETTERS, blanks=self.blanks)

    def best(self, prediction: Prediction) -> list[str]:
        """Return the letters of the highest score: one, or several that are tied."""
        choice = choose(prediction, self.options)
        if not self.multiplies:
            return list(choice.best)
        scored = list(zip(self.options, prediction.option_scores, strict=True))
        sums = {letter: math.fsum(own for option, own in scored if option.answer == letter) for letter in LETTERS}
        return [letter for letter, value in sums.items() if value == max(sums.values())]


@dataclass(frozen=True)
class Marking:
    """How a protocol turns answers into a report."""

    ranking: Ranking
    aggregations: tuple[Aggregation, ...]
    """The headline first; macro and micro stand in every report."""
    group_score: Aggregation
    """How a group's score is made of its subjects."""
    part: str = ""
    """Name of a set of subjects across the groups that is reported apart; empty where there is none."""
    part_subjects: frozenset[str] = frozenset()


def scoring(exam: Exam, marking: Marking) -> Callable[[Sequence[Prediction], Path], Report]:
    """Return the function that scores predictions of an exam."""

    def score(predictions: Sequence[Prediction], path: Path) -> Report:
        paper = read_paper(exam, path, shots=0)
        questions = {question.id: question for question in paper.questions}
        outcomes = [_outcome(prediction, questions[prediction.id], paper, marking) for prediction in predictions]
        report = summarize(
            outcomes,
            predictions,
            aggregations=marking.aggregations,
            clustered=True,
            group_score=marking.group_score,
            notes=[*_completeness(paper), *_tie_notes(marking, predictions)],
        )
        part = [outcome for outcome in outcomes if outcome.counts and outcome.kinds]
        if not part:
            return report
        part_macro = summarize(part, predictions, aggregations=(MACRO,), clustered=True).aggregates["macro"]
        return replace(report, aggregates={**report.aggregates, f"{marking.part}_macro": part_macro})

    return score


def read_letter(response: str, reading: str, options: Sequence[str] = ()) -> str | None:
    """Return the letter that a response names, several that it names together, or `None`; nothing is guessed.

    A model that was shown worked examples may go on with a question of its own, which must not answer for the one that
    was asked: what a response begins with counts, up to the first blank line, where it is a letter; after reasoning,
    the reasoning counts, up to the next one.

    Args:
        response: the generated text.
        reading: `letter`, or `cot` for an answer after reasoning.
        options: the texts of A to D, one of which may stand for its letter.
    """
    if reading == "cot":
        begun = response.find(_NEXT_REASONING, 1)
        return extract_letters(response if begun < 0 else response[:begun], kind="single", options=options).letters
    first = extract_letters(response.strip().split("\n\n")[0], kind="single")
    if first.rule in ("letters_only", "leading_letter"):
        return first.letters
    return extract_letters(response, kind="single", options=options).letters


def _outcome(prediction: Prediction, question: Question, paper: Paper, marking: Marking) -> Outcome:
    group = paper.exam.subjects[question.subject].group
    kinds = (marking.part,) if question.subject in marking.part_subjects else ()
    found = Outcome(prediction.id, question.subject, group=group, kinds=kinds)
    if question.answer not in LETTERS:
        reason = f"answer is none of A to D: '{question.answer}'" if question.answer else "no answer in the data"
        return replace(found, status="excluded", note=reason)
    if prediction.options:
        best = marking.ranking.best(prediction)
        if len(best) > 1 and not marking.ranking.first_of_ties:
            return replace(found, status="tied", answer="/".join(best))
        return replace(found, correct=best[0] == question.answer, answer=best[0])
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has neither 'option_scores' nor a 'response'.")
    letter = read_letter(prediction.response, str(prediction.meta.get("reading", "letter")), question.options)
    if letter is None:
        return replace(found, status="unparsed", note=prediction.response)
    return replace(found, correct=letter == question.answer, answer=letter)


def _completeness(paper: Paper) -> list[str]:
    """Return which part of the benchmark was there."""
    exam, missing = paper.exam, paper.missing
    there, known = len(exam.subjects) - len(missing), exam.splits[paper.split]
    of_known = f" of {known}" if known else ""
    notes = [
        f"Split '{paper.split}' of the data: {there} of {len(exam.subjects)} subjects, "
        f"{len(paper.questions)}{of_known} questions."
    ]
    if missing:
        notes.append(
            f"A part of {exam.title}, not the benchmark: {len(missing)} subjects are not in the data: "
            f"{', '.join(missing)}."
        )
    return notes


def _tie_notes(marking: Marking, predictions: Sequence[Prediction]) -> list[str]:
    if not marking.ranking.first_of_ties:
        return []
    tied = sum(len(marking.ranking.best(one)) > 1 for one in predictions if one.options)
    return [f"{tied} questions have several best options; the first counts, as argmax takes it."] if tied else []
