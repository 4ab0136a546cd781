"""Reads text files as sentences for SentencePiece: a line of a `.txt` file, or of the `text` of a `.jsonl` document.

Files may be compressed (`.gz`, `.zst`), and folders stand for the files in them. Text passes through in pieces: what is
held at once is a line.
"""

import io
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ift.data.files import DamagedFileError, DataFile
from ift.errors import UserError

MAX_SENTENCE_CHARACTERS = 10_000
"""Longer lines are split: the trainer keeps positions in 16 bits and leaves long lines out without a word."""
_LONGEST_HELD = 10 * MAX_SENTENCE_CHARACTERS
_RESERVED = "\u2585"  # SentencePiece's internal mark of unknown characters; it leaves out lines that hold it.
_ENDINGS = tuple(name + packed for name in (".txt", ".jsonl") for packed in ("", ".gz", ".zst"))


@dataclass(frozen=True)
class CorpusSize:
    """What a corpus holds."""

    num_sentences: int
    num_bytes: int
    """UTF-8 bytes of the sentences, line ends not counted."""
    num_split_lines: int
    """Lines that became several sentences, being too long or holding the reserved character U+2585."""


def find_inputs(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and those in the folders that are named and below them, in order.

    Raises:
        UserError: a missing file, another ending, or a folder without text.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.name.endswith(_ENDINGS) and file.is_file())
            if not inside:
                raise UserError(f"--input: {path}: holds no file that ends with {', '.join(_ENDINGS)}.")
            found += inside
        elif not path.name.endswith(_ENDINGS):
            raise UserError(
                f"--input: {path}: the name must end with .txt (plain text) or .jsonl (documents with 'text'), and may "
                "go on with .gz or .zst."
            )
        elif not path.is_file():
            raise UserError(f"--input: {path}: no such file.")
        else:
            found.append(path)
    return found


def read_sentences(paths: Sequence[Path]) -> Iterator[str]:
    """Yield every sentence of the files, in order.

    Raises:
        UserError: see `measure`.
    """
    for path in find_inputs(paths):
        for line in _lines(path):
            yield from _split(line)


def measure(paths: Sequence[Path]) -> CorpusSize:
    """Read the files once and count, so that mistakes show before training; progress goes to stderr.

    Raises:
        UserError: a missing file, another ending, text that is no UTF-8, a line that is no document, or no text at all.
    """
    from tqdm import tqdm

    num_sentences = num_bytes = num_split_lines = 0
    paths = find_inputs(paths)
    packed = any(DataFile(str(path)).compression for path in paths)
    total = None if packed else sum(os.path.getsize(path) for path in paths)
    with tqdm(total=total, desc="Counting", unit="B", unit_scale=True, delay=2.0) as progress:
        for path in paths:
            for line in _lines(path):
                sentences = _split(line)
                num_sentences += len(sentences)
                size = sum(len(sentence.encode()) for sentence in sentences)
                num_bytes += size
                num_split_lines += len(sentences) > 1
                progress.update(size + 1)
    if num_sentences == 0:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"--input: {names}: no text but white space. Give files with text to learn from.")
    return CorpusSize(num_sentences, num_bytes, num_split_lines)


def sample_sentences(paths: Sequence[Path], *, num_sentences: int, total: int, seed: int) -> Iterator[str]:
    """Yield a random sample of the sentences, in their order; progress goes to stderr.

    Every sample of that size is equally likely (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S).

    Args:
        paths: the files.
        num_sentences: size of the sample.
        total: number of sentences in the files.
        seed: the same files, size and seed give the same sample.
    """
    from tqdm import tqdm

    chance, missing = random.Random(seed), num_sentences
    sentences = tqdm(read_sentences(paths), total=total, desc="Reading", unit=" sentences", delay=2.0)
    for index, sentence in enumerate(sentences):
        if chance.random() * (total - index) < missing:
            missing -= 1
            yield sentence


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines that hold more than white space."""
    number, is_json = 0, path.name.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl")
    try:
        with DataFile(str(path)).open() as file:
            text_file = io.TextIOWrapper(file, encoding="utf-8-sig")
            for number, line in enumerate(text_file if is_json else _bounded_lines(text_file), 1):
                text = _document(path, number, line) if is_json else line
                yield from (part.rstrip("\n") for part in io.StringIO(text, newline=None) if part.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"--input: {path} after line {number}: not UTF-8. Convert the file to UTF-8.") from error
    except DamagedFileError as error:
        raise UserError(f"--input: {path} after line {number}: {error}. Fetch the file again.") from error


def _bounded_lines(file: TextIO) -> Iterator[str]:
    """Yield lines; one too long to be held in memory comes in parts."""
    while line := file.readline(_LONGEST_HELD):
        yield line


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
