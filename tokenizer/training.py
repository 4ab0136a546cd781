"""Trains a SentencePiece vocabulary with LLaMA's settings and leaves a folder that transformers loads.

SentencePiece holds all text that it learns from in memory, many times over, so it is given a sample where there is more
than `DEFAULT_SAMPLE_BYTES`.
"""

import io
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from ift.errors import UserError
from tokenizer.conversion import SPECIAL_PIECES, ModelType, write_tokenizer
from tokenizer.corpus import MAX_SENTENCE_CHARACTERS, CorpusSize, measure, sample_sentences
from tokenizer.output import check_new, new_folder

Normalization = Literal["identity", "nmt_nfkc", "nfkc"]
DEFAULT_SAMPLE_BYTES = 100_000_000
"""Text that is learned from unless another number of sentences is given; takes 3 to 4 GB while it is learned from."""
_NUM_BYTE_PIECES = 256
_SECONDS_BETWEEN_SIGNS = 10.0
_FIXED_SETTINGS: dict[str, Any] = {
    # LLaMA's own choices, as its tokenizer.model states them: text comes back exactly as it went in.
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": True,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    # LLaMA's ids, and a padding token of its own.
    **{f"{name}_id": index for index, name in enumerate(("unk", "bos", "eos", "pad"))},
    **{f"{name}_piece": piece for name, piece in zip(("unk", "bos", "eos", "pad"), SPECIAL_PIECES, strict=True)},
    "max_sentence_length": 4 * MAX_SENTENCE_CHARACTERS,  # in bytes; a character takes at most 4
    "num_threads": 16,  # fixed: the sums of unigram training depend on it
    "minloglevel": 2,  # errors only
}


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the vocabulary, beside the text."""

    vocab_size: int
    """Number of pieces in all: special, byte and learned."""
    model_type: ModelType = "bpe"
    character_coverage: float = 0.9995
    """Share of the characters of the text that get pieces of their own, in [0.98, 1]; the rest falls back to bytes."""
    byte_fallback: bool = True
    """Whether unseen characters, newlines among them, are spelled in bytes instead of `<unk>`."""
    max_sentences: int | None = None
    """Learn from a random sample of at most this many sentences; `None` for as many as make `DEFAULT_SAMPLE_BYTES`."""
    seed: int = 0
    """Of that sample."""
    normalization: Normalization = "identity"
    """Unicode normalisation of every text, in training and ever after; `nmt_nfkc` is SentencePiece's own default."""


@dataclass(frozen=True)
class TrainingSummary:
    """What was read and how long it took."""

    corpus: CorpusSize
    num_used_sentences: int
    seconds: float


def train_tokenizer(inputs: Sequence[Path], output: Path, settings: TrainingSettings) -> TrainingSummary:
    """Train on text files and write the tokenizer into a new folder, whole or not at all.

    Raises:
        UserError: the folder exists, a setting is out of range, an input cannot be read, or text and vocabulary size
            do not fit together.
    """
    start = time.monotonic()
    check_new(output)
    _check(settings)
    corpus = measure(inputs)
    num_used = sample_size(corpus, settings.max_sentences)
    sentences = sample_sentences(inputs, num_sentences=num_used, total=corpus.num_sentences, seed=settings.seed)
    with _signs_of_life():
        model = train_model(sentences, settings)
    with new_folder(output) as folder:
        write_tokenizer(folder, model)
    return TrainingSummary(corpus, num_used, time.monotonic() - start)


def sample_size(corpus: CorpusSize, max_sentences: int | None) -> int:
    """Return how many sentences to learn from."""
    if max_sentences is None:
        max_sentences = max(1, DEFAULT_SAMPLE_BYTES * corpus.num_sentences // max(1, corpus.num_bytes))
    return min(corpus.num_sentences, max_sentences)


@contextmanager
def _signs_of_life() -> Iterator[None]:
    """Say on stderr now and then that training goes on: SentencePiece itself says nothing for minutes."""
    start, ended = time.monotonic(), threading.Event()

    def speak() -> None:
        while not ended.wait(_SECONDS_BETWEEN_SIGNS):
            print(f"training: {time.monotonic() - start:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def train_model(sentences: Iterator[str], settings: TrainingSettings) -> bytes:
    """Return a trained SentencePiece model; the same sentences and settings give the same bytes.

    Raises:
        UserError: SentencePiece found no vocabulary of this size in the text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            normalization_rule_name=settings.normalization,
            **_FIXED_SETTINGS,
        )
    except RuntimeError as error:
        raise _rewritten(str(error), settings) from error
    return model.getvalue()


def _check(settings: TrainingSettings) -> None:
    reserved = len(SPECIAL_PIECES) + (_NUM_BYTE_PIECES if settings.byte_fallback else 0)
    if settings.vocab_size <= reserved:
        raise UserError(
            f"--vocab-size: {settings.vocab_size} leaves no room: {reserved} pieces are special tokens and bytes. "
            "Give a larger one."
        )
    if not 0.98 <= settings.character_coverage <= 1:
        raise UserError(f"--character-coverage: {settings.character_coverage} is out of range. Give 0.98 to 1.")
    if settings.max_sentences is not None and settings.max_sentences < 1:
        raise UserError(f"--max-sentences: {settings.max_sentences} is out of range. Give 1 or more, or leave it out.")


def _rewritten(message: str, settings: TrainingSettings) -> UserError:
    size = settings.vocab_size
    if too_high := re.search(r"Vocabulary size too high .* a value <= (\d+)", message):
        return UserError(
            f"--vocab-size: {size} is too large: the text yields at most {too_high[1]} pieces with --model-type "
            f"{settings.model_type}. Give {too_high[1]} or less, or more text."
        )
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"--vocab-size: {size} is too small: special tokens, bytes and the text's characters need {too_low[1]} "
            "pieces. Give more, or a lower --character-coverage."
        )
    return UserError(f"--input: SentencePiece cannot train on this text with these settings: {message}")
