"""The records that pass between data, prediction and evaluation, as JSON lines; starts without torch.

`PromptRecord` is what `ift predict` reads (and every benchmark's `prepare` writes); `Prediction` is what it writes (and
every benchmark's `score` reads). Both are one JSON object per line, UTF-8.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ift.errors import UserError

Json = Any
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class PromptRecord:
    """One prompt to answer.

    With `options`, the model ranks them by likelihood; without, it writes a response.
    """

    id: str
    """Unique in its file; predictions are matched to prompts by it."""
    messages: tuple[dict[str, str], ...]
    """`{"role": ..., "content": ..., "context": ...}` in order, the last one of role `user`; `context` may be absent
    and is what alpaca records call `input`. One empty message of role `assistant` alone stands for no prompt: the
    options are then whole texts of any length, scored after begin-of-text in windows."""
    options: tuple[str, ...] = ()
    """Response texts to rank, several spellings of one answer among them if need be; empty for free generation."""
    reference: str | None = None
    """The right response, where there is one; never shown to the model."""
    meta: dict[str, Json] = field(default_factory=dict)
    """Whatever the benchmark wants back beside the prediction."""


@dataclass(frozen=True)
class Prediction:
    """One answered prompt."""

    id: str
    prompt: str
    """The text that the model read, special tokens shown."""
    response: str | None = None
    """The generated text without end-of-text; `None` where options were ranked."""
    finish_reason: Literal["stop", "length"] | None = None
    """`stop`: the model ended the response; `length`: it was cut at `max_new_tokens`."""
    options: tuple[str, ...] = ()
    option_scores: tuple[float, ...] = ()
    """Summed natural-log likelihood of each option's tokens given the prompt, in the order of `options`."""
    option_num_tokens: tuple[int, ...] = ()
    """Number of tokens of each option, for length-normalised scores."""
    reference: str | None = None
    meta: dict[str, Json] = field(default_factory=dict)


def write_jsonl(path: Path, records: Iterable[PromptRecord] | Iterable[Prediction]) -> int:
    """Write records to a new file, one JSON object per line, and return how many.

    Raises:
        UserError: the file exists.
    """
    if path.exists():
        raise UserError(f"{path}: the file exists and nothing is overwritten. Give another path, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    temporary = path.with_name(path.name + ".tmp")
    # Half of a surrogate pair, which UTF-8 cannot say, is written as JSON's escape of it.
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            count += 1
    os.replace(temporary, path)
    return count


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {number}: not valid JSON ({error.msg}).") from error
            if not isinstance(value, dict):
                raise UserError(f"{path} line {number}: expected a JSON object, found {type(value).__name__}.")
            yield number, value


def read_predictions(path: Path) -> list[Prediction]:
    """Read a `predictions.jsonl`.

    Raises:
        UserError: no such file, a line that is no prediction (with its number), or an id that occurs twice.
    """
    predictions: list[Prediction] = []
    seen: set[str] = set()
    for number, value in _read_objects(path):
        try:
            for key in ("options", "option_scores", "option_num_tokens"):
                value[key] = tuple(value.get(key) or ())
            prediction = Prediction(**value)
        except TypeError as error:
            raise UserError(f"{path} line {number}: not a prediction of `ift predict` ({error}).") from error
        if prediction.id in seen:
            raise UserError(f"{path} line {number}: the id '{prediction.id}' occurs twice.")
        seen.add(prediction.id)
        predictions.append(prediction)
    return predictions
