"""Examples and the audit as text for the terminal, with colour or without."""

from collections.abc import Iterable
from itertools import groupby

from ift.commands.audit_numbers import audit_lines, by_count, describe_source, histogram, number, turns_of
from ift.commands.inspection import Inspection, Shown
from ift.commands.token_view import Piece, shown_text, visible
from ift.data.audit import Audit
from ift.data.counts import SourceCounts

_RESET = "\x1b[0m"
_PLAIN, _SPECIAL, _LEARNS, _HEAD, _PROBLEM = "\x1b[2m", "\x1b[35m", "\x1b[1;33m", "\x1b[1m", "\x1b[1;31m"
_SUPERVISED = ("\x1b[30;48;5;157m", "\x1b[30;48;5;114m")
"""Two shades, so that the borders between tokens can be seen."""
_SUPERVISED_SPECIAL = "\x1b[1;35;48;5;157m"
_BARS = "▁▂▃▄▅▆▇█"
_MOST_COLUMNS = 5
"""Sources side by side in a table."""


def example_text(shown: Shown, *, colour: bool) -> str:
    """Return an example with its header.

    Args:
        shown: the example.
        colour: whether supervised tokens are marked by colour; by ⟦ and ⟧ otherwise.
    """
    title = _painted(shown.title, _HEAD) if colour else shown.title
    header = " · ".join([title, *map(visible, shown.facts)])
    body = _coloured(shown.pieces) if colour else _bracketed(shown.pieces)
    return f"{header}\n{body}\n"


def legend(*, colour: bool) -> str:
    """Return what the marks mean."""
    if colour:
        supervised = _painted("supervised tokens", _SUPERVISED[0])
        marks = f"{supervised}, {_painted('other tokens', _PLAIN)}, {_painted('⟨special tokens⟩', _SPECIAL)}"
    else:
        marks = "⟦supervised tokens⟧, other tokens, ⟨special tokens⟩"
    learns = "⟨learns: …⟩ what is learned in place of the token behind it"
    return f"{marks}, {learns}; ⏎ newline, ⇥ tab, · a blank that is a token"


def _bracketed(pieces: Iterable[Piece]) -> str:
    parts = []
    for (supervised, learns), group in groupby(pieces, key=lambda piece: (piece.supervised, piece.learns)):
        text = "".join(shown_text(piece) for piece in group)
        parts.append(f"⟦⟨learns: {learns}⟩⟧{text}" if learns else f"⟦{text}⟧" if supervised else text)
    return "".join(parts)


def _coloured(pieces: Iterable[Piece]) -> str:
    parts = []
    for place, piece in enumerate(pieces):
        if piece.learns:
            parts.append((f"⟨learns: {piece.learns}⟩", _LEARNS))
        if piece.supervised:
            code = _SUPERVISED_SPECIAL if piece.special else _SUPERVISED[place % 2]
        else:
            code = _SPECIAL if piece.special else _PLAIN
        parts.append((shown_text(piece), code))
    runs = groupby(parts, key=lambda part: part[1])
    return "".join(_painted("".join(text for text, _ in run), code) for code, run in runs)


def _painted(text: str, code: str) -> str:
    """Return text in a colour that ends with each line, so that no background runs to the edge of the terminal."""
    return "\n".join(f"{code}{line}{_RESET}" if line else "" for line in text.split("\n"))


def audit_text(inspected: Inspection, *, colour: bool) -> str:
    """Return the audit."""
    sources = inspected.audit.sources
    lines = [_painted("audit", _HEAD) if colour else "audit"]
    lines += [f"  [{place}] {visible(describe_source(source.counts))}" for place, source in enumerate(sources)]
    lines += _table(inspected.audit)
    if len(sources) > 1:
        between = number(inspected.audit.duplicates_between_sources)
        lines.append(f"  between sources: {between} duplicates of an example of an earlier source")
    for place, source in enumerate(sources):
        lines += _details(source.counts, f"{inspected.key}[{place}]", inspected.data.max_length)
    lines += [f"  {name}: {visible(str(path))}" for name, path in inspected.row_files.items()]
    for problem in inspected.problems:
        text = f"impossible: {visible(problem)}"
        lines.append(_painted(text, _PROBLEM) if colour else text)
    return "\n".join(lines)


def _table(audit: Audit) -> list[str]:
    facts = audit_lines(audit)
    heads = [f"[{place}]" for place in range(len(audit.sources))] + (["all"] if len(audit.sources) > 1 else [])
    lines = []
    for first in range(0, len(heads), _MOST_COLUMNS):
        own = slice(first, first + _MOST_COLUMNS)
        rows = [("", *heads[own]), *((fact.label, *fact.values[own]) for fact in facts)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  " + "  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def _details(counts: SourceCounts, key: str, max_length: int) -> list[str]:
    """Return lengths, turns, and rows that became no example."""
    lines = []
    if bins := histogram(counts):
        most = max(one.count for one in bins)
        bars = "".join(" " if not one.count else _BARS[(one.count * 8 - 1) // most] for one in bins)
        ends = f"from {number(bins[0].lower)} {bars} to {number(counts.longest)} tokens"
        lines.append(f"  {key}: lengths {ends}, data.max_length is {number(max_length)}")
    turns = [turn.cells for turn in turns_of(counts)]
    for name, examples, tokens, mean in turns if len(turns) > 1 else []:
        lines.append(f"  {key}: turn {name}: {examples} examples, {tokens} supervised tokens, {mean} per response")
    for what, reasons in (("rejected", counts.rejected), ("left out", counts.removed)):
        lines += [f"  {key}: {what}: {number(count)} x {visible(reason)}" for reason, count in by_count(reasons)]
    return lines + [f"  {key}: first rejected: {visible(place)}" for place in counts.first_rejects]
