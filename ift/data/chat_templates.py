"""The tokenizer's own chat template (Jinja), cut into segments without searching its output for markers.

The template is rendered twice: with the real messages, and with a unique placeholder in the place of each text. The
placeholders give the borders; putting the texts back in must give exactly the first rendering, else the template does
something with the texts that cannot be segmented, and the row is refused with that reason.
"""

import re
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.layouts import RowError
from ift.data.templates import Segment
from ift.errors import UserError

# From Unicode's private use area, so that no text has them by accident.
_PLACEHOLDER = "\ue0f1{}\ue0f2"
_PLACEHOLDER_PATTERN = re.compile("\ue0f1(\\d+)\ue0f2")


class ChatTemplate:
    """A renderer around `tokenizer.apply_chat_template`."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "data.template: 'tokenizer' asks for the tokenizer's own chat template, and this tokenizer has none. "
                "Name another template."
            )
        self._tokenizer = tokenizer
        tokens = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(re.escape(token) for token in tokens) + ")")
        self._check_prompt()

    def describe(self) -> dict[str, Any]:
        """Return the Jinja source."""
        return {"name": "tokenizer", "chat_template": self._tokenizer.chat_template}

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments; supervised are each response and what ends it, up to the first special token.

        Raises:
            RowError: the template refuses the conversation, rewrites a text, or ends a response without a special
                token (the model could not learn to stop).
        """
        chat = self._chat(conversation)
        ends_with_request = chat[-1]["role"] == "user"
        texts = [turn["content"] for turn in chat]
        masked = [{**turn, "content": _PLACEHOLDER.format(number)} for number, turn in enumerate(chat)]
        pieces = _PLACEHOLDER_PATTERN.split(self._apply(masked, ends_with_request))
        rendered = self._apply(chat, ends_with_request)
        for candidate in (texts, [text.strip() for text in texts]):
            if "".join(candidate[int(p)] if i % 2 else p for i, p in enumerate(pieces)) == rendered:
                return self._segments(conversation, chat, candidate, pieces)
        raise RowError("the tokenizer's chat template rewrites the text of a message, so it cannot be segmented")

    def _check_prompt(self) -> None:
        """Refuse a template whose prompt for generation is not what it writes before a response."""
        conversation = Conversation((Message("user", "a"), Message("assistant", "b", supervised=True)))
        try:
            prompt, whole = self.render(conversation.prompt), self.render(conversation)
        except RowError as error:
            raise UserError(f"data.template: 'tokenizer' cannot be used: {error}. Name another template.") from error
        if whole[: len(prompt)] != prompt:
            raise UserError(
                "data.template: 'tokenizer' cannot be used: the tokenizer's chat template writes another prompt for "
                "generation than it writes before a response, so training and prediction would differ. Name another "
                "template."
            )

    def _chat(self, conversation: Conversation) -> list[dict[str, str]]:
        chat = [{"role": "system", "content": conversation.system}] if conversation.system else []
        for message in conversation.messages:
            text = f"{message.text}\n{message.context}" if message.context else message.text
            chat.append({"role": message.role, "content": text})
        return chat

    def _apply(self, chat: list[dict[str, str]], ends_with_request: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ends_with_request)
        except TemplateError as error:
            raise RowError(f"the tokenizer's chat template refuses the conversation: {error}") from error
        return str(text)

    def _segments(
        self, conversation: Conversation, chat: list[dict[str, str]], texts: list[str], pieces: list[str]
    ) -> list[Segment]:
        offset = len(chat) - len(conversation.messages)
        segments: list[Segment] = []
        response: Message | None = None  # the one whose end the template has not written yet
        for position, piece in enumerate(pieces):
            if position % 2:
                number = int(piece)
                response = conversation.messages[number - offset] if chat[number]["role"] == "assistant" else None
                _add_text(segments, texts[number], response)
                continue
            for part in filter(None, self._special.split(piece)):
                if self._special.fullmatch(part):
                    supervised = response is not None and bool(response.supervised)
                    ends = response is not None
                    segments.append(Segment(part, "token", supervised=supervised, ends_response=ends))
                    response = None
                else:
                    _add_text(segments, part, response)
            if response is not None:
                raise RowError("the tokenizer's chat template ends a response without a special token")
        return segments


def _add_text(segments: list[Segment], text: str, response: Message | None) -> None:
    """Add text of a response, or of what stands between two: there, neighbouring texts become one segment."""
    if response is not None:
        segments.append(Segment(text, supervised=bool(response.supervised)))
    elif segments and segments[-1].kind == "text":
        segments[-1] = Segment(segments[-1].text + text)
    else:
        segments.append(Segment(text))
