"""The patterns that templates are written in: text with fields and special tokens in braces.

`{text}` is a field; `{<|im_end|>}` and `{[gMASK]}` are special tokens, as is `{token:sop}` for one that begins with
neither `<` nor `[`; `{begin}` and `{end}` are the tokenizer's own begin-of-text and end-of-text; `{{` and `}}` are
braces. A pattern is cut into pieces once. Texts are put in later, piece by piece, and never read as a pattern.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ift.data.segments import SegmentKind
from ift.errors import UserError

_BRACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TOKEN_PREFIX = "token:"


@dataclass(frozen=True)
class Field:
    """A place for a text."""

    name: str


@dataclass(frozen=True)
class Special:
    """A special token."""

    kind: SegmentKind
    text: str = ""


Piece = str | Field | Special


def parse_pattern(
    pattern: str, fields: Sequence[str], *, place: str, required: Sequence[str] = ()
) -> tuple[Piece, ...]:
    """Cut a pattern into literal texts, fields and special tokens.

    Args:
        pattern: as the user wrote it.
        fields: names that may stand in braces here.
        place: the key, the pattern and the template that it belongs to, for errors.
        required: those of `fields` that must stand in it, each once.

    Raises:
        UserError: unknown braces, or a field missing or repeated.
    """
    for name in required:
        if f"{{{name}}}" not in pattern:
            raise UserError(f"{place} must contain '{{{name}}}'.")
    pieces: list[Piece] = []
    position = 0
    for match in _BRACE.finditer(pattern):
        _add(pieces, pattern[position : match.start()])
        _add(pieces, _piece(match, fields, place))
        position = match.end()
    _add(pieces, pattern[position:])
    for name in required:
        if pieces.count(Field(name)) != 1:
            raise UserError(f"{place} must contain '{{{name}}}' once, as a field.")
    return tuple(pieces)


def _piece(match: re.Match[str], fields: Sequence[str], place: str) -> Piece:
    found, name = match[0], match[1]
    if found in ("{{", "}}"):
        return found[0]
    if name is not None:
        if name in fields:
            return Field(name)
        if name == "begin" or name == "end":
            return Special("begin" if name == "begin" else "end")
        if name.startswith(("<", "[")):
            return Special("token", name)
        if name.startswith(_TOKEN_PREFIX) and name != _TOKEN_PREFIX:
            return Special("token", name.removeprefix(_TOKEN_PREFIX))
    known = ", ".join("{" + field + "}" for field in (*fields, "begin", "end"))
    raise UserError(
        f"{place}: {found} is no field of this pattern. Known here: {known}, and special tokens as {{<|im_end|>}}, "
        "{[gMASK]} or {token:sop}. Write {{ and }} for braces."
    )


def _add(pieces: list[Piece], piece: Piece) -> None:
    """Append a piece; literal texts that touch become one."""
    if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
        pieces[-1] += piece
    elif piece:
        pieces.append(piece)
