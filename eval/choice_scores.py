"""The score of an exam: which letter was answered, and the averages over subjects."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.aggregation import MACRO, Aggregation
from eval.choice_exam import LETTERS, Exam, Paper, Question, read_paper
from eval.choice_prompts import spelled
from eval.extraction import extract_letter
from eval.report import Outcome, Report, summarize
from ift.errors import UserError
from ift.records import Prediction


@dataclass(frozen=True)
class Ranking:
    """How the likelihoods of a letter's spellings become the letter's score."""

    spellings: tuple[str, ...]
    """With `{}` for the letter."""
    combine: Callable[[Sequence[float]], float]
    """From the spellings' summed log-likelihoods to the letter's score."""
    first_of_ties: bool = False
    """Whether letters of equal score are decided for the first, as `argmax` does, rather than reported as tied."""

    def best(self, prediction: Prediction) -> list[str]:
        """Return the letters of the highest score: one, or several that are tied."""
        options, scores = spelled(self.spellings), prediction.option_scores
        if prediction.options != options or len(scores) != len(options) or any(map(math.isnan, scores)):
            raise UserError(
                f"--predictions: '{prediction.id}' needs one score for each of the options {list(options)}; "
                f"found options {list(prediction.options)} with scores {list(scores)}."
            )
        per_letter = len(self.spellings)
        letters = {
            letter: self.combine(scores[i * per_letter : (i + 1) * per_letter]) for i, letter in enumerate(LETTERS)
        }
        return [letter for letter, value in letters.items() if value == max(letters.values())]


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the logarithm of the summed likelihoods of some log-likelihoods."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


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


def read_letter(response: str, reading: str) -> str | None:
    """Return the letter that a response names, or `None`; nothing is guessed.

    Args:
        response: the generated text.
        reading: `letter`: the letter stands alone before the first blank line (what follows explains it, or is the
            next question that a model invents after worked examples), or is declared anywhere; `cot`: the last
            所以答案是X。 or 答案是X。, else as `letter`.
    """
    if reading == "cot":
        named = re.findall(r"答案[是为]\s*[:：]?\s*([ABCD])(?![A-Za-z])", response)
        if named:
            return str(named[-1])
    return extract_letter(response.strip().split("\n\n")[0], LETTERS) or extract_letter(response, LETTERS)


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
    letter = read_letter(prediction.response, str(prediction.meta.get("reading", "letter")))
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
