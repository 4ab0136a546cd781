"""Alpaca records whose response must equal `output`: `instruction`, `input`, `output`, optional `id` and `category`.

Rules: the response and `output` are put into Unicode form NFKC, every run of white space becomes one blank, and blanks
at both ends go; they are right when then equal. Case and punctuation count (beyond NFKC, which makes full-width forms
half-width). A row whose `output` is empty is asked but excluded. Rows without `category` are `uncategorized`.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.benchmark import Benchmark
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "exact_match"
PROTOCOL = "nfkc_collapsed_white_space"
VERSION = 1


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per record, `input` as its context."""
    for row in read_rows(path):
        message = {"role": "user", "content": row.text("instruction")}
        context = row.optional_text("input", "")
        if context:
            message["context"] = context
        yield PromptRecord(row.id(NAME), (message,), reference=row.text("output"), meta={"category": _category(row)})


def score(predictions: Sequence[Prediction], path: Path) -> Report:
    """Compare each response with `output` after normalisation."""
    rows = {row.id(NAME): row for row in read_rows(path)}
    return summarize([_outcome(prediction, rows[prediction.id]) for prediction in predictions], predictions)


def normalize(text: str) -> str:
    """Return the text in NFKC, white space collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _category(row: Row) -> str:
    return row.optional_text("category", "uncategorized")


def _outcome(prediction: Prediction, row: Row) -> Outcome:
    reference, category = normalize(row.text("output")), _category(row)
    if not reference:
        return Outcome(prediction.id, category, status="excluded", note="empty output")
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has no 'response'; this benchmark needs generated text.")
    answer = normalize(prediction.response)
    return Outcome(prediction.id, category, answer == reference, answer=answer)


BENCHMARK = Benchmark(
    name=NAME,
    protocol=PROTOCOL,
    version=VERSION,
    description="alpaca records whose response must equal 'output' (NFKC, white space collapsed)",
    prepare=prepare,
    score=score,
)
