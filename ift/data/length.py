"""What becomes of examples that are longer than `data.max_length`, and of those that have nothing to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ift.data.conversation import Conversation, TrainOn, supervise
from ift.data.counts import TOO_LONG
from ift.data.encoding import NO_LOSS, STOP_LOSS, EncodedBatch, Encoder
from ift.data.layouts import RowError
from ift.data.segments import Segment
from ift.data.templates import Template
from ift.data.text_blocks import TextBlocks, is_plain_text, text_segments

OverLong = Literal["drop", "cut_start", "cut_end", "cut_turns"]
"""`drop` rejects an over-long example; `cut_start` and `cut_end` cut its tokens on that side; `cut_turns` leaves out
its last turns, as few as needed."""


@dataclass(frozen=True)
class Reason:
    """Why a conversation became no example."""

    kind: str
    """Without the conversation's own numbers, for counting."""
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of a batch."""

    batch: EncodedBatch
    """The examples, in order."""
    rejected: dict[int, Reason]
    """Number of a conversation to why it is none of them."""
    cut: frozenset[int]
    """Numbers of the conversations that were shortened."""


class LengthPolicy:
    """Keeps every example within the length.

    Args:
        encoder: renders and encodes conversations of which turns were left out.
        max_length: longest example, in tokens.
        over_long: what becomes of longer ones.
        train_on: what the loss counts.
        text_blocks: whether plain texts are joined and cut into blocks of `max_length`, and so are never too long.
    """

    def __init__(
        self, encoder: Encoder, max_length: int, over_long: OverLong, train_on: TrainOn, text_blocks: bool = False
    ) -> None:
        self._encoder, self._over_long, self._train_on = encoder, over_long, train_on
        self.max_length, self.text_blocks = max_length, text_blocks
        # An encoder must have something to read, be it the end of a request that was cut.
        self._needs_prompt = isinstance(encoder.template, Template) and bool(encoder.template.prompt_end)

    def is_joined(self, conversation: Conversation | None) -> bool:
        """Whether the conversation is a text that becomes part of blocks."""
        return self.text_blocks and conversation is not None and is_plain_text(conversation)

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments of a conversation, with what the loss counts.

        Raises:
            RowError: the template cannot render it.
        """
        if self.is_joined(conversation):
            return text_segments(conversation)
        return self._encoder.template.render(supervise(conversation, self._train_on))

    def num_left_out(self, conversation: Conversation) -> int:
        """Return how many texts were to be learned and are not, as the template allows it of the last response only."""
        template = self._encoder.template
        if not (isinstance(template, Template) and template.last_output_only):
            return 0
        return sum(bool(message.supervised) for message in supervise(conversation, self._train_on).messages[:-1])

    def apply(self, batch: EncodedBatch, conversations: Sequence[Conversation]) -> Outcome:
        """Cut or reject what is too long, and reject what has no supervised token.

        Args:
            batch: the encoded conversations.
            conversations: the same, as their row functions gave them.
        """
        is_long = batch.num_tokens > self.max_length
        if self.text_blocks:
            is_long &= ~np.array([self.is_joined(one) for one in conversations], dtype=bool)
        long = np.flatnonzero(is_long)
        empty = np.flatnonzero((batch.num_supervised == 0) & ~is_long)
        rejected = {int(i): Reason("no token is supervised", "no token is supervised") for i in empty}
        if not len(long) and not rejected:
            return Outcome(batch, {}, frozenset())
        shortened: dict[int, EncodedBatch] = {}
        for i in long.tolist():
            length = int(batch.num_tokens[i])
            one = self._shorten(batch, i, conversations[i]) if self._over_long != "drop" else None
            if one is None:
                rejected[i] = Reason(TOO_LONG, self._too_long(length))
            elif self._needs_prompt and one.loss[0] != NO_LOSS:
                kind = f"{TOO_LONG}; {self._over_long} leaves nothing of the request"
                rejected[i] = Reason(kind, f"{self._too_long(length)}; {self._over_long} leaves nothing of the request")
            elif one.num_supervised[0] == 0:
                text = f"{self._too_long(length)}; {self._over_long} leaves no supervised token"
                rejected[i] = Reason(f"{TOO_LONG}; {self._over_long} leaves nothing to learn", text)
            else:
                shortened[i] = one
        return Outcome(_assembled(batch, shortened, rejected), dict(sorted(rejected.items())), frozenset(shortened))

    def with_blocks(
        self, batch: EncodedBatch, conversations: Sequence[Conversation]
    ) -> tuple[EncodedBatch, EncodedBatch]:
        """Return a batch without the texts that are joined, and the blocks of those alone.

        Args:
            batch: encoded conversations, each within the length or a text.
            conversations: the same.
        """
        texts = np.array([self.is_joined(one) for one in conversations], dtype=bool)
        blocks: TextBlocks[None] = TextBlocks(self.max_length)
        whole, _ = blocks.add(batch.take(texts), [None] * int(texts.sum()))
        rest, _ = blocks.finish()
        return batch.take(~texts) if texts.any() else batch, _concatenated([whole, rest])

    def _too_long(self, length: int) -> str:
        return f"{length} tokens, data.max_length is {self.max_length}"

    def _shorten(self, batch: EncodedBatch, number: int, conversation: Conversation) -> EncodedBatch | None:
        if self._over_long == "cut_turns":
            return self._without_last_turns(conversation)
        start, end = (int(value) for value in batch.starts[number : number + 2])
        # Begin-of-text stays where the tokenizer writes one: a model has seen no text without it.
        begin = 1 if batch.input_ids[start] == self._encoder.begin_token_id else 0
        if self._over_long == "cut_end":
            kept = np.arange(start, start + self.max_length)
        else:
            kept = np.concatenate(
                (np.arange(start, start + begin), np.arange(end - self.max_length + begin, end, dtype=np.int64))
            )
        loss = batch.loss[kept]
        if self._over_long == "cut_start":
            # The end of a response that was cut away is nothing to learn.
            first = min(begin, len(loss) - 1)
            loss[first] = NO_LOSS if loss[first] == STOP_LOSS else loss[first]
        return EncodedBatch(batch.input_ids[kept], loss, np.array([len(kept)], dtype=np.int32))

    def _without_last_turns(self, conversation: Conversation) -> EncodedBatch | None:
        ends = [i + 1 for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        for end in reversed(ends[:-1]):
            if conversation.messages[end - 1].call:
                continue  # a call without its result is no whole turn
            shorter = replace(conversation, messages=conversation.messages[:end])
            try:
                one = self._encoder.encode_batch([self.render(shorter)])
            except RowError:  # a chat template may refuse the shorter one where it took the whole
                continue
            if one.num_tokens[0] <= self.max_length:
                return one
        return None


def _assembled(batch: EncodedBatch, shortened: dict[int, EncodedBatch], rejected: dict[int, Reason]) -> EncodedBatch:
    """Return the batch without what was rejected, and with what was shortened in its place."""
    if not shortened:
        kept = np.ones(len(batch), dtype=bool)
        kept[list(rejected)] = False
        return batch.take(kept)
    starts = batch.starts
    parts = []
    for i in range(len(batch)):
        if i in shortened:
            parts.append(shortened[i])
        elif i not in rejected:
            own = slice(starts[i], starts[i + 1])
            parts.append(EncodedBatch(batch.input_ids[own], batch.loss[own], batch.num_tokens[i : i + 1]))
    return _concatenated(parts)


def _concatenated(parts: Sequence[EncodedBatch]) -> EncodedBatch:
    return EncodedBatch(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.num_tokens for part in parts]),
    )
