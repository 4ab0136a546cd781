"""Continues the BPE training of a byte-level tokenizer on more text: every new token is one merge of two others.

The text is cut by the base's own pre-tokenisation and encoded by the base; the pair of neighbours that occurs most
often becomes the next token, again and again, as in training from the beginning. Unlike pieces of another vocabulary,
such tokens need no links in between, and each is as frequent in the text as a token of its rank can be.

Tokens of the base are written as one character each, so that the BPE trainer of `tokenizers` does the work.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ift.errors import UserError
from tokenizer.byte_level import ByteLevel, Merge

_BATCH = 1000
_FIRST_CHARACTER = 0x100
_SURROGATES = range(0xD800, 0xE000)
_SEPARATOR = "\n"


@dataclass(frozen=True)
class Extended:
    """What was learned."""

    num_new: int
    num_dropped: int
    """Merges that would have made an old token in a new way, or build on such a one."""


def extend(base: ByteLevel, sentences: Iterable[str], *, num_pieces: int, progress: bool = False) -> Extended:
    """Append the tokens that continued training finds.

    Args:
        base: is appended to.
        sentences: the text.
        num_pieces: new tokens.
        progress: whether the trainer shows bars.

    Raises:
        UserError: the text yields fewer.
    """
    num_dropped = 0
    # What would make an old token is left out afterwards: ask for more, so that enough remains.
    merges = _trained(base, sentences, num_pieces + num_pieces // 20 + 100, progress=progress)
    dropped: set[str] = set()
    for merge in merges:
        token = "".join(merge)
        if len(base.new_tokens) == num_pieces and token not in base:
            break
        if base.is_old(token) or dropped & set(merge):
            dropped.add(token)
            num_dropped += 1
        else:
            base.append(merge)
    if len(base.new_tokens) < num_pieces:
        raise UserError(
            f"--add-pieces: {num_pieces} is too many: the text yields {len(base.new_tokens)} new tokens that occur at "
            "least twice. Give less, or more text."
        )
    return Extended(len(base.new_tokens), num_dropped)


def _trained(base: ByteLevel, sentences: Iterable[str], number: int, *, progress: bool) -> Iterator[Merge]:
    """Yield the merges that training finds, best first."""
    shadow = Tokenizer(models.BPE())
    shadow.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_SEPARATOR)
    trainer = trainers.BpeTrainer(
        vocab_size=base.first_new_id + number,
        initial_alphabet=[_character(index) for index in range(base.first_new_id)],
        min_frequency=2,
        show_progress=progress,
    )
    shadow.train_from_iterator(_as_characters(base, sentences), trainer)
    for merge in json.loads(shadow.to_str())["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        yield _token(base, left), _token(base, right)


def _as_characters(base: ByteLevel, sentences: Iterable[str]) -> Iterator[str]:
    """Yield sentences with each token of the base as one character, and a separator after each pre-tokenised part."""
    remaining = iter(sentences)
    while batch := list(islice(remaining, _BATCH)):
        for encoding in base.tokenizer.encode_batch(batch, add_special_tokens=False):
            parts: list[str] = []
            last = None
            for index, word in zip(encoding.ids, encoding.word_ids, strict=True):
                if word != last:
                    parts.append(_SEPARATOR)
                parts.append(_character(index))
                last = word
            yield "".join(parts)


def _character(index: int) -> str:
    code = _FIRST_CHARACTER + index
    return chr(code + len(_SURROGATES) if code >= _SURROGATES.start else code)


def _token(base: ByteLevel, characters: str) -> str:
    """Return what characters stand for, in byte-level characters."""
    codes = (ord(one) for one in characters)
    behind = _SURROGATES.stop
    indexes = (code - _FIRST_CHARACTER - (len(_SURROGATES) if code >= behind else 0) for code in codes)
    return "".join(base.token(index) for index in indexes)
