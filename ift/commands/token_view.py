"""An example's tokens as pieces of readable text, for the terminal and for pages. Needs no torch.

A piece is a token, or several where only together they are a character (a Chinese character or an emoji of several
bytes, a letter with its accents). The pieces of a response, one after another, are the response.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ift.data.encoding import IGNORE_INDEX, Example

_MOST_TOKENS = 64
"""Tokens of a piece after which it ends though its last character is not whole (text may hold U+FFFD itself)."""
_INCOMPLETE = "\ufffd"
_JOINERS = ("\u200d", "\ufe0f", *(chr(code) for code in range(0x1F3FB, 0x1F400)))
"""Characters that belong to the one before them: zero-width joiner, emoji presentation, skin tones."""
_HIDDEN = {*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200B, 0x200E, 0x200F, 0xAD, 0xFEFF}
"""Characters that show nothing, turn the direction of writing or steer a terminal."""


@dataclass(frozen=True)
class Piece:
    """Tokens that are shown together."""

    text: str
    ids: tuple[int, ...]
    position: int
    """Of the first token in the example, from 0."""
    supervised: bool
    """Whether they are labels that the loss counts."""
    special: bool = False
    """Whether it is a special token; text that only looks like one is none."""
    learns: str = ""
    """What the model learns to write here, where that is another token than the one that stands here."""


def pieces(example: Example, tokenizer: Any) -> list[Piece]:
    """Return the pieces of an example.

    Args:
        example: encoded by this tokenizer.
        tokenizer: a fast tokenizer of transformers.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}
    ids, labels = example.input_ids.tolist(), example.labels.tolist()
    decode = _Decoder(tokenizer)
    found: list[Piece] = []
    for start, end in _stretches(ids, labels, special):
        # Nothing predicts the first token, so the loss does not count it whatever its label.
        counted = [label != IGNORE_INDEX for label in (IGNORE_INDEX, *labels[1:])][start:end]
        name = str(tokenizer.convert_ids_to_tokens(ids[start]))
        if labels[start] not in (IGNORE_INDEX, ids[start]):
            learns = str(tokenizer.convert_ids_to_tokens(labels[start]))
            text = name if ids[start] in special else decode(ids[start:end])
            found.append(Piece(text, (ids[start],), start, False, ids[start] in special, learns))
        elif ids[start] in special:
            found.append(Piece(name, (ids[start],), start, counted[0], special=True))
        else:
            for first, last, text in _groups(ids[start:end], decode):
                own = tuple(ids[start + first : start + last])
                found.append(Piece(text, own, start + first, any(counted[first:last])))
    return found


def shown_text(piece: Piece) -> str:
    """Return the text of a piece as it is shown: blanks that are a token of their own as dots."""
    if piece.special:
        return f"⟨{piece.text}⟩"
    if piece.text and not piece.text.strip(" "):
        return "·" * len(piece.text)
    return visible(piece.text)


def visible(text: str) -> str:
    """Return text in which everything can be seen and nothing steers a terminal; line breaks break the line.

    A line break is shown as ⏎ and a break, a tab as ⇥ and a tab, a control character as its picture, another character
    that shows nothing as its code.
    """
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return "⏎\n" if character == "\n" else "⇥\t"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩" if code in _HIDDEN else character


def _stretches(ids: list[int], labels: list[int], special: set[int]) -> Iterator[tuple[int, int]]:
    """Yield where tokens that are decoded together begin and end: text of one kind, or a single special token."""
    kinds = []
    for token, label in zip(ids, labels, strict=True):
        alone = token in special or label not in (IGNORE_INDEX, token)
        kinds.append("alone" if alone else "supervised" if label == token else "text")
    start = 0
    for position in range(1, len(kinds) + 1):
        if position == len(kinds) or kinds[position] == "alone" or kinds[position] != kinds[start]:
            yield start, position
            start = position


class _Decoder:
    """Decodes tokens at the start of a text, or inside it, where a leading blank is one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer("a", add_special_tokens=False).input_ids
        self._before_text = self(self._before)

    def __call__(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def inside(self, ids: list[int]) -> str:
        """Return the text of tokens that follow others."""
        return self([*self._before, *ids]).removeprefix(self._before_text)


def _groups(ids: list[int], decode: _Decoder) -> list[tuple[int, int, str]]:
    """Return the first token, the one behind the last, and the text of each piece."""
    found: list[tuple[int, int, str]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        text = decode.inside(ids[start:end]) if start else decode(ids[start:end])
        if (not text or text.endswith(_INCOMPLETE)) and end < len(ids) and end - start < _MOST_TOKENS:
            continue
        if found and _continues(found[-1][2], text):
            first, _, before = found.pop()
            found.append((first, end, before + text))
        else:
            found.append((start, end, text))
        start = end
    whole = decode(ids)
    if "".join(text for _, _, text in found) != whole:  # a tokenizer whose tokens cannot be decoded apart
        return [(0, len(ids), whole)]
    return found


def _continues(before: str, text: str) -> bool:
    """Whether a text begins inside a character that the one before began."""
    if not before or not text:
        return False
    return before[-1] == "\u200d" or text[0] in _JOINERS or bool(unicodedata.combining(text[0]))
