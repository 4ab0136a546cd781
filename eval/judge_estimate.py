"""What a judge will cost, estimated from characters before anything is asked; no tokenizer of the judge is at hand.

Chinese, Japanese and Korean characters count 1.1 tokens each and all other characters 0.25, about what OpenAI's
`cl100k_base` needs on mixed text; newer vocabularies need fewer tokens for Chinese. Every message adds 4 tokens. How
long the replies will be is an assumption. Both are named as estimates where they are shown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ift.errors import UserError

_WIDE = re.compile(r"[ᄀ-ᇿ⺀-鿿가-힣豈-﫿︰-﹏！-｠𠀀-𯿿]")
_TOKENS_PER_WIDE, _TOKENS_PER_OTHER, _TOKENS_PER_MESSAGE = 1.1, 0.25, 4
REPLY_TOKENS = 250
"""Assumed length of a reply: a score with its reasons."""


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in whatever currency they are given."""

    input: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        if (self.input is None) != (self.output is None):
            raise UserError("--price-input, --price-output: give both or none; they are per million tokens.")
        if any(price is not None and not 0 <= price < float("inf") for price in (self.input, self.output)):
            raise UserError(f"--price-input, --price-output: {self.input}, {self.output}: a price is a number from 0.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the price of that many tokens, `None` where no prices were given."""
        if self.input is None or self.output is None:
            return None
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def sentence(self) -> str:
        """Return it for a person."""
        price = f"about {self.cost:.2f} at the prices given" if self.cost is not None else "price unknown"
        return (
            f"to ask: {self.requests} requests, estimated from characters {self.prompt_tokens:,} prompt tokens and "
            f"(assumed) {self.completion_tokens:,} reply tokens: {price}"
        )


def estimate(chats: Iterable[Sequence[Mapping[str, str]]], prices: Prices, *, max_tokens: int | None) -> Estimate:
    """Return the estimate for chats that are to be sent.

    Args:
        chats: the messages of each request.
        prices: per million tokens.
        max_tokens: limit of a reply, where there is one.
    """
    counts = [sum(_TOKENS_PER_MESSAGE + count_tokens(message["content"]) for message in chat) for chat in chats]
    replies = len(counts) * min(REPLY_TOKENS, max_tokens or REPLY_TOKENS)
    return Estimate(len(counts), sum(counts), replies, prices.cost(sum(counts), replies))


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has."""
    wide = len(_WIDE.findall(text))
    return round(wide * _TOKENS_PER_WIDE + (len(text) - wide) * _TOKENS_PER_OTHER)
