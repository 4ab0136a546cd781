"""Templates: a conversation in, segments out. The label mask falls out of the segments; nothing is searched for.

A template is data. Rendering a conversation that ends with a request gives the prompt that a model answers at
inference; with the response appended it gives the same segments, then the response and what ends it. So the prompt of
training and of inference cannot differ. The named templates are in `templates.yaml` beside this file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ift.data.conversation import Conversation
from ift.data.segments import Renderer, Segment
from ift.data.template_patterns import Piece, Special, parse_pattern
from ift.data.template_rendering import AnswerPieces, Defaults, Rendering, RequestPieces, ResponsePieces, Stretch
from ift.errors import UserError, unknown_name

__all__ = ["TEMPLATES", "TOKENIZER_TEMPLATE", "Renderer", "Segment", "Template", "load_templates", "resolve_template"]


@dataclass(frozen=True)
class Template:
    """Patterns around the messages: text, fields as `{text}`, special tokens as `{<|im_end|>}`, `{begin}`, `{end}`.

    `{begin}` is the tokenizer's begin-of-text, where it uses one, `{end}` its end-of-text. A token that begins with
    neither `<` nor `[` is written `{token:sop}`, a brace `{{` or `}}`. What a message says is never read as a pattern.
    """

    name: str
    """What errors and the run folder call it."""
    user: str
    """How a request is written, with `{text}` and, where rounds are counted, `{round}`. Ends where the response
    begins."""
    user_with_context: str = ""
    """How a request with a context (alpaca's `input`) is written, with `{text}`, `{context}`, `{round}`. Empty: as
    `user`, the context following the text after a newline."""
    single_turn_user: str = ""
    """How the request is written where the conversation has only one. Empty: as `user`."""
    user_with_system: str = ""
    """How the first request is written where there is a system text, with `{system}`, `{text}`, `{round}`; a context
    follows the text after a newline. Empty: as `system_format`, then the request."""
    system: str = ""
    """System text, unless the row gives its own; plain text, in which braces mean themselves."""
    system_with_context: str = ""
    """The same where the first request has a context. Empty: as `system`."""
    system_format: str = "{system}\n\n"
    """How a system text is written before the first request, with `{system}`."""
    response: str = "{text}{end}"
    """How a response is written, with `{text}` and then the token that ends it; all of it is supervised."""
    earlier_response: str = ""
    """How a response is written that is not the last. Where no token ends it, the label on the first token of the next
    request is end-of-text (Baichuan2), unless that request is itself supervised. Empty: as `response`."""
    thought: str = "{thought}\n"
    """How a thought is written before its response or call, with `{thought}`; supervised as they are."""
    call: str = ""
    """How a call of a tool is written, with `{text}` and the token that ends it. Empty: as `earlier_response`."""
    tool: str = ""
    """How the result of a tool is written, with `{text}`; `between_turns` does not stand before it. Empty: as a
    request."""
    begin: str = "{begin}"
    """What every conversation begins with."""
    between_turns: str = "\n\n"
    """Between the end of a response and the next request."""
    before_last_response: str = ""
    """Special tokens before the last response, part of the prompt. The last of them is supervised with the response
    (ChatGLM-6B)."""
    prompt_end: str = ""
    """Special tokens that the prompt of the last response ends with; not learned. `{end}` for an encoder-decoder model,
    whose encoder reads texts that end so (T5); it then is set without being written here."""
    first_round: int = 1
    """The number in `{round}` of the first request."""
    last_output_only: bool = False
    """Whether nothing before the last response can be supervised, because the model attends to it in both directions
    (ChatGLM-6B). It then stays without loss, whatever `train_on` and the messages say."""

    def __post_init__(self) -> None:
        _ = self._rendering  # a wrong pattern is refused where it is written

    def render(self, conversation: Conversation) -> list[Segment]:
        """Return the segments: requests unsupervised unless they say otherwise, responses with what ends them.

        Args:
            conversation: as `supervise` returned it. What belongs to a request (system text, tokens and text of the
                template up to the response) has its flag, what ends a response has the flag of the response.
        """
        return self._rendering.render(conversation)

    def describe(self) -> dict[str, Any]:
        """Return the template's fields."""
        return asdict(self)

    def for_encoder_decoder(self) -> "Template":
        """Return the template as an encoder-decoder model needs it: all before the last response is for the encoder.

        So nothing there can be learned, and it ends as every text that such an encoder has seen, with end-of-text. It
        is the template itself once more where it is that already.
        """
        return replace(self, prompt_end=self.prompt_end or "{end}", last_output_only=True)

    @cached_property
    def _rendering(self) -> Rendering:
        return Rendering(
            self._requests(),
            self._answers(),
            Defaults(self.system, self.system_with_context, self.first_round, self.last_output_only),
        )

    def _requests(self) -> RequestPieces:
        user = ("text", "round")
        return RequestPieces(
            begin=self._pieces("begin"),
            user=self._pieces("user", *user, required=("text",)),
            user_with_context=self._pieces("user_with_context", *user, "context", required=("text", "context")),
            user_with_system=self._pieces("user_with_system", *user, "system", required=("text", "system")),
            single_turn_user=self._pieces("single_turn_user", *user, required=("text",)),
            tool=self._pieces("tool", *user, required=("text",)),
            system=self._pieces("system_format", "system", required=("system",)),
            between_turns=self._pieces("between_turns"),
            before_last_response=self._special_tokens("before_last_response", "{[gMASK]}{<sop>}"),
            prompt_end=self._special_tokens("prompt_end", "{end}"),
        )

    def _special_tokens(self, name: str, example: str) -> tuple[Piece, ...]:
        pieces = self._pieces(name)
        if not all(isinstance(piece, Special) for piece in pieces):
            raise UserError(f"{self._place(name)} must be special tokens only, as {example}.")
        return pieces

    def _answers(self) -> AnswerPieces:
        response = ResponsePieces(self._pieces("response", "text", required=("text",)))
        if not response.ends:
            raise UserError(
                f"{self._place('response')} has no special token after {{text}}, so a model could not learn to stop. "
                "Write {end} there, or the token that ends a response in this format."
            )
        earlier = self._pieces("earlier_response", "text", required=("text",))
        call = self._pieces("call", "text", required=("text",))
        return AnswerPieces(
            response=response,
            earlier_response=ResponsePieces(earlier) if earlier else response,
            thought=Stretch(self._pieces("thought", "thought", required=("thought",))),
            call=ResponsePieces(call) if call else None,
        )

    def _pieces(self, name: str, *fields: str, required: tuple[str, ...] = ()) -> tuple[Piece, ...]:
        pattern: str = getattr(self, name)
        optional = not pattern and name not in ("user", "system_format", "response", "thought")
        return parse_pattern(pattern, fields, required=() if optional else required, place=self._place(name))

    def _place(self, name: str) -> str:
        return f"data.template.{name}: {getattr(self, name)!r} of template '{self.name}'"


@cache
def load_templates() -> dict[str, Template]:
    """Return the named templates, read once from `templates.yaml`."""
    import yaml

    text = (Path(__file__).parent / "templates.yaml").read_text(encoding="utf-8")
    return {name: Template(name, **patterns) for name, patterns in yaml.safe_load(text).items()}


class _NamedTemplates(Mapping[str, Template]):
    """The named templates, read when the first of them is asked for."""

    def __getitem__(self, name: str) -> Template:
        return load_templates()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(load_templates())

    def __len__(self) -> int:
        return len(load_templates())


TEMPLATES: Mapping[str, Template] = _NamedTemplates()

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
