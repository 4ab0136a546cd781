"""Render conversations with the pieces of a template's patterns: the hot path of preparing millions of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ift.data.conversation import Conversation, Message
from ift.data.layouts import RowError
from ift.data.segments import Segment
from ift.data.template_patterns import Field, Piece, Special

Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class RequestPieces:
    """The patterns of what the model reads; where one is empty, another stands in for it."""

    begin: Pieces
    user: Pieces
    user_with_context: Pieces
    """Empty: `user`, with the context after the text and a newline."""
    user_with_system: Pieces
    """Empty: `system`, then the pattern of a request without one."""
    single_turn_user: Pieces
    """Empty: `user`."""
    tool: Pieces
    """Empty: `user`."""
    system: Pieces
    between_turns: Pieces
    before_last_response: Pieces
    prompt_end: Pieces


class ResponsePieces:
    """What stands around a text that the model writes, as segments that are made once.

    Args:
        pieces: of a pattern with one field.
    """

    def __init__(self, pieces: Pieces) -> None:
        place = next(number for number, piece in enumerate(pieces) if isinstance(piece, Field))
        before, after = pieces[:place], pieces[place + 1 :]
        self.ends = any(isinstance(piece, Special) for piece in after)
        """Whether a special token ends the text."""
        self._before = [_fixed(before, supervised=flag, ends=False) for flag in (False, True)]
        self._after = [_fixed(after, supervised=flag, ends=True) for flag in (False, True)]

    def write(self, text: str, segments: list[Segment], *, supervised: bool) -> None:
        """Append the segments of a text."""
        segments += self._before[supervised]
        segments.append(Segment(text, "text", supervised))
        segments += self._after[supervised]


def _fixed(pieces: Sequence[Piece], *, supervised: bool, ends: bool) -> list[Segment]:
    segments: list[Segment] = []
    for piece in pieces:
        if isinstance(piece, Special):
            segments.append(Segment(piece.text, piece.kind, supervised, ends_response=ends))
            ends = False  # generation stops at the first token after a text
        elif isinstance(piece, str):
            segments.append(Segment(piece, "text", supervised))
    return segments


class Stretch:
    """All that stands between two responses or before the first, or a thought: text with places for texts.

    Text between two special tokens is one segment. What holds no field is made once.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.takes_context = Field("context") in pieces
        self._steps: list[str | tuple[Segment, Segment]] = []
        """A format for `%` and the fields, or the segment itself, unsupervised and supervised."""
        run: list[str | Field] = []
        for piece in pieces:
            if isinstance(piece, Special):
                self._add_text(run)
                run = []
                self._steps.append((Segment(piece.text, piece.kind), Segment(piece.text, piece.kind, True)))
            else:
                run.append(piece)
        self._add_text(run)

    def _add_text(self, run: Sequence[str | Field]) -> None:
        text = "".join(piece for piece in run if isinstance(piece, str))
        if any(isinstance(piece, Field) for piece in run):
            parts = [piece.replace("%", "%%") if isinstance(piece, str) else f"%({piece.name})s" for piece in run]
            self._steps.append("".join(parts))
        elif text:
            self._steps.append((Segment(text), Segment(text, "text", True)))

    def write(self, values: Mapping[str, str], segments: list[Segment], *, supervised: bool, stop_label: bool) -> None:
        """Append the segments; an empty text is none."""
        start = len(segments)
        for step in self._steps:
            if isinstance(step, tuple):
                segments.append(step[supervised])
            elif text := step % values:
                segments.append(Segment(text, "text", supervised))
        if stop_label and len(segments) > start:
            segments[start] = Segment(segments[start].text, segments[start].kind, supervised, stop_label=True)


@dataclass(frozen=True)
class AnswerPieces:
    """The patterns of what the model writes."""

    response: ResponsePieces
    earlier_response: ResponsePieces
    thought: Stretch
    call: ResponsePieces | None
    """`None`: as a response."""


@dataclass(frozen=True)
class Defaults:
    """The rest of what a template decides."""

    system: str
    system_with_context: str
    first_round: int
    last_output_only: bool


class Rendering:
    """A template, ready to render."""

    def __init__(self, requests: RequestPieces, answers: AnswerPieces, defaults: Defaults) -> None:
        self._requests = requests
        self._answers = answers
        self._defaults = defaults
        self._stretches: dict[tuple[bool, ...], Stretch] = {}

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments of a conversation of which every message knows whether it is supervised."""
        messages = conversation.messages
        last = len(messages) - 1
        last_request = last - 1 if messages and messages[last].role == "assistant" else last
        segments: list[Segment] = []
        stop_due = False  # whether the response before was to be learned, and nothing in the text says that it ended
        if last_request < 0 and self._requests.prompt_end:
            raise RowError("an encoder-decoder model reads a request, and the row has none")
        if last_request < 0:  # plain text
            opening = Stretch(self._requests.begin + self._requests.before_last_response)
            opening.write({}, segments, supervised=False, stop_label=False)
        number = self._defaults.first_round
        for place, message in enumerate(messages):
            supervised = bool(message.supervised) and (place == last or not self._defaults.last_output_only)
            if message.role == "assistant":
                if place == last and self._requests.before_last_response:
                    segments[-1] = Segment(segments[-1].text, segments[-1].kind, supervised, begins_response=True)
                stop_due = self._answer(message, segments, supervised=supervised, is_last=place == last)
                continue
            system = self._system(conversation) if place == 0 else ""
            stretch = self._stretch(message, place, last_request=last_request, with_system=bool(system))
            joined = message.context and not stretch.takes_context
            text = f"{message.text}\n{message.context}" if joined else message.text
            values = {"text": text, "context": message.context, "system": system, "round": str(number)}
            stretch.write(values, segments, supervised=supervised, stop_label=stop_due and not supervised)
            number += message.role == "user" or not self._requests.tool
        return segments

    def _answer(self, message: Message, segments: list[Segment], *, supervised: bool, is_last: bool) -> bool:
        """Append what the model writes; return whether the next segment must say where it stops."""
        answers = self._answers
        if message.thought:
            answers.thought.write({"thought": message.thought}, segments, supervised=supervised, stop_label=False)
        answer = answers.response if is_last else answers.earlier_response
        if message.call and answers.call:
            answer = answers.call
        answer.write(message.text, segments, supervised=supervised)
        return supervised and not answer.ends

    def _system(self, conversation: Conversation) -> str:
        defaults = self._defaults
        with_context = defaults.system_with_context if conversation.messages[0].context else ""
        return conversation.system or with_context or defaults.system

    def _stretch(self, message: Message, place: int, *, last_request: int, with_system: bool) -> Stretch:
        """Return what stands before the next response; each case is made once."""
        is_tool, is_last = message.role == "tool", place == last_request
        case = (place == 0, is_last, last_request == 0, is_tool, with_system, bool(message.context))
        stretch = self._stretches.get(case)
        if stretch is None:
            opening = self._opening(is_tool, first=place == 0, with_system=with_system)
            request = self._request(is_tool, only=last_request == 0, with_context=bool(message.context))
            if place == 0 and with_system and self._requests.user_with_system:
                opening, request = self._requests.begin, self._requests.user_with_system
            closing = self._requests.prompt_end + self._requests.before_last_response if is_last else ()
            stretch = self._stretches[case] = Stretch(opening + request + closing)
        return stretch

    def _opening(self, is_tool: bool, *, first: bool, with_system: bool) -> Pieces:
        requests = self._requests
        if first:
            return requests.begin + requests.system if with_system else requests.begin
        return () if is_tool and requests.tool else requests.between_turns

    def _request(self, is_tool: bool, *, only: bool, with_context: bool) -> Pieces:
        requests = self._requests
        if is_tool and requests.tool:
            return requests.tool
        if with_context and requests.user_with_context:
            return requests.user_with_context
        if only and requests.single_turn_user:
            return requests.single_turn_user
        return requests.user
