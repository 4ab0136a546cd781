"""Perplexity of a model on any text: per token and word, and in bits per character and byte.

Data: a `.txt` file (one document, or with `--mode lines` one per line that is not blank), a folder of them, or JSON
rows with `text`, optional `id` and `category`. `ift predict` scores whole texts whatever the template: behind
begin-of-text (end-of-text where the tokenizer has none), so that the first token counts too, in windows as long as the
model's positions. `--model.windows.stride` gives each window more context; every token is scored exactly once. With
the default stride the sums are those of lm-evaluation-harness's `loglikelihood_rolling`.

Rules: all averages are over the whole text (sum of bits over sum of characters), with bootstrap intervals over
documents; an item's value is its own bits per character. Only bits per character and per byte compare models with
different tokenizers. Words are what blanks separate, as in lm-evaluation-harness.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from eval.benchmark import Benchmark
from eval.bootstrap import RESAMPLES, SEED, expanded_tail, percentile_interval
from eval.report import Outcome, Report, Score, summarize
from eval.rows import read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "perplexity"
_LONGEST_WORD = 30
"""Characters per word above which blanks cannot be what separates words (Chinese)."""


@dataclass(frozen=True)
class Document:
    """One text."""

    id: str
    text: str
    category: str


@dataclass(frozen=True)
class Sums:
    """What one document adds up to."""

    category: str
    bits: float
    tokens: int
    characters: int
    bytes: int
    words: int


Measure = Callable[[float, Sums], float]


def documents(path: Path, *, lines: bool) -> Iterator[Document]:
    """Yield the documents of a file or a folder.

    Raises:
        UserError: nothing to read, text that is not UTF-8, or a document without text.
    """
    if path.is_file() and path.suffix != ".txt":
        for row in read_rows(path):
            document = Document(row.id(NAME), row.text("text"), row.optional_text("category", path.stem))
            if not document.text:
                raise UserError(f"{row.place}: 'text' is empty. Take the row out.")
            yield document
        return
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: the folder holds no .txt file.")
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
        text = _read(file)
        parts = [line for line in text.splitlines() if line.strip()] if lines else [text]
        if not text.strip():
            raise UserError(f"{file}: the file holds no text.")
        for number, part in enumerate(parts):
            yield Document(f"{name}-{number:05d}" if lines else name, part, name)


def prepare(path: Path, *, lines: bool = False) -> Iterator[PromptRecord]:
    """Yield one prompt per document: a text that stands alone, after no request."""
    for document in documents(path, lines=lines):
        yield PromptRecord(
            id=document.id,
            messages=({"role": "assistant", "content": ""},),
            options=(document.text,),
            meta={"category": document.category},
        )


def score(predictions: Sequence[Prediction], path: Path) -> Report:
    """Return perplexities, and bits per character and byte."""
    lines = predictions[0].meta.get("asked", {}).get("mode") == "lines"
    by_id = {document.id: document for document in documents(path, lines=lines)}
    sums = [_sums(prediction, by_id[prediction.id]) for prediction in predictions]
    outcomes = [
        Outcome(prediction.id, own.category, value=own.bits / own.characters, weight=own.characters)
        for prediction, own in zip(predictions, sums, strict=True)
    ]
    names = dict.fromkeys(own.category for own in sums)
    report = summarize(outcomes, predictions, notes=_notes(sums))
    weighted = {name: _weighted(sums, *measure) for name, measure in _measures(sums).items()}
    by_character = _MEASURES["bits_per_character"]
    return replace(
        report,
        aggregates={**weighted, **report.aggregates},
        categories={name: _weighted([own for own in sums if own.category == name], *by_character) for name in names},
    )


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}). Convert the file to UTF-8.") from error


def _sums(prediction: Prediction, document: Document) -> Sums:
    found = (len(prediction.option_scores), len(prediction.option_num_tokens), prediction.options)
    if found != (1, 1, (document.text,)) or not math.isfinite(prediction.option_scores[0]):
        raise UserError(
            f"--predictions: '{prediction.id}' needs one finite score for the document of that id. Score with the data "
            "that the prompts came from."
        )
    return Sums(
        category=document.category,
        bits=-prediction.option_scores[0] / math.log(2),
        tokens=prediction.option_num_tokens[0],
        characters=len(document.text),
        bytes=len(document.text.encode(errors="surrogatepass")),
        words=len(re.split(r"\s+", document.text)),
    )


def _same(bits: float) -> float:
    return bits


def _power(bits: float) -> float:
    return float(np.exp2(bits))


_MEASURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "bits_per_character": ("characters", _same),
    "bits_per_byte": ("bytes", _same),
    "token_perplexity": ("tokens", _power),
    "word_perplexity": ("words", _power),
}
"""By name: what the bits are divided by, and what is made of the ratio."""


def _measures(sums: Sequence[Sums]) -> dict[str, tuple[str, Callable[[float], float]]]:
    return {name: own for name, own in _MEASURES.items() if name != "word_perplexity" or _has_words(sums)}


def _has_words(sums: Sequence[Sums]) -> bool:
    return sum(own.characters for own in sums) <= _LONGEST_WORD * sum(own.words for own in sums)


def _notes(sums: Sequence[Sums]) -> list[str]:
    total = {name: sum(getattr(own, name) for own in sums) for name in ("tokens", "characters", "bytes", "words")}
    counts = ", ".join(f"{number} {name}" for name, number in total.items())
    notes = [f"{len(sums)} documents with {counts}; lower is better."]
    return notes if _has_words(sums) else [*notes, "No word perplexity: blanks do not separate the words of this text."]


def _weighted(sums: Sequence[Sums], unit: str, function: Callable[[float], float]) -> Score:
    """Return a ratio over all documents, and its interval over documents drawn again."""
    bits, units = np.array([own.bits for own in sums]), np.array([getattr(own, unit) for own in sums], dtype=np.float64)
    generator = np.random.default_rng(SEED)
    drawn = [generator.integers(len(sums), size=len(sums)) for _ in range(RESAMPLES)]
    ratios = np.array([bits[own].sum() / units[own].sum() for own in drawn])
    tail = expanded_tail([len(sums)], [""], [False])
    low, high = (function(bound) for bound in percentile_interval(ratios, tail))
    return Score(len(sums), function(float(bits.sum() / units.sum())), (low, high), "bootstrap over items")


BENCHMARK = Benchmark(
    name=NAME,
    protocol="rolling_windows",
    version=1,
    description="perplexity per token and word, bits per character and byte of any text; --mode documents or lines",
    prepare=prepare,
    score=score,
    modes={"documents": prepare, "lines": partial(prepare, lines=True)},
)
