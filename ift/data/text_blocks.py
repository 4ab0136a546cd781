"""Plain texts joined end to end and cut into blocks of one length, for language-model training (`data.text_blocks`).

In: encoded texts, each from begin-of-text (where the tokenizer writes one) to end-of-text. Out: blocks of exactly
`length` tokens, of which every token is supervised; only what is left over at the end is shorter, and nothing is lost.
As in GPT-2 and Chinese-LLaMA (Cui et al. 2023, arXiv 2304.08177), whose own program leaves the rest out.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from ift.data.conversation import Conversation
from ift.data.encoding import LOSS, EncodedBatch
from ift.data.segments import Segment

Place = TypeVar("Place")
SHORTEST = 3
"""Smallest length of a block: where one token is left over, the block before it gives up its last one, so that each of
the two keeps a label."""


def is_plain_text(conversation: Conversation) -> bool:
    """Whether it is a text alone, asked for by nobody and to be learned: what the layout `text` gives."""
    messages = conversation.messages
    if len(messages) != 1 or conversation.system:
        return False
    (message,) = messages
    to_learn = message.supervised is not False
    return message.role == "assistant" and to_learn and not message.thought and not message.call


def text_segments(conversation: Conversation) -> list[Segment]:
    """Return the segments of a plain text, all supervised; templates have no part in them."""
    text = conversation.messages[0].text
    return [Segment("", "begin", True), Segment(text, "text", True), Segment("", "end", True, ends_response=True)]


class TextBlocks(Generic[Place]):
    """Joins texts and cuts them into blocks, at the same places however the texts are handed over.

    Args:
        length: of a block in tokens, at least `SHORTEST`.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._ids = np.zeros(0, dtype=np.int32)
        self._sizes: list[int] = []
        self._places: list[Place] = []

    def add(self, texts: EncodedBatch, places: Sequence[Place]) -> tuple[EncodedBatch, list[Place]]:
        """Take further texts, and return the blocks that are finished by them.

        Args:
            texts: encoded, each with all that stands around it.
            places: where each comes from.

        Returns:
            The blocks, and for each the place of the text that its first token is of.
        """
        self._ids = np.concatenate((self._ids, texts.input_ids))
        self._sizes += texts.num_tokens.tolist()
        self._places += places
        # One token more than a block is kept back: alone, it would be a block without any label.
        number = max(0, sum(self._sizes) - 2) // self._length
        return self._cut([self._length] * number)

    def finish(self) -> tuple[EncodedBatch, list[Place]]:
        """Return what is left: at most two blocks, of which the last is shorter than the length, or both are."""
        left = sum(self._sizes)
        if left == self._length + 1:
            return self._cut([self._length - 1, 2])
        return self._cut([left] if left else [])

    def _cut(self, lengths: list[int]) -> tuple[EncodedBatch, list[Place]]:
        """Return blocks of these lengths from the beginning of what is held, and hold the rest."""
        bounds = np.cumsum([0, *self._sizes])
        starts = np.cumsum([0, *lengths])
        owners = np.searchsorted(bounds[1:], starts, side="right")  # the text that each block, and the rest, begins in
        places = [self._places[owner] for owner in owners[:-1]]
        taken, first = int(starts[-1]), int(owners[-1])
        blocks = EncodedBatch(self._ids[:taken], np.full(taken, LOSS, np.uint8), np.array(lengths, np.int32))
        self._ids, self._places = self._ids[taken:], self._places[first:]
        self._sizes = np.diff(np.maximum(bounds[first:], taken)).tolist()
        return blocks, places
