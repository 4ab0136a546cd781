"""SentencePiece models as `tokenizers.Tokenizer`, which gives SentencePiece's own ids.

A model file says how it is to be used: BPE or unigram, a blank before every text or none, whether runs of blanks are
kept, Unicode normalisation, byte fallback, symbols that are never cut. `fast_tokenizer` reads all of it. transformers 5
goes its own way with such files: text that begins with a blank loses it, "no blank before a text" is ignored, and a
unigram model is read as BPE.

BPE ids are equal on every text, except

- where pieces have equal scores and `differences` says that no rule of `tokenizers` tells them apart as SentencePiece
  does (`ift.data.sentencepiece_ties`; for pieces appended to LLaMA's vocabulary with score 0 there is such a rule);
- where a piece holds a character that is no piece itself: `tokenizers` then never makes that piece;
- in a text that is nothing but one user-defined symbol, if the model writes a blank before every text: that blank is
  missing.

Unigram ids are equal except

- where two segmentations are as good as equally likely, mostly in runs of one character: SentencePiece adds up in 32
  bits and `tokenizers` in 64 (12,000 pieces: 2 of 2,099 lines of Wikipedia, stories and classics, 1.1 million
  characters);
- where a text spells out a control or byte piece (`<0x0A>`) and none of its characters is in any other piece;
- where a character without a piece of its own could be covered by a longer piece: unknown characters cost more.

With Unicode normalisation, sequences of code points that no rule composes may lose a mark or come out composed (a
full-width letter with a combining accent, marks out of their canonical order).

Special tokens written out in a text (`</s>`) are text to SentencePiece and special tokens to transformers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ift.data.sentencepiece_ties import TieRules, tie_rules
from ift.errors import UserError

BLANK = "▁"
"""How SentencePiece writes a blank."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_BEGIN, _END = r"\A", r"\z"


def read_model(model: bytes | Path) -> Any:
    """Return a SentencePiece model as its `ModelProto` message.

    Raises:
        UserError: the file cannot be read, or holds no such model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    place = model if isinstance(model, Path) else "the SentencePiece model"
    try:
        content = model.read_bytes() if isinstance(model, Path) else model
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error}).") from error
    message = sentencepiece_model_pb2.ModelProto()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        start = content[:40].decode("utf-8", "replace")
        raise UserError(
            f"{place}: is no SentencePiece model; it begins with {start!r}. Fetch the file again."
        ) from error
    if not message.pieces:
        raise UserError(f"{place}: is no SentencePiece model: it holds no pieces. Fetch the file again.")
    return message


def fast_tokenizer(model: bytes | Path, *, first: Sequence[str] = (), last: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Return a SentencePiece model as a fast tokenizer, which adds nothing to a text.

    Args:
        model: the model's bytes, or its file.
        first: tokens that are not in the model and take ids from 0 on; all ids of the model move up. Never found in a
            text.
        last: special tokens that are not in the model and take the ids after its own.

    Raises:
        UserError: no SentencePiece model, or one that `tokenizers` cannot reproduce.
    """
    message = read_model(model)
    if reason := why_inexact(message):
        place = model if isinstance(model, Path) else "the SentencePiece model"
        raise UserError(f"{place}: this SentencePiece model has no exact fast tokenizer: {reason}.")
    is_bpe = message.trainer_spec.model_type == _BPE
    if is_bpe:
        rules = _tie_rules(message, first)
        tokenizer, cuts = tokenizers.Tokenizer(_bpe(message, first, rules)), list(rules.patterns)
    else:
        tokenizer, cuts = tokenizers.Tokenizer(_unigram(message, first)), _cuts(message, first)
    tokenizer.normalizer = normalizers.Sequence(_normalizer_steps(message))
    if cuts:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cuts]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(_decoder_steps(message))
    control = [*_pieces(message, _UNKNOWN, _CONTROL), *last]
    tokenizer.add_special_tokens([tokenizers.AddedToken(piece, normalized=False, special=True) for piece in control])
    # A BPE model cuts these out of the normalised text, the longest first, before anything is merged.
    symbols = _cut_symbols(message)
    tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=True, special=False) for piece in symbols])
    return tokenizer


def add_begin(tokenizer: tokenizers.Tokenizer, token: str) -> None:
    """Let a tokenizer put a special token before every text, unless told not to add special tokens."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def differences(message: Any) -> tuple[str, ...]:
    """Return why a BPE model's fast tokenizer may give other ids than SentencePiece in rare places; mostly nothing."""
    return _tie_rules(message, ()).problems


def _tie_rules(message: Any, first: Sequence[str]) -> TieRules:
    learned = {piece.piece: merging_score(piece.score) for piece in message.pieces if piece.type == _NORMAL}
    return tie_rules(learned, never=[*first, *(piece.piece for piece in message.pieces if piece.type != _NORMAL)])


def merging_score(score: float) -> float:
    """Return a score as SentencePiece orders merges by it: -0.0, which its trainer writes first, is below 0.0."""
    return math.nextafter(0.0, -1.0) if score == 0 and math.copysign(1.0, score) < 0 else score


def _pieces(message: Any, *types: int) -> list[str]:
    return [piece.piece for piece in message.pieces if piece.type in types]


def why_inexact(message: Any) -> str:
    """Return what a model has that `tokenizers` cannot do as SentencePiece does; empty where there is nothing."""
    trainer, normalizer = message.trainer_spec, message.normalizer_spec
    unused = _pieces(message, _UNUSED)
    if trainer.model_type not in (_BPE, _UNIGRAM):
        return "it is neither a BPE nor a unigram model"
    if trainer.treat_whitespace_as_suffix:
        return "it writes blanks behind words (treat_whitespace_as_suffix)"
    if not normalizer.escape_whitespaces:
        return "it does not write blanks as U+2581 (escape_whitespaces: false)"
    if message.denormalizer_spec.precompiled_charsmap:
        return "it has rules for decoded text (denormalizer_spec)"
    if len(_pieces(message, _UNKNOWN)) != 1:
        return "it does not have exactly one piece for the unknown"
    if unused and trainer.model_type == _BPE:
        return f"it is a BPE model with {len(unused)} unused pieces, such as {unused[0]!r}"
    if single := [piece for piece in (*unused, *_pieces(message, _CONTROL)) if len(piece) == 1]:
        return f"a control or unused piece is a single character: {single[0]!r}"
    if changed := _changed_symbols(message):
        return f"its normalisation would change its user-defined symbol {changed[0]!r}"
    return ""


def _changed_symbols(message: Any) -> list[str]:
    """Return the user-defined symbols that our normalisation would touch; SentencePiece leaves them alone."""
    steps = normalizers.Sequence([*_charsmap(message), *_blank_steps(message), normalizers.Replace(" ", BLANK)])
    return [piece for piece in _pieces(message, _USER_DEFINED) if steps.normalize_str(piece) != piece]


def _cut_symbols(message: Any) -> list[str]:
    """Return the symbols that are cut out of a text; in a unigram model their score alone makes them win."""
    return _pieces(message, _USER_DEFINED) if message.trainer_spec.model_type == _BPE else []


def _charsmap(message: Any) -> list[normalizers.Normalizer]:
    """Return the steps of Unicode normalisation.

    `tokenizers` looks up what a reader takes for one character by the shortest rule that it begins with, and drops the
    rest: a letter with two accents loses one. SentencePiece takes the longest rule. Where the rules are those of NFKC,
    composing such characters first leaves a rule for one code point.
    """
    spec = message.normalizer_spec
    if not spec.precompiled_charsmap:
        return []
    before: list[normalizers.Normalizer] = []
    if spec.name in ("nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"):
        before.append(normalizers.NFC())
    if spec.name.startswith("nmt_"):
        before.append(normalizers.Replace("\r\n", "  "))  # one character to a reader, and two blanks to its rules
    return [*before, normalizers.Precompiled(spec.precompiled_charsmap)]


def _blank_steps(message: Any) -> list[normalizers.Normalizer]:
    """Return what is done to blanks before the blank in front of a text."""
    if not message.normalizer_spec.remove_extra_whitespaces:
        return []
    return [normalizers.Replace(Regex(_BEGIN + " +"), ""), normalizers.Replace(Regex(" +"), " ")]


def _normalizer_steps(message: Any) -> list[normalizers.Normalizer]:
    """Return the steps from a text to what is cut into pieces."""
    spec = message.normalizer_spec
    steps = [*_charsmap(message), *_blank_steps(message)]
    if spec.add_dummy_prefix:
        steps.append(_prefix(_cut_symbols(message)))
    steps.append(normalizers.Replace(" ", BLANK))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(BLANK + "+" + _END), ""))
    return steps


def _prefix(symbols: Sequence[str]) -> normalizers.Normalizer:
    """Return the step that writes a blank before every text.

    `tokenizers` puts the symbols that it looks for through the normaliser too, where they must stay as they are.
    """
    if not symbols:
        return normalizers.Prepend(BLANK)
    alone = "|".join(map(_escaped, symbols))
    return normalizers.Replace(Regex(rf"{_BEGIN}(?!(?:{alone}){_END})(?m:(?=.))"), BLANK)


def _cuts(message: Any, first: Sequence[str]) -> list[str]:
    """Return a pattern, or none, of the places where a unigram model must cut, lest it finds a control or byte piece.

    Such a piece is found where its characters are spelled out and one of them is in no other piece, since that is still
    worse. A cut beside that character costs nothing.
    """
    known = set().union(*(piece.piece for piece in message.pieces if piece.type in (_NORMAL, _USER_DEFINED)))
    pairs = set()
    for token in (*first, *_pieces(message, _UNKNOWN, _CONTROL, _UNUSED, _BYTE)):
        borders = [pair for pair in pairwise(token) if (pair[0] in known) != (pair[1] in known)]
        pairs |= set(borders[:1])
    places = [f"(?<={_escaped(left)})(?={_escaped(right)})" for left, right in sorted(pairs)]
    return ["|".join(places)] if places else []


def _escaped(text: str) -> str:
    """Return a text as a pattern of Oniguruma."""
    return "".join(
        character if character.isalnum() or ord(character) > 127 else f"\\x{ord(character):02x}" for character in text
    )


def _decoder_steps(message: Any) -> list[decoders.Decoder]:
    spec = message.normalizer_spec
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.remove_extra_whitespaces:
        steps.append(decoders.Replace(Regex(_BEGIN + " +"), ""))
    elif spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return steps


def _bpe(message: Any, first: Sequence[str], rules: TieRules) -> models.BPE:
    pieces = [*first, *(piece.piece for piece in message.pieces)]
    return models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=rules.merges,
        unk_token=_pieces(message, _UNKNOWN)[0],
        fuse_unk=True,
        byte_fallback=message.trainer_spec.byte_fallback,
        ignore_merges=bool(rules.patterns),
    )


def _unigram(message: Any, first: Sequence[str]) -> models.Unigram:
    """Return the model with the scores that SentencePiece works with.

    Control, byte and unused pieces must be in the list, but never be found in a text: they get the worst score. A
    user-defined symbol gets a score that no run of pieces reaches: 0.1 for each byte but one, as in version 0.2.3 of
    SentencePiece (-0.1 in versions of 2023).
    """
    learned = [piece.score for piece in message.pieces if piece.type == _NORMAL]
    longest = max(len(token) for token in (*first, *_pieces(message, _UNKNOWN, _CONTROL, _UNUSED, _BYTE)))
    never = 2 * longest * (min(learned) - 10)
    scored = [(token, never) for token in first]
    for piece in message.pieces:
        score = never
        if piece.type == _NORMAL:
            score = piece.score
        elif piece.type == _USER_DEFINED:
            score = 0.1 * (len(piece.piece.encode()) - 1)
        scored.append((piece.piece, score))
    unknown = [piece.type for piece in message.pieces].index(_UNKNOWN)
    return models.Unigram(scored, len(first) + unknown, message.trainer_spec.byte_fallback)
