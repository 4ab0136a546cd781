"""Prompts without content beside questions whose options are ranked, for the rules that calibrate.

What comes in: questions, and the texts that ask nothing instead of them. What goes out: all questions, and behind them
one prompt per question and such text, with the question's own options, as the texts of these differ. They are ordinary
prompts; their `meta` says whose they are (`baseline_of`, an id) and for what (`baseline`, a calibration). They count
nowhere, and a sample holds those of its own questions (`eval/matching.py`).

Prompts of one text stand together, so that `ift predict` runs that text once for dozens of them, and for each little
more than the options' tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.likelihood import Calibration, Chooser, Option
from ift.records import Prediction, PromptRecord

OF = "baseline_of"
_FOR = "baseline"


@dataclass(frozen=True)
class Calibrated:
    """A question and what asks nothing in its place."""

    prompt: PromptRecord
    """With its options."""
    texts: Mapping[Calibration, Sequence[str]]
    """One text for `pmi`, one or more for `contextual`; each the whole message."""


def with_baselines(questions: Iterable[Calibrated]) -> Iterator[PromptRecord]:
    """Yield the prompts of all questions, then their prompts without content, those of equal text together."""
    groups: dict[tuple[Calibration, str], list[PromptRecord]] = {}
    for question in questions:
        yield question.prompt
        for calibration, texts in question.texts.items():
            for number, text in enumerate(texts):
                own = _baseline(question.prompt, calibration, number, text)
                groups.setdefault((calibration, text), []).append(own)
    for group in groups.values():
        yield from group


def _baseline(question: PromptRecord, calibration: Calibration, number: int, text: str) -> PromptRecord:
    return PromptRecord(
        id=f"{question.id}/{calibration}-{number}",
        messages=({"role": "user", "content": text},),
        options=question.options,
        meta={**question.meta, OF: question.id, _FOR: calibration},
    )


def questions_of(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Return the predictions that answer questions."""
    return [one for one in predictions if OF not in one.meta]


def choosers(predictions: Sequence[Prediction], options: Mapping[str, Sequence[Option]]) -> dict[str, Chooser]:
    """Return what chooses an answer for every question, by its id.

    Args:
        predictions: of questions and their prompts without content.
        options: of every question, by its id, as they were asked.

    Raises:
        UserError: a prediction's options are others, or a score is missing or no number.
    """
    baselines: dict[str, dict[Calibration, list[Prediction]]] = {}
    for one in predictions:
        if OF in one.meta:
            baselines.setdefault(one.meta[OF], {}).setdefault(one.meta[_FOR], []).append(one)
    return {
        one.id: Chooser(one, options[one.id], baselines.get(one.id, {})) for one in predictions if OF not in one.meta
    }
