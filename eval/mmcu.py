"""MMCU: 11,845 Chinese exam questions of medicine, law, psychology and education; one fifth has several right options.

Data: MMCU's own folder with `dev` and `test`, or Alpaca-CoT's JSON (`eval/mmcu_questions.py`). Three protocols:

- `strict`, the default. Options as they are, without the label in front of them. An answer is a set of letters; it is
  right when it is the right set. Labels are normalised, and a question whose answer names an option that is not there
  is excluded, by name. Single- and multi-answer questions are also reported apart (`kinds`). Modes: `generate`
  (default) reads the letters from the reply; `choice` ranks all sets of letters (15 for four options), for every
  question, so that nothing tells how many are right (`eval/answer_sets.py`). The headline is the mean over disciplines
  of the mean over subjects.
- `mmcu_readme`: prompt, option clean-up, reading, comparison and averages as in MMCU's own scripts and table
  (Felixgithub2017/MMCU @ bd5b2a1). Mode `without_letters_only` leaves out 请只给出答案的序号。 as was done for ChatGPT.
- `alpaca_cot`: the prompt of Alpaca-CoT (PhoebusSi/Alpaca-CoT @ bd46c44) and the averages of its paper (arXiv
  2310.07328). How replies were read was never published: the strict reading is used, and no question is left out.

Results that were published with labels are scored without data under each protocol (`eval/mmcu_published.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from eval.answer_sets import options_of_sets
from eval.benchmark import Benchmark
from eval.mmcu_prompts import (
    LETTERS_ONLY,
    READ_AND_CHOOSE,
    WITH_INPUT,
    Examples,
    alpaca_cot_instruction,
    original_block,
    strict_block,
)
from eval.mmcu_published import read_published
from eval.mmcu_questions import Key, Question, read_questions
from eval.mmcu_scoring import ranked_letters, score_alpaca_cot, score_readme, score_strict
from eval.report import Report
from ift.records import Prediction, PromptRecord

NAME = "mmcu"
SHOTS = (0, 5)


def prepare_generate(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
    """Yield one prompt per question, to be answered in writing."""
    examples = Examples(path, shots)
    for question in read_questions(path):
        yield _prompt(question, f"{READ_AND_CHOOSE}{LETTERS_ONLY}\n{examples.strict(question)}{strict_block(question)}")


def prepare_choice(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
    """Yield the same prompts, with every set of letters to be ranked."""
    examples = Examples(path, shots)
    for question in read_questions(path):
        text = f"{READ_AND_CHOOSE}{LETTERS_ONLY}\n{examples.strict(question)}{strict_block(question)}"
        yield _prompt(question, text, options=options_of_sets(ranked_letters(question.letters)))


def prepare_original(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
    """Yield the prompts of MMCU's scripts for BLOOMZ, ChatGLM and MOSS."""
    return _original(path, READ_AND_CHOOSE + LETTERS_ONLY, shots)


def prepare_without_letters_only(path: Path, *, shots: int = 0) -> Iterator[PromptRecord]:
    """Yield the prompts of MMCU's script for ChatGPT."""
    return _original(path, READ_AND_CHOOSE, shots)


def prepare_alpaca_cot(path: Path) -> Iterator[PromptRecord]:
    """Yield Alpaca-CoT's prompts; under template `alpaca` they are its very text."""
    for question in read_questions(path):
        yield _prompt(question, alpaca_cot_instruction(question), system=WITH_INPUT)


def _original(path: Path, request: str, shots: int) -> Iterator[PromptRecord]:
    examples = Examples(path, shots)
    for question in read_questions(path):
        yield _prompt(question, f"{request}\n{examples.original(question)}{original_block(question)}")


def _prompt(question: Question, text: str, *, options: tuple[str, ...] = (), system: str = "") -> PromptRecord:
    before = ({"role": "system", "content": system},) if system else ()
    return PromptRecord(
        id=question.id,
        messages=(*before, {"role": "user", "content": text}),
        options=options,
        reference=question.answer,
        meta={"category": question.subject.name, "group": question.subject.discipline}
        | ({"join_options": True} if options else {}),
    )


class Score(Protocol):
    """Scores predictions against the keys of their questions, in the same order."""

    def __call__(self, predictions: Sequence[Prediction], keys: Sequence[Key], *, notes: Iterable[str] = ()) -> Report:
        """Return the report."""
        ...


def _scores_data(score: Score) -> Callable[[Sequence[Prediction], Path], Report]:
    def score_data(predictions: Sequence[Prediction], path: Path) -> Report:
        keys = {question.id: question.key for question in read_questions(path)}
        return score(predictions, [keys[prediction.id] for prediction in predictions])

    return score_data


def _scores_published(score: Score) -> Callable[[Path], Report]:
    def score_published(path: Path) -> Report:
        published = read_published(path)
        return score(published.predictions, published.keys, notes=published.notes)

    return score_published


MMCU_README = Benchmark(
    name=NAME,
    protocol="mmcu_readme",
    version=1,
    description="MMCU as its own scripts run it; 0 or 5 shots; first letters A-D, compared as one string",
    prepare=prepare_original,
    score=_scores_data(score_readme),
    modes={"letters_only": prepare_original, "without_letters_only": prepare_without_letters_only},
    shots=SHOTS,
    published=_scores_published(score_readme),
    template="raw",
)
ALPACA_COT = Benchmark(
    name=NAME,
    protocol="alpaca_cot",
    version=1,
    description="MMCU with the prompt and the averages of Alpaca-CoT; template alpaca",
    prepare=prepare_alpaca_cot,
    score=_scores_data(score_alpaca_cot),
    published=_scores_published(score_alpaca_cot),
    template="alpaca",
)
BENCHMARK = Benchmark(
    name=NAME,
    protocol="strict",
    version=1,
    description="Chinese exam questions with one or several answers; --mode generate (default) or choice; 0 or 5 shots",
    prepare=prepare_generate,
    score=_scores_data(score_strict),
    modes={"generate": prepare_generate, "choice": prepare_choice},
    shots=SHOTS,
    protocols={one.protocol: one for one in (MMCU_README, ALPACA_COT)},
    published=_scores_published(score_strict),
)
