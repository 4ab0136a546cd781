"""The tokenizer's own chat template (Jinja), cut into segments without searching its output for markers.

Where the texts of a conversation come out is found with placeholders, once for all conversations of the same shape
(`chat_structure`). Each conversation is then rendered with its real texts, and must be exactly what the texts between
the fixed parts give; else the template does something with the texts that cannot be segmented, and the row is refused
with that reason. Mere blanks around a response (Llama 2) are left out, so that the response is what the row says.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ift.data.chat_structure import ChatMessage, Structure, find_structure
from ift.data.conversation import Conversation, Message
from ift.data.layouts import RowError
from ift.data.segments import Segment
from ift.errors import UserError

_THINKING = ("enable_thinking", "thinking")
"""The options by which templates turn thoughts on and off."""
DATE = "2024-07-26"
"""What templates that print the date of today print instead, unless `date` among the options says otherwise: the date
that Llama 3's own template falls back to."""
_TODAY = "strftime_now"
"""The function by which templates ask for the date of today."""


class ChatTemplate:
    """A renderer around `tokenizer.apply_chat_template`.

    Args:
        tokenizer: of transformers, with a chat template.
        options: further variables that the template reads, such as `enable_thinking: false` for Qwen3. Where thoughts
            are turned on by name, a response without one is learned with the empty thought that the template writes.
            For a template that prints the date of today, `date` (`"2025-01-31"`) is that date; it is the same on every
            day, so that examples, a resumed run and predictions agree.

    Raises:
        UserError: the tokenizer has no chat template, one that cannot be segmented at all, or a date that is none.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, bool | str] | None = None) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "data.template: 'tokenizer' asks for the tokenizer's own chat template, and this tokenizer has none. "
                "Name another template."
            )
        self._tokenizer = tokenizer
        self._options = dict(options or {})
        try:
            self._source = str(tokenizer.get_chat_template())
        except ValueError as error:  # several, and none of them is called default
            raise UserError(f"data.template: 'tokenizer' cannot be used: {error} Name another template.") from error
        if _TODAY in self._source:
            self._options = {"date": DATE, **self._options}
            self._source = _dated(self._source, _date(self._options["date"]))
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(re.escape(token) for token in tokens) + ")")
        self._cut: dict[str, list[tuple[str, bool]]] = {}
        self._structures: dict[tuple[tuple[str, bool], ...], Structure | RowError] = {}
        self._check()

    def describe(self) -> dict[str, Any]:
        """Return the Jinja source and the options."""
        return {"name": "tokenizer", "chat_template": self._tokenizer.chat_template, "options": self._options}

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments; supervised are each response and what ends it, up to the first special token.

        Raises:
            RowError: the template refuses the conversation, rewrites or leaves out a text, writes a supervised
                response otherwise than after its prompt for generation, or ends one without a special token (the model
                could not learn to stop).
        """
        chat = _chat(conversation)
        if not chat:  # the prompt of plain text
            return []
        structure = self._structure(chat)
        offset = len(chat) - len(conversation.messages)
        rendered = self._apply(chat, chat[-1]["role"] != "assistant")
        texts = _texts(structure, chat, rendered)
        if texts is None:
            raise RowError("the tokenizer's chat template rewrites the text of a message, so it cannot be segmented")
        messages = [None] * offset + list(conversation.messages)
        segments = self._segments(structure, texts, messages)
        for number, problem in structure.problems.items():
            if conversation.messages[number - offset].supervised:
                raise RowError(problem)
        return segments

    def _check(self) -> None:
        """Refuse a template that cannot render the simplest conversation."""
        plain = Message("assistant", "b", supervised=True)
        try:
            self.render(Conversation((Message("user", "a"), plain)))
        except RowError as error:
            raise UserError(
                f"data.template: 'tokenizer' cannot be used: {error}. {self._repair()}Name another template."
            ) from error

    def _repair(self) -> str:
        if any(name in self._options for name in _THINKING):
            return ""
        for name in _THINKING:
            try:
                ChatTemplate(self._tokenizer, {**self._options, name: False})
            except UserError:
                continue
            return (
                f"Without thoughts it can: set data.template_options to {{{name}: false}} (or to {{{name}: true}}, to "
                "learn responses with the thoughts of the rows, empty where a row has none). "
            )
        return ""

    def _structure(self, chat: list[ChatMessage]) -> Structure:
        shape = tuple((message["role"], "reasoning_content" in message) for message in chat)
        structure = self._structures.get(shape)
        if structure is None:
            thinks = any(self._options.get(name) is True for name in _THINKING)
            try:
                structure = find_structure(chat, self._apply, thinks=thinks)
            except RowError as error:
                structure = error
            self._structures[shape] = structure
        if isinstance(structure, RowError):
            raise RowError(str(structure))
        return structure

    def _apply(self, chat: list[ChatMessage], for_generation: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                chat_template=self._source,
                add_generation_prompt=for_generation,
                **self._options,
            )
        except Exception as error:  # a template may fail in any way that Python can, on what it does not expect
            raise RowError(f"the tokenizer's chat template refuses the conversation: {error}") from error
        return str(text)

    def _segments(self, structure: Structure, texts: list[str], messages: list[Message | None]) -> list[Segment]:
        writer = _Writer(self._parts)
        for slot, text in zip(structure.slots, texts, strict=True):
            message = messages[slot.number]
            if message is None or message.role != "assistant":
                # A system text goes with the first request.
                request = message or messages[slot.number + 1]
                flag = request is not None and bool(request.supervised)
                writer.template(slot.before, supervised=flag)
                writer.text(text, supervised=flag)
                continue
            request, flag = messages[slot.number - 1] if slot.number else None, bool(message.supervised)
            writer.template(slot.before, supervised=request is not None and bool(request.supervised))
            writer.template(slot.written, supervised=flag)
            if slot.part == "content":
                writer.response(text, supervised=flag)
            else:
                writer.text(text, supervised=flag)
        writer.template(structure.after, supervised=False)
        return writer.finished()

    def _parts(self, text: str) -> list[tuple[str, bool]]:
        """Cut what the template writes into text and special tokens; the second value says which."""
        if text not in self._cut:
            parts = self._special.split(text)
            self._cut[text] = [(part, place % 2 == 1) for place, part in enumerate(parts) if part]
        return self._cut[text]


class _Writer:
    """Collects segments: neighbouring text of one kind is one segment, the text of a response one of its own."""

    def __init__(self, parts: Callable[[str], list[tuple[str, bool]]]) -> None:
        self._cut_parts = parts
        self._segments: list[Segment] = []
        self._pending: list[str] = []
        self._supervised = False
        self._open: bool | None = None
        """Whether the response was supervised that the template has not ended yet."""

    def text(self, text: str, *, supervised: bool) -> None:
        """Add text of a message that is no response, or of the template."""
        if supervised != self._supervised:
            self._flush()
            self._supervised = supervised
        self._pending.append(text)

    def response(self, text: str, *, supervised: bool) -> None:
        """Add the text of a response."""
        self._flush()
        self._segments.append(Segment(text, "text", supervised))
        self._open = supervised

    def template(self, text: str, *, supervised: bool) -> None:
        """Add what the template writes; up to the first special token after a response it belongs to that."""
        for part, is_special in self._cut_parts(text):
            if self._open is None and not is_special:
                self.text(part, supervised=supervised)
                continue
            self._flush()
            if not is_special and part.strip(" ") == "":
                continue  # Llama 2 writes a blank between a response and its end
            flag = supervised if self._open is None else self._open
            ends = is_special and self._open is not None
            self._segments.append(Segment(part, "token" if is_special else "text", flag, ends_response=ends))
            if is_special:
                self._open = None
        if self._open:
            raise RowError("the tokenizer's chat template ends a response without a special token")
        self._open = None

    def finished(self) -> list[Segment]:
        """Return the segments."""
        self._flush()
        return self._segments

    def _flush(self) -> None:
        text = "".join(self._pending)
        if text:
            self._segments.append(Segment(text, "text", self._supervised))
        self._pending = []


def _date(written: bool | str) -> datetime:
    try:
        return datetime.strptime(str(written), "%Y-%m-%d")
    except ValueError as error:
        raise UserError(
            f"data.template_options: date '{written}' is no date, and the chat template of the tokenizer prints it. "
            f"Write it as year, month and day: '{DATE}'."
        ) from error


def _dated(source: str, day: datetime) -> str:
    """Return a template in which another function stands in the place of the one that knows what day it is.

    As a macro of the template, because transformers hands no function on to it.
    """
    formats = {match[2] for match in re.finditer(rf"{_TODAY}\(\s*(['\"])(.*?)\1\s*\)", source)}
    known = json.dumps({one: day.strftime(one) for one in sorted(formats)})
    refusal = "{{ raise_exception('no date can be set for this format: ' + format) }}"
    macro = f"{{% set {_TODAY}_known = {known} %}}{{% macro {_TODAY}(format) %}}{{% if format in {_TODAY}_known %}}"
    macro += f"{{{{ {_TODAY}_known[format] }}}}{{% else %}}{refusal}{{% endif %}}{{% endmacro %}}"
    return f"{macro}\n{source}"  # Jinja leaves out a newline behind a block


def _chat(conversation: Conversation) -> list[ChatMessage]:
    """Return the messages as chat templates read them."""
    chat: list[ChatMessage] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for message in conversation.messages:
        text = f"{message.text}\n{message.context}" if message.context else message.text
        chat.append({"role": message.role, "content": text})
        if message.thought:
            chat[-1]["reasoning_content"] = message.thought
    return chat


def _texts(structure: Structure, chat: list[ChatMessage], rendered: str) -> list[str] | None:
    """Return the text in each slot, as the template wrote it: all of it, or without blanks or newlines at its ends.

    Returns:
        `None` where the rendering is not what the texts between the fixed parts give.
    """
    fixed = [slot.fixed for slot in structure.slots] + [structure.after]
    texts, position = [], len(fixed[0])
    if not rendered.startswith(fixed[0]):
        return None
    for slot, following in zip(structure.slots, fixed[1:], strict=True):
        for text in _variants(chat[slot.number][slot.part]):
            if rendered.startswith(text + following, position):
                texts.append(text)
                position += len(text) + len(following)
                break
        else:
            return None
    return texts if position == len(rendered) else None


def _variants(text: str) -> list[str]:
    if text.strip() == text:
        return [text]
    ends = (text.strip(), text.strip("\n"), text.lstrip(), text.lstrip("\n"), text.rstrip(), text.rstrip("\n"))
    return [text, *ends]
