"""The tokenizer's own chat template (Jinja), cut into segments without searching its output for markers.

The template is rendered twice: with the real messages, and with a unique placeholder in the place of each text. The
placeholders give the borders; putting the texts back in must give exactly the first rendering, else the template does
something with the texts that cannot be segmented, and the row is refused with that reason.
"""

import re
from typing import Any

from ift.data.conversation import Conversation
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
        ending = False  # inside what the template writes after a supervised response
        for position, piece in enumerate(pieces):
            if position % 2:
                number = int(piece)
                ending = chat[number]["role"] == "assistant" and conversation.messages[number - offset].supervised
                segments.append(Segment(texts[number], supervised=ending))
                continue
            for part in self._special.split(piece):
                if part:
                    special = self._special.fullmatch(part) is not None
                    segments.append(Segment(part, "token" if special else "text", supervised=ending))
                    ending = ending and not special
            if ending:
                raise RowError("the tokenizer's chat template ends a response without a special token")
        return segments
