"""Rows to segments: the one loop by which preparing, trying out and streaming a source read its rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ift.data.conversation import Conversation
from ift.data.layouts import RowError, RowFunction
from ift.data.length import LengthPolicy
from ift.data.row_conversations import to_conversations
from ift.data.rows import RawRow
from ift.data.segments import Segment


@dataclass(frozen=True)
class RenderedRow:
    """A conversation of a row, rendered, or the reason why it cannot be used."""

    row: RawRow
    conversation: Conversation | None = None
    """As its row function gave it; `None` where it cannot be used."""
    segments: list[Segment] = field(default_factory=list)
    reason: str = ""


def render_rows(rows: Iterable[RawRow], function: RowFunction, *, length: LengthPolicy) -> Iterator[RenderedRow]:
    """Yield every conversation of the rows, in order.

    Args:
        rows: of one source.
        function: its row function.
        length: renders, and decides what is supervised.
    """
    for row in rows:
        for conversation in to_conversations(row, function, needs_response=True):
            if isinstance(conversation, RowError):
                yield RenderedRow(row, reason=str(conversation))
                continue
            try:
                yield RenderedRow(row, conversation, length.render(conversation))
            except RowError as error:
                yield RenderedRow(row, reason=str(error))
