"""Templates: a conversation in, segments out. The label mask falls out of the segments; nothing is searched for.

A template is data. Rendering a conversation that ends with a request gives the prompt that a model answers at
inference; with the response appended it gives the same segments, then the response and end-of-text. So the prompt of
training and of inference cannot differ.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ift.data.conversation import Conversation, Message
from ift.errors import UserError, unknown_name


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation, tokenized on its own.

    All text between two responses is one segment, and every response is one, supervised or not: so a response has the
    same ids wherever it stands.
    """

    text: str
    """The text; for kind `token` the special token as written, for `begin` and `end` empty."""
    kind: Literal["text", "token", "begin", "end"] = "text"
    """`text` never yields special tokens, whatever it says; `begin` and `end` are the tokenizer's begin-of-text (where
    it uses one) and end-of-text."""
    supervised: bool = False
    """Whether the loss counts its tokens."""
    stop_label: bool = False
    """Whether the label of its first token is end-of-text: for chat formats in which a response before the last is
    followed by the next request without any token that ends it (Baichuan2). Only for unsupervised segments."""
    ends_response: bool = False
    """Whether it ends a response; end-of-text stands for such a token where the tokenizer lacks it. Any other token
    that the tokenizer lacks is written as text."""


class Renderer(Protocol):
    """What turns conversations into segments: a `Template`, or the tokenizer's own chat template."""

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments of a conversation; of one that ends with a request, the prompt."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return all that decides the rendering, for the run folder and the cache key."""
        ...


@dataclass(frozen=True)
class Template:
    """A template of fixed text around the messages."""

    name: str
    user: str
    """How a request is written; must contain `{text}`. Ends where the response begins."""
    user_with_context: str = ""
    """How a request with a context is written; must contain `{text}` and `{context}`. Empty: the context follows the
    text after a newline."""
    system: str = ""
    """Text before the first request, unless the row gives its own."""
    system_with_context: str = ""
    """The same where the first request has a context; empty: as `system`."""
    after_system: str = "\n\n"
    """Between system text and first request; left out where there is no system text."""
    between_turns: str = "\n\n"
    """Between the end-of-text of a response and the next request."""

    def __post_init__(self) -> None:
        if "{text}" not in self.user:
            raise UserError(f"data.template.user: {self.user!r} of template '{self.name}' must contain '{{text}}'.")
        if self.user_with_context and not all(field in self.user_with_context for field in ("{text}", "{context}")):
            raise UserError(
                f"data.template.user_with_context: {self.user_with_context!r} of template '{self.name}' must contain "
                "'{text}' and '{context}'."
            )

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return begin-of-text, then each request unsupervised, each response supervised and ended by end-of-text."""
        segments = [Segment("", "begin")]
        for number, message in enumerate(conversation.messages):
            if message.role == "user":
                before = self.between_turns if number else self._opening(conversation)
                segments.append(Segment(before + self._request(message)))
            else:
                segments += [
                    Segment(message.text, supervised=bool(message.supervised)),
                    Segment("", "end", supervised=bool(message.supervised), ends_response=True),
                ]
        return segments

    def describe(self) -> dict[str, Any]:
        """Return the template's fields."""
        return asdict(self)

    def _opening(self, conversation: Conversation) -> str:
        with_context = conversation.messages[0].context and self.system_with_context
        system = conversation.system or (self.system_with_context if with_context else self.system)
        return system + self.after_system if system else ""

    def _request(self, message: Message) -> str:
        # One pass over the pattern: text that itself contains '{context}' must stay as it is.
        if message.context and self.user_with_context:
            return _fill(self.user_with_context, {"text": message.text, "context": message.context})
        text = f"{message.text}\n{message.context}" if message.context else message.text
        return _fill(self.user, {"text": text})


def _fill(pattern: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        before, found, after = pattern.partition("{" + name + "}")
        if found:
            rest = {key: text for key, text in values.items() if key != name}
            return _fill(before, rest) + value + _fill(after, rest)
    return pattern


_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_ALPACA_SYSTEM_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # Stanford Alpaca's prompt_no_input and prompt_input (train.py, 2023).
        Template(
            name="alpaca",
            user="### Instruction:\n{text}\n\n### Response:",
            user_with_context="### Instruction:\n{text}\n\n### Input:\n{context}\n\n### Response:",
            system=_ALPACA_SYSTEM,
            system_with_context=_ALPACA_SYSTEM_WITH_CONTEXT,
        ),
        # Chinese-LLaMA-Alpaca's single form (scripts/training/build_dataset.py): the input follows the instruction.
        Template(
            name="chinese_alpaca",
            user="### Instruction:\n{text}\n\n### Response: ",
            system=_ALPACA_SYSTEM,
        ),
        Template(name="plain", user="{text}\n", between_turns="\n"),
    )
}

TOKENIZER_TEMPLATE = "tokenizer"
"""Name under which a YAML asks for the chat template that the tokenizer brings along."""


def resolve_template(key: str, template: str | Template) -> Template | None:
    """Return the template of that name, or `None` for the tokenizer's own.

    Raises:
        UserError: the name is unknown.
    """
    if isinstance(template, Template):
        return template
    if template == TOKENIZER_TEMPLATE:
        return None
    if template not in TEMPLATES:
        hint = "A template of your own is written out in place of the name (name, user, ...)."
        raise unknown_name(key, template, (*TEMPLATES, TOKENIZER_TEMPLATE), hint=hint)
    return TEMPLATES[template]
