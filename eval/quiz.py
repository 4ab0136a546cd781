"""Single-choice questions in MMCU's JSON layout: an array of `类别`, `题目`, `选项`, `答案`.

`选项` holds one option per line, `A:…` to `D:…`. Three ways to ask: `choice` (default) ranks the option letters by
their likelihood; `scorings` asks for every rule of `eval/likelihood.py`; `generate` lets the model write and reads the
letter from the response (`eval/extraction.py`).

Rules: score = share of questions with the right letter. Two options that share the highest likelihood are `tied`, and a
response that declares no option is `unparsed`; both are counted as wrong and shown. Several declared options are wrong.
A question whose `答案` is not exactly one of its options is asked but excluded, with the reason.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eval.aggregation import MICRO
from eval.baselines import Calibrated, choosers, questions_of, with_baselines
from eval.benchmark import Benchmark
from eval.extraction import extract_letters
from eval.likelihood import CONTENT_FREE, DEFAULT, SCORINGS, Option, spelled, texts
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from eval.scorings import chosen_rule, lettered_and_full, ranked_outcome, with_rules
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "quiz"
PROTOCOL = "alpaca_cot_zero_shot"
VERSION = 2

# Alpaca-CoT's wording for MMCU.
PROMPT = "请阅读以下选择题并给出正确选项，不要解释原因。\n{question}\n{options}\n正确答案的序号是：\n"
PREMISE = PROMPT.rpartition("{options}\n")[2]
_LABEL = re.compile(r"^\s*([A-D])\s*[:.、]", flags=re.MULTILINE)
_WRITTEN_LABEL = re.compile(r"^\s*[A-DＡ-Ｄ]\s*[:.、：．]", flags=re.MULTILINE)
"""The same before letters and punctuation are made narrow, which would change the texts too."""


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question, its option letters to be ranked."""
    for row in read_rows(path):
        yield _prompt(row, _letters(row))


def prepare_scorings(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question, letters and full texts to be ranked, and the prompts without content."""
    return with_baselines(_calibrated(row) for row in read_rows(path))


def prepare_generate(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question, to be answered in writing."""
    for row in read_rows(path):
        _letters(row)  # what cannot be scored is refused before it is asked
        yield _prompt(row, ())


def score(predictions: Sequence[Prediction], path: Path, *, scoring: str | None = None) -> Report:
    """Compare the letter of each prediction with `答案`; `scoring` names the rule where options were ranked."""
    rows = {row.id(NAME): row for row in read_rows(path)}
    asked = questions_of(predictions)
    if scoring is None and len(asked) == len(predictions):
        report = summarize([_outcome(one, rows[one.id], _best) for one in asked], asked)
        return replace(report, scoring=DEFAULT if report.answers == "ranked" else None)
    every = len(asked) < len(predictions)
    ranked = choosers(
        [one for one in predictions if one.options],
        {one.id: _every_option(rows[one.id]) if every else _lettered(rows[one.id]) for one in asked},
    )
    rule = chosen_rule(scoring, ranked)
    outcomes = [_outcome(one, rows[one.id], lambda one, _: ranked[one.id].choose(rule).best) for one in asked]
    report = replace(summarize(outcomes, asked), scoring=rule.name)
    if not every:
        return report
    references = {name: _reference(row) for name, row in rows.items()}
    return with_rules(report, rule, choosers=ranked, references=references, aggregation=MICRO, clustered=False)


def _calibrated(row: Row) -> Calibrated:
    free = [
        PROMPT.format(question=text, options="\n".join(f"{letter}:{text}" for letter in _letters(row)))
        for text in CONTENT_FREE
    ]
    asked = _prompt(row, texts(_every_option(row)))
    joined = replace(asked, meta={**asked.meta, "join_options": True})  # several spellings: as the text goes on
    return Calibrated(joined, {"pmi": (PREMISE,), "contextual": free})


def _lettered(row: Row) -> tuple[Option, ...]:
    return spelled(_letters(row), blanks=("",))


def _every_option(row: Row) -> tuple[Option, ...]:
    """Return letters and full texts, each in both spellings."""
    letters, parts = _letters(row), _WRITTEN_LABEL.split(row.text("选项"))[1:]
    if len(parts) != len(letters):
        raise UserError(
            f"{row.place}: '选项': {len(letters)} labels, but {len(parts)} texts behind 'A:', 'B:' and so on."
        )
    return lettered_and_full(row.place, dict(zip(letters, parts, strict=True)))


def _prompt(row: Row, options: tuple[str, ...]) -> PromptRecord:
    question = PROMPT.format(question=row.text("题目"), options=row.text("选项"))
    return PromptRecord(
        id=row.id(NAME),
        messages=({"role": "user", "content": question},),
        options=options,
        reference=_reference(row),
        meta={"category": row.text("类别")},
    )


def _letters(row: Row) -> tuple[str, ...]:
    letters = tuple(_LABEL.findall(unicodedata.normalize("NFKC", row.text("选项"))))
    if letters != tuple("ABCD"[: len(letters)]) or len(letters) < 2:
        raise UserError(
            f"{row.place}: '选项' needs one option per line, labelled 'A:', 'B:' and so on up to D; "
            f"found the labels {', '.join(letters) or '(none)'}."
        )
    return letters


def _reference(row: Row) -> str:
    return unicodedata.normalize("NFKC", row.text("答案")).strip().upper()


def _outcome(prediction: Prediction, row: Row, best: Callable[[Prediction, tuple[str, ...]], Sequence[str]]) -> Outcome:
    letters, reference, category = _letters(row), _reference(row), row.text("类别")
    if reference not in letters:
        reason = "several answers" if len(set(reference) & set(letters)) > 1 else "answer is none of the options"
        return Outcome(prediction.id, category, status="excluded", note=reason)
    if prediction.option_scores:
        return ranked_outcome(Outcome(prediction.id, category), best(prediction, letters), reference)
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has neither 'option_scores' nor a 'response'.")
    found = extract_letters(prediction.response, letters=letters, kind="single").letters
    if found is None:
        return Outcome(prediction.id, category, status="unparsed", note=prediction.response)
    return Outcome(prediction.id, category, found == reference, answer=found)


def _best(prediction: Prediction, letters: tuple[str, ...]) -> list[str]:
    """Return the letters with the highest likelihood: one, or several that are tied."""
    scores = prediction.option_scores
    if prediction.options != letters or len(scores) != len(letters) or any(math.isnan(value) for value in scores):
        raise UserError(
            f"--predictions: '{prediction.id}' needs one score for each of the options {', '.join(letters)}; "
            f"found options {', '.join(prediction.options) or '(none)'} with scores {list(scores)}."
        )
    return [letter for letter, value in zip(letters, scores, strict=True) if value == max(scores)]


BENCHMARK = Benchmark(
    name=NAME,
    protocol=PROTOCOL,
    version=VERSION,
    description="single-choice questions in MMCU's JSON layout; --mode choice (default), scorings or generate",
    prepare=prepare,
    score=score,
    modes={"choice": prepare, "scorings": prepare_scorings, "generate": prepare_generate},
    scorings=tuple(SCORINGS),
)
