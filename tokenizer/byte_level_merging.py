"""Gives a byte-level BPE tokenizer the pieces of another vocabulary.

A piece becomes a token that merges build from the tokens that the base cuts it into: two by one merge, more by a chain
from the left, whose links are tokens too. Shorter pieces come first, so that longer ones are made of them and need few
links. A piece is left out, and counted, where

- it is text that the base's normalisation changes or that its pre-tokenisation cuts (a blank within a piece);
- it is no whole text: a byte, a control piece, part of a character;
- a link of its chain would be an old token that the base never makes in this way: texts without any new token would
  change.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Tokenizer, models

from ift.data.sentencepiece_models import BLANK, read_model
from ift.errors import UserError
from tokenizer.bases import TokenizerFile
from tokenizer.byte_level import BYTE_BLANK, ByteLevel, Merge, is_byte_level, text_of

_NORMAL, _USER_DEFINED = 1, 4


@dataclass(frozen=True)
class Added:
    """What became of the pieces."""

    num_pieces: int
    """New tokens that are pieces of the added vocabulary."""
    num_links: int
    """New tokens that are only on the way to one."""
    left_out: dict[str, int]
    """Pieces that were not added, by reason."""
    unreachable: tuple[str, ...]
    """New tokens whose text the extended tokenizer cuts otherwise."""


def read_texts(found: TokenizerFile) -> Iterator[str]:
    """Yield the texts that the pieces of a tokenizer stand for, in the order of their ids.

    Raises:
        UserError: neither a SentencePiece model nor a byte-level BPE.
    """
    if found.kind == "sentencepiece":
        for piece in read_model(found.path).pieces:
            if piece.type in (_NORMAL, _USER_DEFINED):
                yield piece.piece.replace(BLANK, " ")
        return
    try:
        content = json.loads(found.path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--add: {found.path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict) or not is_byte_level(content):
        raise UserError(f"--add: {found.path}: is not a byte-level BPE. Give one, or a SentencePiece model.")
    special = {token["content"] for token in content.get("added_tokens", [])}
    vocabulary: dict[str, int] = content["model"]["vocab"]
    for token in sorted(vocabulary, key=lambda token: vocabulary[token]):
        if token not in special and (text := text_of(token)) is not None:
            yield text


def add_texts(base: ByteLevel, texts: Sequence[str]) -> Added:
    """Append the tokens and merges that make texts single tokens.

    Args:
        base: is appended to.
        texts: pieces of another vocabulary.
    """
    left_out: Counter[str] = Counter()
    wanted: dict[str, str] = {}
    for text in texts:
        token = base.token_of(text)
        if token is None:
            left_out["cut or changed before merging"] += 1
        elif token in wanted:
            left_out["duplicate"] += 1
        elif token in base:
            left_out["in base"] += 1
        else:
            wanted[token] = text
    cutter = _Cutter(base)
    for token in sorted(wanted, key=len):
        if not _append(base, cutter, token):
            left_out["would change old encodings"] += 1
    made = [token for token in base.new_tokens if token in wanted]
    extended = base.extended()
    extended.encode_special_tokens = True
    encoded = [extended.encode(wanted[token], add_special_tokens=False).tokens for token in made]
    unreachable = tuple(wanted[token] for token, cut in zip(made, encoded, strict=True) if not _is_whole(cut, token))
    return Added(len(made), len(base.new_tokens) - len(made), dict(sorted(left_out.items())), unreachable)


def _is_whole(cut: Sequence[str], token: str) -> bool:
    """Whether a text became one token, but for a blank that the base may put before every text."""
    return list(cut) in ([token], [f"{BYTE_BLANK}{token}"], [BYTE_BLANK, token])


class _Cutter:
    """Cuts a token as the base and the merges so far do, without looking for it as a whole."""

    def __init__(self, base: ByteLevel) -> None:
        model = json.loads(base.tokenizer.to_str())["model"]
        merges = [tuple(one) if isinstance(one, list) else tuple(one.split(" ")) for one in model["merges"]]
        # Whole parts are looked up by `ignore_merges` (Llama 3), where merges need not make them.
        self._model = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
        self._ranks: dict[Merge, int] = {}

    def learn(self, merge: Merge) -> None:
        """Take up a merge that was appended."""
        self._ranks.setdefault(merge, len(self._ranks))

    def cut(self, token: str) -> list[str]:
        """Return the tokens: first as the base alone cuts, then by the appended merges."""
        symbols = [one.value for one in self._model.model.tokenize(token)]
        while True:
            pairs = pairwise(symbols)
            found = [(self._ranks[pair], place) for place, pair in enumerate(pairs) if pair in self._ranks]
            if not found:
                return symbols
            place = min(found)[1]
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]


def _append(base: ByteLevel, cutter: _Cutter, token: str) -> bool:
    """Append a chain of merges from the left, or else from the right; return whether either was possible."""
    symbols = cutter.cut(token)
    if len(symbols) == 1:
        return True  # an earlier chain makes it
    for merges in (_from_left(symbols), _from_right(symbols)):
        if not any(base.is_old("".join(merge)) for merge in merges):
            for merge in merges:
                base.append(merge)
                cutter.learn(merge)
            return True
    return False


def _from_left(symbols: Sequence[str]) -> list[Merge]:
    return [("".join(symbols[:number]), symbols[number]) for number in range(1, len(symbols))]


def _from_right(symbols: Sequence[str]) -> list[Merge]:
    return [(symbols[number - 1], "".join(symbols[number:])) for number in range(len(symbols) - 1, 0, -1)]
