"""GSM8K: grade-school word problems in English whose answer is one number, written after `####`.

K. Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021). Data: `test.jsonl` (`question`, `answer` with
`#### n` at its end), its folder, or the id on a hub (`openai/gsm8k`); worked examples are the first of `train.jsonl`
beside it.

Protocol `lm_eval`: prompts and rules of lm-evaluation-harness 0.4.13 (`gsm8k`), which reports two accuracies of the
same responses: `strict_match`, the headline, takes the number after the first `####`; `flexible_extract` takes the last
number that stands anywhere, so that it also finds the answer of a model that was not shown the form. `number_match` is
our own third one: declared, boxed or last numbers, compared as numbers (`eval/extraction_numbers.py`). A response
counts up to `Question:`, `</s>` or `<|im_end|>`, where lm-evaluation-harness stops. One thing differs: it draws the
worked examples at random for each question, here they are the first ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.aggregation import Aggregation, micro
from eval.benchmark import Benchmark
from eval.extraction_numbers import extract_number, flexible_extract, parse_number, same_as_reference, strict_match
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "gsm8k"
SHOTS = (5, *(number for number in range(9) if number != 5))
"""The default of lm-evaluation-harness first; the paper's few-shot prompts have 8."""

_QUESTION = "Question: {question}\nAnswer:"
_SHOT = _QUESTION + " {answer}\n\n"
_STOPS = ("Question:", "</s>", "<|im_end|>")

Reading = Callable[[str, str], tuple[str, bool] | None]
"""From a response and the reference to the number that was read and whether it is right, or `None`."""


def prepare(path: Path, *, shots: int = SHOTS[0]) -> Iterator[PromptRecord]:
    """Yield one prompt per problem, after `shots` solved ones."""
    solved = _solved(path, shots) if shots else []
    if len(solved) < shots:
        raise UserError(f"--shots: {shots}: the training problems beside {path} are {len(solved)}. Give fewer.")
    examples = "".join(_SHOT.format(question=row.text("question"), answer=row.text("answer")) for row in solved)
    for row in _read(path, "test"):
        message = {"role": "user", "content": examples + _QUESTION.format(question=row.text("question"))}
        yield PromptRecord(row.id(NAME), (message,), reference=_reference(row))


def score(predictions: Sequence[Prediction], path: Path) -> Report:
    """Compare the numbers in the responses with those of the data, in every way of `_READINGS`."""
    reports = {
        name: summarize(
            [_outcome(prediction, right) for prediction in predictions],
            predictions,
            aggregations=(Aggregation(name, micro),),
        )
        for name, right in _READINGS.items()
    }
    strict = reports["strict_match"]
    averages = dict(report.headline for report in reports.values())
    notes = [f"{name} finds no number in {len(report.unparsed)} responses." for name, report in reports.items()]
    return replace(strict, aggregates={**averages, **strict.aggregates}, notes=tuple(notes))


def _lm_eval(read: Callable[[str], str | None]) -> Reading:
    def compare(response: str, reference: str) -> tuple[str, bool] | None:
        number = read(response)
        return None if number is None else (number, same_as_reference(number, reference))

    return compare


def _number(response: str, reference: str) -> tuple[str, bool] | None:
    found, right = extract_number(response).value, parse_number(reference)
    return None if found is None else (str(found), found == right)


_READINGS: Mapping[str, Reading] = {
    "strict_match": _lm_eval(strict_match),
    "flexible_extract": _lm_eval(flexible_extract),
    "number_match": _number,
}


def _outcome(prediction: Prediction, reading: Reading) -> Outcome:
    if not prediction.reference:
        return Outcome(prediction.id, NAME, status="excluded", note="no final answer after '####'")
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has no 'response'; this benchmark needs generated text.")
    response = prediction.response
    for stop in _STOPS:
        response = response.split(stop)[0]
    found = reading(response, prediction.reference)
    if found is None:
        return Outcome(prediction.id, NAME, status="unparsed", note=prediction.response)
    number, right = found
    return Outcome(prediction.id, NAME, right, answer=number)


def _reference(row: Row) -> str:
    _, mark, number = row.text("answer").rpartition("#### ")
    return number.strip() if mark else ""


def _solved(path: Path, shots: int) -> list[Row]:
    """Return the first training problems, for worked examples."""
    folder = path.parent if path.is_file() else path
    if folder.is_dir() and not (folder / "train.jsonl").is_file():
        raise UserError(
            f"--shots: {shots}: {folder / 'train.jsonl'}: no such file; the {shots} worked examples are its first "
            "problems. Put it there, or give --shots 0."
        )
    return _read(path, "train")[:shots]


def _read(path: Path, split: str) -> list[Row]:
    """Return the rows of a split from `<split>.jsonl` at or beside the path, or from a hub."""
    if path.is_file():
        return read_rows(path if split == "test" else path.parent / f"{split}.jsonl")
    if path.is_dir():
        return read_rows(path / f"{split}.jsonl")
    import datasets

    try:
        rows = datasets.load_dataset(path.as_posix(), "main", split=split)
    except Exception as error:  # whatever a hub, a cache or a loading script may raise
        raise UserError(
            f"--data: {path}: no such file, and no data set that `datasets` can load "
            f"({type(error).__name__}: {error}). Give test.jsonl, its folder, or an id on the hub."
        ) from error
    return [Row(f"{path} {split} [{index}]", index, dict(row)) for index, row in enumerate(rows)]


BENCHMARK = Benchmark(
    name=NAME,
    protocol="lm_eval",
    version=1,
    description="word problems with a number as answer, as lm-evaluation-harness 0.4.13; 0 to 8 shots (default 5)",
    prepare=prepare,
    score=score,
    shots=SHOTS,
    template="raw",
)
