"""Reads text files as sentences for SentencePiece: a line of a `.txt` file, or of the `text` of a `.jsonl` document."""

import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift.errors import UserError

MAX_SENTENCE_CHARACTERS = 10_000
"""Longer lines are split: the trainer keeps positions in 16 bits and leaves long lines out without a word."""
_RESERVED = "\u2585"  # SentencePiece's internal mark of unknown characters; it leaves out lines that hold it.


@dataclass(frozen=True)
class CorpusSize:
    """What a corpus holds."""

    num_sentences: int
    num_bytes: int
    """UTF-8 bytes of the sentences, line ends not counted."""
    num_split_lines: int
    """Lines that became several sentences, being too long or holding the reserved character U+2585."""


def read_sentences(paths: Sequence[Path]) -> Iterator[str]:
    """Yield every sentence of the files, in order.

    Raises:
        UserError: see `measure`.
    """
    for path in paths:
        for line in _lines(path):
            yield from _split(line)


def measure(paths: Sequence[Path]) -> CorpusSize:
    """Read the files once and count, so that mistakes show before training.

    Raises:
        UserError: a missing file, another ending, text that is no UTF-8, a line that is no document, or no text at all.
    """
    num_sentences = num_bytes = num_split_lines = 0
    for path in paths:
        for line in _lines(path):
            sentences = _split(line)
            num_sentences += len(sentences)
            num_bytes += sum(len(sentence.encode()) for sentence in sentences)
            num_split_lines += len(sentences) > 1
    if num_sentences == 0:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"--input: {names}: no text but white space. Give files with text to learn from.")
    return CorpusSize(num_sentences, num_bytes, num_split_lines)


def sample_sentences(paths: Sequence[Path], *, num_sentences: int, total: int, seed: int) -> Iterator[str]:
    """Yield a random sample of the sentences, in their order.

    Args:
        paths: the files.
        num_sentences: size of the sample.
        total: number of sentences in the files.
        seed: the same files, size and seed give the same sample.
    """
    chosen = set(random.Random(seed).sample(range(total), num_sentences))
    return (sentence for index, sentence in enumerate(read_sentences(paths)) if index in chosen)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines that hold more than white space."""
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--input: {path}: the name must end with .txt (plain text) or .jsonl (documents with 'text').")
    if not path.is_file():
        raise UserError(f"--input: {path}: no such file.")
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line if path.suffix == ".txt" else _document(path, number, line)
                yield from (part.rstrip("\n") for part in io.StringIO(text, newline=None) if part.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"--input: {path} after line {number}: not UTF-8. Convert the file to UTF-8.") from error


def _document(path: Path, number: int, line: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"--input: {path} line {number}: not valid JSON ({error.msg}).") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UserError(f"--input: {path} line {number}: a document needs 'text' with text in it.")
    text: str = value["text"]
    return text


def _split(line: str) -> list[str]:
    parts = (part for part in line.split(_RESERVED) if part.strip())
    return [piece for part in parts for piece in re.findall(f".{{1,{MAX_SENTENCE_CHARACTERS}}}", part, flags=re.DOTALL)]
