"""AGIEval's Chinese choice sets: JEC-QA (law), the gaokao subjects and LogiQA, some with several right letters.

W. Zhong et al., "AGIEval: A Human-Centric Benchmark for Evaluating Foundation Models" (2023). Data: a folder with files
named after the sets (`jec-qa-kd.jsonl`), or one such file under any name; rows are `{"passage", "question", "options":
["(A)…"], "label": "B" or ["A", "C"]}`.

Protocol `official_zero_shot`: the benchmark's zero-shot prompt. An answer is right where its letters are exactly those
of `label`, in any order; headline is the mean over sets, and questions with one and with several right letters are
also reported apart. `--mode choice` (default) ranks the letters; in a set that has a question with several right ones,
all combinations of letters, by the likelihood that these are the whole answer (`eval/answer_sets.py`). `--mode
generate` reads the letters from a response; nothing is guessed (the original takes every capital letter it finds).
`partial_credit` gives half for some of the right letters and no wrong one, as the gaokao's 6, 3 and 0 points, averaged
over sets too.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.aggregation import MACRO
from eval.answer_sets import best_sets, options_of_sets
from eval.benchmark import Benchmark
from eval.extraction import Kind, extract_letters
from eval.likelihood import choose, spelled, texts
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "agieval"
SETS = (
    "logiqa-zh",
    "jec-qa-kd",
    "jec-qa-ca",
    "gaokao-chinese",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-biology",
    "gaokao-chemistry",
    "gaokao-physics",
    "gaokao-mathqa",
)
_LABEL = re.compile(r"^\s*[(（]?[A-H][)）.、]\s*")
_LETTERS = "ABCDEFG"


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    set: str
    prompt: str
    letters: tuple[str, ...]
    right: frozenset[str]
    """Empty where the data has no usable label."""
    texts: tuple[str, ...] = ()
    """Of the options, in the order of the letters, without their labels; empty where they cannot be told apart."""

    @property
    def kind(self) -> str:
        """Whether one or several letters are right."""
        return "multi" if len(self.right) > 1 else "single"


@dataclass(frozen=True)
class Set:
    """The questions of one file."""

    name: str
    items: tuple[Item, ...]

    @property
    def combines(self) -> bool:
        """Whether answers may have several letters: at least one question has several right ones."""
        return any(item.kind == "multi" for item in self.items)


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question, the answers to be ranked."""
    for own in read_sets(path):
        for item in own.items:
            yield _prompt(item, _options(own, item))


def prepare_generate(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question, to be answered in writing."""
    for own in read_sets(path):
        for item in own.items:
            yield _prompt(item, ())


def score(predictions: Sequence[Prediction], path: Path) -> Report:
    """Compare the letters of each prediction with the label, exactly, and with partial credit."""
    sets = read_sets(path)
    found = {item.id: (own, item) for own in sets for item in own.items}
    exact = [_outcome(prediction, *found[prediction.id]) for prediction in predictions]
    partial = [replace(outcome, value=_partial(outcome, found[outcome.id][1])) for outcome in exact]
    report = summarize(exact, predictions, aggregations=(MACRO,), notes=_notes(path, sets))
    credit = summarize(partial, predictions, aggregations=(MACRO,)).aggregates["macro"]
    return replace(report, aggregates={**report.aggregates, "partial_credit": credit})


def read_sets(path: Path) -> list[Set]:
    """Read the known sets of a folder, or one file.

    Raises:
        UserError: nothing there, or a row that is no question with options.
    """
    files = [path / f"{name}.jsonl" for name in SETS if (path / f"{name}.jsonl").is_file()] if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"--data: {path}: none of AGIEval's Chinese choice sets lies there: {', '.join(SETS)} (.jsonl)."
        )
    return [Set(file.stem, tuple(_item(file.stem, row) for row in read_rows(file))) for file in files]


def _item(name: str, row: Row) -> Item:
    options = row.fields.get("options")
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise UserError(f"{row.place}: a question needs 'options', a list of texts. Sets without options are not read.")
    count = len(options) if len(options) > 1 else 4  # as the original: all options in one text
    if count > len(_LETTERS):
        raise UserError(f"{row.place}: {count} options; the letters A to {_LETTERS[-1]} name at most {len(_LETTERS)}.")
    letters = tuple(_LETTERS[:count])
    prompt = (
        f"{row.optional_text('passage', '')}问题：{row.text('question')} 选项：{' '.join(options)}\n"
        f"答案：从A到{letters[-1]}, 我们应选择"
    )
    right = _right(row)
    known = right if right <= set(letters) else frozenset()
    option_texts = tuple(_LABEL.sub("", option).strip() for option in options) if len(options) > 1 else ()
    return Item(f"{name}-{row.index:05d}", name, prompt, letters, known, option_texts)


def _right(row: Row) -> frozenset[str]:
    """Return the letters of the label, which is a list of letters or a text that may hold several (`A C`)."""
    label = row.fields.get("label")
    text = "".join(map(str, label)) if isinstance(label, list) else str(label or "")
    return frozenset(re.sub(r"[\s,、]", "", unicodedata.normalize("NFKC", text)))


def _prompt(item: Item, options: tuple[str, ...]) -> PromptRecord:
    return PromptRecord(
        id=item.id,
        messages=({"role": "user", "content": item.prompt},),
        options=options,
        reference="".join(sorted(item.right)),
        meta={"category": item.set} | ({"join_options": True} if options else {}),
    )


def _outcome(prediction: Prediction, own: Set, item: Item) -> Outcome:
    if not item.right:
        return Outcome(prediction.id, item.set, status="excluded", note="label is empty or none of the options")
    if prediction.options:
        best = _best(prediction, own, item)
        if len(best) > 1:
            return Outcome(prediction.id, item.set, status="tied", kinds=(item.kind,), answer="/".join(best))
        letters: frozenset[str] | None = frozenset(best[0])
    elif prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has neither 'option_scores' nor a 'response'.")
    else:
        kind: Kind = "multi" if own.combines else "single"
        found = extract_letters(prediction.response, letters=item.letters, kind=kind, options=item.texts).letters
        letters = None if found is None else frozenset(found)
    if letters is None:
        note = prediction.response or ""
        return Outcome(prediction.id, item.set, status="unparsed", note=note, kinds=(item.kind,))
    return Outcome(prediction.id, item.set, letters == item.right, kinds=(item.kind,), answer="".join(sorted(letters)))


def _options(own: Set, item: Item) -> tuple[str, ...]:
    return options_of_sets(item.letters) if own.combines else texts(spelled(item.letters))


def _best(prediction: Prediction, own: Set, item: Item) -> list[str]:
    """Return the answers of the highest score: one, or several that are tied."""
    if own.combines:
        return best_sets(prediction, item.letters)
    return list(choose(prediction, spelled(item.letters)).best)


def _partial(outcome: Outcome, item: Item) -> float:
    """Return 1 for the right letters, a half for some of them and no wrong one, else 0."""
    if outcome.correct:
        return 1.0
    some = outcome.status == "read" and set(outcome.answer) < item.right
    return 0.5 if some else 0.0


def _notes(path: Path, sets: Sequence[Set]) -> list[str]:
    notes = []
    combining = [own.name for own in sets if own.combines]
    if combining:
        notes.append(
            f"Several letters may be right in {', '.join(combining)}; where options were ranked, all combinations of "
            "letters were."
        )
    if path.is_dir():
        missing = [name for name in SETS if name not in {own.name for own in sets}]
        if missing:
            notes.append(f"A part of AGIEval's Chinese choice sets: not in the data: {', '.join(missing)}.")
        others = sorted(one.name for one in path.glob("*.jsonl") if one.stem not in SETS)
        if others:
            notes.append(f"Left out, being no Chinese choice sets of AGIEval: {', '.join(others)}.")
    return notes


BENCHMARK = Benchmark(
    name=NAME,
    protocol="official_zero_shot",
    version=1,
    description="JEC-QA, gaokao and LogiQA of AGIEval, exact sets of letters; --mode choice (default) or generate",
    prepare=prepare,
    score=score,
    modes={"choice": prepare, "generate": prepare_generate},
)
