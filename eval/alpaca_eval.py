"""AlpacaEval: 805 English instructions, each answer compared by a judge with that of a baseline.

Data: JSON records of `instruction`, `output` (the baseline's) and optional `dataset`, as AlpacaEval's files of
reference outputs. The judge sees both answers, in an order that the seed decides, and names the better one. Answers
that are identical are not shown to it: they count as a draw.

Reported in percent: `win_rate` is the mean of the preferences less 1, `discrete_win_rate` the share of wins and half of
the draws; they are equal for a judge that answers with one word. Preferences that AlpacaEval itself wrote, or that lie
in a CSV file, are scored without `--data` (`win_rates.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.aggregation import Aggregation, micro
from eval.benchmark import Benchmark, Judge, Systems
from eval.judge_reading import Reading, read_choice
from eval.judged import judge_prompt, read_replies, response_of, rotations
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from eval.win_rates import Preference, read_preferences, win_rate
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "alpaca_eval"
NUM_INSTRUCTIONS = 805
BASELINE = "(baseline)"
WIN_RATE = Aggregation("win_rate", micro)

# Ours; AlpacaEval 2.0 asks for the same two one-token names and takes their log-probabilities as the preference.
MESSAGE = """Two assistants, called m and M, answered the same instruction. Decide which answer a careful human reader \
would prefer: the one that follows the instruction better and is more correct, helpful and clear. That an answer comes \
first or is longer is no merit.

## Instruction

{instruction}

## Answer of m

{first}

## Answer of M

{second}

## Verdict

Reply with the name of the assistant with the better answer and nothing else: m or M."""
FIRST, SECOND, TIE = ("m", "A"), ("M", "B"), ("C",)
"""What the judge may call the assistants: as this message does, or as pairwise prompts elsewhere do, `[[A]]`."""


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per instruction."""
    for row in read_rows(path):
        message = {"role": "user", "content": row.text("instruction")}
        yield PromptRecord(row.id(NAME), (message,), meta={"category": _dataset(row)})


def ask(systems: Systems, path: Path, seed: int) -> Iterator[PromptRecord]:
    """Yield one message to the judge per system and instruction whose answer is not the baseline's own."""
    rows = {row.id(NAME): row for row in read_rows(path)}
    for name, predictions in systems.items():
        if name == BASELINE:
            raise UserError(f"--predictions: '{name}' is what the baseline is called. Name the system otherwise.")
        for one, order in zip(predictions, rotations((name, BASELINE), len(predictions), seed), strict=True):
            row = rows[one.id]
            if _identical(one, row):
                continue
            answers = {name: response_of(one), BASELINE: row.text("output")}
            text = MESSAGE.format(
                instruction=row.text("instruction"), first=answers[order[0]], second=answers[order[1]]
            )
            yield judge_prompt(f"{name}/{one.id}", text, item=one.id, systems=order)


def score(replies: Sequence[Prediction], systems: Systems, path: Path) -> Mapping[str, Report]:
    """Read which answer each reply prefers."""
    rows = {row.id(NAME): row for row in read_rows(path)}
    reports = {}
    for name, predictions in systems.items():
        own = [reply for reply in replies if name in reply.meta["systems"]]
        readings = read_replies(own, lambda reply, _: _both(reply))
        preferences = []
        for one in predictions:
            row = rows[one.id]
            lengths = len(row.text("output")), len(response_of(one))
            if _identical(one, row):
                preferences.append(Preference(one.id, _dataset(row), 1.5, lengths))
            elif (one.id, name) not in readings:
                raise UserError(f"--judgements: no reply about '{one.id}' of '{name}'. Let `judge` finish.")
            else:
                value = readings[one.id, name].value
                preferences.append(Preference(one.id, _dataset(row), None if value is None else 1 + value, lengths))
        report = _report(preferences, predictions)
        reports[name] = replace(report, notes=(*report.notes, *_first_places(own)))
    return reports


def published(path: Path) -> Report:
    """Score preferences that AlpacaEval or another tool wrote."""
    preferences = read_preferences(path)
    report = _report(preferences, [Prediction(one.id, "", "") for one in preferences])
    if len(preferences) == NUM_INSTRUCTIONS:
        return report
    part = f"{len(preferences)} of {NUM_INSTRUCTIONS} instructions: "
    part += "a part of AlpacaEval." if len(preferences) < NUM_INSTRUCTIONS else "not AlpacaEval's own."
    return replace(report, notes=(part, *report.notes))


def _report(preferences: Sequence[Preference], predictions: Iterable[Prediction]) -> Report:
    row = win_rate(preferences)
    outcomes = [_outcome(one, one.value) for one in preferences]
    discrete = [_outcome(one, None if one.value is None else _verdict(one.value)) for one in preferences]
    notes = [
        f"{row.n_wins} wins, {row.n_wins_base} losses and {row.n_draws} draws of {row.n_total}; "
        f"standard error {row.standard_error:.4f}.",
        "The length-controlled win rate is left to AlpacaEval's own tool.",
    ]
    if row.avg_length is not None:
        notes.insert(1, f"Average length {row.avg_length} characters, of the baseline {row.avg_length_base}.")
    predictions = list(predictions)
    report = summarize(outcomes, predictions, aggregations=(WIN_RATE,), notes=notes)
    rounded = summarize(discrete, predictions, aggregations=(Aggregation("discrete_win_rate", micro),))
    (name, headline), (other, second) = report.headline, rounded.headline
    return replace(report, aggregates={name: headline, other: second, **report.aggregates})


def _outcome(preference: Preference, value: float | None) -> Outcome:
    if value is None:
        return Outcome(preference.id, preference.dataset, status="unread", note="the judge named neither answer")
    return Outcome(preference.id, preference.dataset, value=100 * (value - 1), answer=f"{value:g}")


def _verdict(value: float) -> float:
    return 1.5 if value == 1.5 else float(round(value))


def _both(reply: str) -> list[Reading]:
    """Return 1, 0 or a half for the answer that stood first, and the rest of 1 for the other."""
    choice = read_choice(reply, (*FIRST, *SECOND, *TIE))
    if choice is None:
        return [Reading(None, "the judge named neither answer")] * 2
    first = 0.5 if choice in TIE else float(choice in FIRST)
    return [Reading(first), Reading(1 - first)]


def _first_places(replies: Sequence[Prediction]) -> tuple[str, ...]:
    """Return a note on how often the judge preferred what it read first; 50 % where the place does not matter."""
    values = [reading.value for reply in replies for reading in _both(response_of(reply))[:1]]
    read = [value for value in values if value is not None]
    if not read:
        return ()
    share = sum(read) / len(read)
    return (f"The judge preferred the answer that stood first in {share:.1%} of {len(read)} replies.",)


def _identical(prediction: Prediction, row: Row) -> bool:
    return response_of(prediction).strip() == row.text("output").strip()


def _dataset(row: Row) -> str:
    return row.optional_text("dataset", "all")


BENCHMARK = Benchmark(
    NAME,
    "pairwise_names",
    1,
    "English instructions, each answer compared with a baseline's by a judge; win rate in percent",
    prepare,
    judge=Judge(ask, score),
    published=published,
)
