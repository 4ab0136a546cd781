"""Merges the pieces of one SentencePiece model into another, as Chinese-LLaMA did with LLaMA's vocabulary.

Ids of the base stay, and so do its normaliser, its special pieces and its training settings. The pieces that it lacks
follow in the order of the model that brings them.

**Scores.** A BPE model merges the pair of neighbours whose result scores best, and LLaMA's scores are 0, -1, -2, … in
the order in which its pieces were learned. With score 0 (`zero`, as Chinese-LLaMA) a new piece is merged before every
old one (the first of LLaMA's scores is -0, which SentencePiece 0.2.3 puts below 0), and of two new pieces the one
further left. With `ranked` the new pieces score above all others, the first of them highest; then no two are equal.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ift.data.sentencepiece_models import differences, merging_score, read_model
from ift.data.sentencepiece_ties import sentencepiece_merge
from ift.errors import UserError

Scores = Literal["zero", "ranked"]
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_TYPES = {_UNIGRAM: "unigram", _BPE: "bpe", 3: "word", 4: "char"}
_LEFT_OUT = {_UNKNOWN: "unknown", _CONTROL: "control", _UNUSED: "unused", _BYTE: "byte"}


@dataclass(frozen=True)
class Merged:
    """A merged model and what went into it."""

    model: bytes
    num_base: int
    """Pieces of the base; the first new one has this id."""
    new: tuple[str, ...]
    """The new pieces in the order of their ids, the padding token not among them."""
    num_in_base: int
    """Pieces of the added model that the base has."""
    num_duplicates: int
    """Pieces that occur again in the added model."""
    left_out: Mapping[str, int]
    """Pieces of the added model that are no text, by type."""
    pad_token: str | None
    unreachable: tuple[str, ...]
    """New pieces that no text becomes, as no two pieces make them."""
    unreachable_base: tuple[str, ...]
    """Pieces of the base that texts became, and that no text becomes any more."""
    differences: tuple[str, ...]
    """Why `tokenizer.json` may give other ids than the model in rare places."""
    normalizers: tuple[str, str]
    """Names of the rules of the base and of the added model."""

    @property
    def num_pieces(self) -> int:
        """Pieces in all."""
        return self.num_base + len(self.new) + (self.pad_token is not None)


def merge_models(base: Path, added: Path, *, scores: Scores = "zero", pad_token: str | None = None) -> Merged:
    """Append what a SentencePiece model has and another lacks.

    Args:
        base: model file that is merged into; BPE.
        added: model file of the new pieces; BPE or unigram.
        scores: of the new pieces.
        pad_token: a padding token to put behind them.

    Raises:
        UserError: a file is no SentencePiece model, or of a type that cannot be merged; the padding token exists.
    """
    message, other = read_model(base), read_model(added)
    _check_types(message, other, base, added)
    before = _learned(message)
    num_base = len(message.pieces)
    counts = _append(message, other)
    new = [piece.piece for piece in message.pieces[num_base:]]
    if scores == "ranked":
        _rank(message, num_base)
    if pad_token is not None:
        _add_pad(message, pad_token)
    after = _learned(message)
    return Merged(
        model=message.SerializeToString(),
        num_base=num_base,
        new=tuple(new),
        num_in_base=counts.pop("in base", 0),
        num_duplicates=counts.pop("duplicate", 0),
        left_out=dict(sorted(counts.items())),
        pad_token=pad_token,
        unreachable=tuple(piece for piece in new if piece in after and not _is_made(piece, after)),
        unreachable_base=tuple(p for p in before if _is_made(p, before) and not _is_made(p, after)),
        differences=differences(message),
        normalizers=(message.normalizer_spec.name or "identity", other.normalizer_spec.name or "identity"),
    )


def describe(merged: Merged, base: Path, added: Path, scores: Scores) -> dict[str, Any]:
    """Return what `merge.json` says."""
    return {
        "format": 1,
        "base": {"file": str(base), "sha256": sha256(base), "pieces": merged.num_base},
        "added": {"file": str(added), "sha256": sha256(added), "in_base": merged.num_in_base}
        | {"duplicates": merged.num_duplicates, "left_out": dict(merged.left_out)},
        "scores": scores,
        "size": merged.num_pieces,
        "first_new_id": merged.num_base,
        "num_new_pieces": len(merged.new),
        "new_pieces": list(merged.new),
        "pad_token": merged.pad_token,
        "unreachable": list(merged.unreachable),
        "unreachable_base": list(merged.unreachable_base),
        "differences": list(merged.differences),
    }


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_types(base: Any, added: Any, base_path: Path, added_path: Path) -> None:
    kind, other = base.trainer_spec.model_type, added.trainer_spec.model_type
    if kind != _BPE:
        raise UserError(
            f"--base: {base_path}: is a {_TYPES.get(kind, kind)} model, and pieces are merged into BPE models only: "
            "the scores of a unigram model are probabilities, which the pieces of another text cannot be given. "
            "Train a new unigram model on both texts instead."
        )
    if other not in (_BPE, _UNIGRAM):
        raise UserError(f"--add: {added_path}: is a {_TYPES.get(other, other)} model. Give a BPE or unigram model.")


def _append(message: Any, other: Any) -> Counter[str]:
    """Append the missing pieces with score 0, and count what was not appended, and why."""
    known, seen, counts = {piece.piece for piece in message.pieces}, set(), Counter[str]()
    for piece in other.pieces:
        if piece.type in _LEFT_OUT:
            counts[_LEFT_OUT[piece.type]] += 1
        elif piece.piece in seen:
            counts["duplicate"] += 1
        elif piece.piece in known:
            counts["in base"] += 1
        else:
            message.pieces.add(piece=piece.piece, score=0.0, type=piece.type)
        seen.add(piece.piece)
    return counts


def _rank(message: Any, num_base: int) -> None:
    best = max((piece.score for piece in message.pieces[:num_base]), default=0.0)
    number = len(message.pieces) - num_base
    for place, piece in enumerate(message.pieces[num_base:]):
        piece.score = max(best, 0.0) + number - place


def _add_pad(message: Any, pad_token: str) -> None:
    found = next((number for number, piece in enumerate(message.pieces) if piece.piece == pad_token), None)
    if found is not None:
        raise UserError(f"--pad-token: '{pad_token}' is a piece already (id {found}). Leave the option out.")
    message.pieces.add(piece=pad_token, score=0.0, type=_CONTROL)
    message.trainer_spec.pad_piece = pad_token


def _learned(message: Any) -> dict[str, float]:
    return {piece.piece: merging_score(piece.score) for piece in message.pieces if piece.type == _NORMAL}


def _is_made(piece: str, scores: Mapping[str, float]) -> bool:
    return len(piece) == 1 or len(sentencepiece_merge(piece, scores)) == 1


def shown(pieces: Collection[str], *, most: int = 5) -> str:
    """Return a few pieces for a message."""
    first = ", ".join(list(pieces)[:most])
    return f"{first}, …" if len(pieces) > most else first
