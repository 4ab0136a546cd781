"""Chinese-LLaMA-Alpaca's ten tasks: two or more systems' answers to the same prompt, scored by a judge in one message.

Data: a folder of the original example pages, or JSON lines of the same (`comparison_pages.py`); only their prompts are
asked, the published answers and scores serve for comparison. Conversations (DIALOGUE and a few others) are asked turn by
turn (`conversations.py`), their first user turn first; one that is not answered to its end is left out, with a count.
The user's turns are those of the page's first system, since the pages' turns differ between systems here and there.

Reported on the scale 0 to 100: a task's score is the mean of its items times 10. The headline `tasks_rounded` is the
published one: each task's score is rounded half up to a whole number first, and the plain mean of these is taken. Scores
are relative to the systems in the same message, so that only systems that were judged together can be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from eval.report import Outcome, Report, summarize
from eval.rounding import half_up
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


def tasks_rounded(cells: Sequence[Cell], *, digits: int) -> float:
    """Return the plain mean of the tasks' scores, each rounded half up first, as the published tables have it."""
    return float(sum(task_score(cell, digits=digits) for cell in cells) / len(cells))


def task_score(cell: Cell, *, digits: int) -> Fraction:
    """Return a task's score as published, from values of 0 to 100 with few decimals."""
    # The sum is a float next to an exact decimal; a mean that ends in exactly a half must be rounded as that.
    return Fraction(half_up(Fraction(cell.total).limit_denominator(10_000) / cell.n, digits))


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


def score(
    replies: Sequence[Prediction], systems: Systems, path: Path, *, headline: Aggregation
) -> Mapping[str, Report]:
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
        reports[name] = summarize(outcomes, predictions, aggregations=(headline, MACRO), notes=share_unread(outcomes))
    return reports


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
    headline = Aggregation("tasks_rounded", partial(tasks_rounded, digits=digits))
    judge = Judge(partial(ask, wording=wording), partial(score, headline=headline), single=False)
    return Benchmark(NAME, protocol, VERSION, description, prepare, protocols=protocols or {}, judge=judge)


_FIRST = _benchmark("first_wording", "the same in the words of the first comparison (4-bit 7B and 13B)", FIRST, 0)
_ONE_DECIMAL = _benchmark("one_decimal", "the same, tasks rounded to one decimal as in the last comparison", LATER, 1)
BENCHMARK = _benchmark(
    "later_wording",
    "ten tasks: all systems judged from 0 to 10 in one message; mean of rounded task scores of 100",
    LATER,
    0,
    protocols={one.protocol: one for one in (_FIRST, _ONE_DECIMAL)},
)
