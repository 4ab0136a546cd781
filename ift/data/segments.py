"""What templates make of a conversation, and what the encoder reads."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ift.data.conversation import Conversation

SegmentKind = Literal["text", "token", "begin", "end"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation, tokenized on its own.

    Text between two responses is in as few segments as the special tokens in it allow, and the text of every response
    is a segment of its own, supervised or not: so a response has the same ids wherever it stands.
    """

    text: str
    """The text; for kind `token` the special token as written, for `begin` and `end` empty."""
    kind: SegmentKind = "text"
    """`text` never yields special tokens, whatever it says; `begin` and `end` are the tokenizer's begin-of-text (where
    it uses one) and end-of-text."""
    supervised: bool = False
    """Whether the loss counts its tokens."""
    stop_label: bool = False
    """Whether the label of its first token is end-of-text: for chat formats in which a response before the last is
    followed by the next request without any token that ends it (Baichuan2). Only for unsupervised segments."""
    ends_response: bool = False
    """Whether this is the token by which a response ends, at which generation stops. A tokenizer that lacks a special
    token gets its text instead, but in this place end-of-text, so that a model can always learn to stop."""
    begins_response: bool = False
    """Whether it is the token before the last response that is learned with it (ChatGLM-6B). A tokenizer that lacks it
    gets its text as any other part of the prompt."""


class Renderer(Protocol):
    """What turns conversations into segments: a `Template`, or the tokenizer's own chat template."""

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments of a conversation; of one that ends with a request, the prompt."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return all that decides the rendering, for the run folder and the cache key."""
        ...
