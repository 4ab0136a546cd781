"""Chinese-LLaMA-Alpaca's ten tasks: two or more systems' answers to the same prompt, scored by a judge in one message.

Data: a folder of the original example pages, or JSON lines of the same (`comparison_pages.py`). Only their prompts are
asked; published scores are averaged by `score` without `--data`, with the folder and a system as `--predictions`
(`q4_7b-13b/13B`). Conversations (DIALOGUE and a few others) are asked turn by turn (`conversations.py`); one that is
not answered to its end is left out, with a count. The user's turns are those of the page's first system, since they
differ between the systems of a page here and there.

Reported on the scale 0 to 100: a task's score is the mean of its items times 10. The headline `tasks_rounded` is the
published one: each task's score is rounded half up to a whole number first, and the plain mean of these is taken.
Scores are relative to the systems in the same message: only systems that were judged together can be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

from eval.aggregation import MACRO, Aggregation, Cell
from eval.benchmark import Benchmark, Judge, Systems
from eval.comparison_pages import Sample, read_comparison
from eval.conversations import answers_of, first_prompt
from eval.judge_reading import read_system_scores
from eval.judged import (
    Compared,
    judge_prompt,
    judged_outcome,
    read_replies,
    response_of,
    rotations,
    share_unread,
    side_by_side,
)
from eval.report import Outcome, Report, samples_of, summarize
from eval.rounding import half_up
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "chinese_llama_alpaca"
VERSION = 1

# The project's two wordings (examples/q4_7b-13b and all later ones, README.md), there without a format for the scores.
FIRST = (
    "The followings are {count} ChatGPT-like systems' outputs. Please rate an overall score on a ten point scale for "
    "each and give explanations to justify your scores."
)
LATER = (
    "The followings are ChatGPT-like systems' outputs based on a single prompt. Please rate an overall score on a ten "
    "point scale for each system and give a short explanation to justify your scores. Please try not to give the same "
    "scores for different system unless they are indistinguishable."
)
# Ours, so that the scores can be read.
FORMAT = (
    "After the explanations, end your reply with exactly these {count} lines, with a number from 0 to 10 in each place:"
)
_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Rounded:
    """The published average: tasks are rounded before their plain mean is taken."""

    digits: int
    """Decimals of a task's score: 0 in the first three comparisons, 1 in the last."""

    def __call__(self, cells: Sequence[Cell]) -> float:
        """Return the plain mean of the tasks' rounded scores."""
        return float(sum(self.task(cell) for cell in cells) / len(cells))

    def task(self, cell: Cell) -> Decimal:
        """Return a task's score as published, from values of 0 to 100 with few decimals."""
        # The sum is a float beside an exact decimal; a mean that ends in exactly a half must be rounded as that.
        return half_up(Fraction(cell.total).limit_denominator(10_000) / cell.n, self.digits)


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield the prompt of each sample; of a conversation its first turn."""
    for name, sample in _read(path).items():
        yield first_prompt(name, sample.turns, {"category": sample.task})


def ask(systems: Systems, path: Path, seed: int, *, wording: str) -> Iterator[PromptRecord]:
    """Yield one message to the judge per finished sample, with the answers of all systems."""
    samples = _read(path)
    items = [item for item in side_by_side(systems) if not _unfinished(item, samples[item.id])]
    for item, order in zip(items, rotations(list(systems), len(items), seed), strict=True):
        count = _COUNTS.get(len(order), str(len(order)))
        sample = samples[item.id]
        parts = [wording.format(count=count), f"Prompt:\n{sample.prompt or sample.turns[0]}"]
        parts += [f"System{number}:\n{_shown(item, name, sample)}" for number, name in enumerate(order, 1)]
        lines = [f"System{number}: <score>" for number in range(1, len(order) + 1)]
        parts.append("\n".join([FORMAT.format(count=count), *lines]))
        yield judge_prompt(item.id, "\n\n".join(parts), item=item.id, systems=order)


def score(replies: Sequence[Prediction], systems: Systems, path: Path, *, headline: Rounded) -> Mapping[str, Report]:
    """Read every system's score from every reply."""
    samples = _read(path)
    readings = read_replies(replies, read_system_scores)
    unfinished = {item.id: _unfinished(item, samples[item.id]) for item in side_by_side(systems)}
    reports = {}
    for name, predictions in systems.items():
        outcomes = [
            Outcome(one.id, samples[one.id].task, status="excluded", note=unfinished[one.id])
            if unfinished[one.id]
            else judged_outcome(readings, one.id, name, category=samples[one.id].task, scale=10)
            for one in predictions
        ]
        reports[name] = _report(outcomes, predictions, headline)
    return reports


def published(path: Path, *, headline: Rounded) -> Report:
    """Average the scores that a comparison was published with, of one system.

    Args:
        path: the pages or JSON lines, and below them the name of the system, such as `q4_7b-13b/13B`.
        headline: how tasks are rounded.

    Raises:
        UserError: the comparison has no such system.
    """
    samples, system = _read(path.parent), path.name
    missing = [name for name, sample in samples.items() if system not in sample.scores]
    if missing:
        known = ", ".join(next(iter(samples.values())).scores)
        raise UserError(
            f"--predictions: {missing[0]} has no score of '{system}'; its systems are {known}. Give the comparison "
            f"and one of them, as in {path.parent}/{known.split(', ')[0]}."
        )
    outcomes = [
        Outcome(name, sample.task, value=sample.scores[system] * 10, answer=f"{sample.scores[system]:g}")
        for name, sample in samples.items()
    ]
    predictions = [Prediction(name, "", sample.outputs.get(system, "")) for name, sample in samples.items()]
    return _report(outcomes, predictions, headline)


def _report(outcomes: Sequence[Outcome], predictions: Sequence[Prediction], headline: Rounded) -> Report:
    average = Aggregation("tasks_rounded", headline)
    report = summarize(outcomes, predictions, aggregations=(average, MACRO), notes=share_unread(outcomes))
    tasks = ", ".join(f"{cell.category} {headline.task(cell)}" for cell in (one.cell for one in samples_of(outcomes)))
    return replace(report, notes=(f"Tasks as the published tables round them: {tasks}.", *report.notes))


def _read(path: Path) -> dict[str, Sample]:
    return {f"{NAME}-{sample.task}-{sample.index:02d}": sample for sample in read_comparison(path)}


def _unfinished(item: Compared, sample: Sample) -> str:
    """Return why a conversation cannot be judged yet; empty where it can."""
    answered = min(len(answers_of(prediction)) for prediction in item.answers.values())
    return "conversation without an answer to every turn" if answered < len(sample.turns) else ""


def _shown(item: Compared, name: str, sample: Sample) -> str:
    """Return the answer, or the conversation as the pages write it: the user's lines behind `> `."""
    if len(sample.turns) == 1:
        return response_of(item.answers[name]).strip()
    pairs = zip(sample.turns, answers_of(item.answers[name]), strict=True)
    return "\n".join(f"> {turn}\n{answer.strip()}" for turn, answer in pairs)


def _benchmark(
    protocol: str, description: str, wording: str, digits: int, protocols: Mapping[str, Benchmark] | None = None
) -> Benchmark:
    headline = Rounded(digits)
    judge = Judge(partial(ask, wording=wording), partial(score, headline=headline), single=False)
    return Benchmark(
        NAME,
        protocol,
        VERSION,
        description,
        prepare,
        protocols=protocols or {},
        judge=judge,
        published=partial(published, headline=headline),
    )


_FIRST = _benchmark("first_wording", "the same in the words of the first comparison (4-bit 7B and 13B)", FIRST, 0)
_ONE_DECIMAL = _benchmark("one_decimal", "the same, tasks rounded to one decimal as in the last comparison", LATER, 1)
BENCHMARK = _benchmark(
    "later_wording",
    "ten tasks: all systems judged from 0 to 10 in one message; mean of rounded task scores of 100",
    LATER,
    0,
    protocols={one.protocol: one for one in (_FIRST, _ONE_DECIMAL)},
)
