"""A template of ours as a chat template (Jinja) that transformers applies without us, where both give the same ids.

transformers tokenizes the whole text that a chat template writes, we tokenize segment by segment; whether that is the
same depends on the tokenizer. So a chat template is only handed out after it was compared on real conversations.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.encoding import Encoder
from ift.data.layouts import RowError
from ift.data.template_patterns import Field, Piece, parse_pattern
from ift.data.templates import Template

_FIELDS = ("text", "context", "system", "round")
_PLACEHOLDER = "\ue0f1"


@dataclass(frozen=True)
class PromptFormat:
    """How to write a prompt without us."""

    chat_template: str | None
    """Jinja that gives our ids, or `None` where none does."""
    compared: int
    """Prompts on which its ids were compared with ours."""
    differing: int
    """Those on which they differed."""
    pieces: tuple[tuple[str, bool], ...]
    """The prompt around a request of one turn, cut as it is tokenized; true: a special token. `text_mark` stands for
    the request."""
    options: tuple[tuple[str, bool | str], ...] = ()
    """Variables that the tokenizer's own chat template was rendered with."""
    text_mark: str = _PLACEHOLDER


def prompt_format(encoder: Encoder, conversations: Iterable[Conversation]) -> PromptFormat:
    """Return how prompts of a run are written without us.

    Args:
        encoder: tokenizer and template of the run.
        conversations: of the run, to compare on.
    """
    tokenizer, template = encoder.tokenizer, encoder.template
    jinja = jinja_of(template, encoder) if isinstance(template, Template) else str(tokenizer.chat_template)
    options = {} if isinstance(template, Template) else dict(template.describe()["options"])
    compared = differing = 0
    for conversation in conversations:
        if any(message.role == "tool" or message.thought for message in conversation.prompt.messages):
            continue
        compared += 1
        differing += not _same_ids(encoder, conversation, jinja, options)
    faithful = compared > 0 and not differing
    # The tokenizer's own chat template stays with it in any case.
    kept = jinja if faithful or not isinstance(template, Template) else None
    return PromptFormat(kept, compared, differing, _pieces(encoder), tuple(options.items()))


def _same_ids(encoder: Encoder, conversation: Conversation, jinja: str, options: dict[str, Any]) -> bool:
    try:
        ours = encoder.prompt_ids(conversation)
        theirs = encoder.tokenizer.apply_chat_template(
            chat_messages(conversation.prompt),
            chat_template=jinja,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **options,
        )
    except (RowError, ValueError):
        return False
    return ours == list(theirs)


def chat_messages(conversation: Conversation) -> list[dict[str, str]]:
    """Return a conversation as transformers' chat messages, with a key `context` where a request has one."""
    chat = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for message in conversation.messages:
        chat.append({"role": message.role, "content": message.text})
        if message.context:
            chat[-1]["context"] = message.context
    return chat


def _pieces(encoder: Encoder) -> tuple[tuple[str, bool], ...]:
    probe = Conversation((Message("user", _PLACEHOLDER),))
    pieces = []
    for segment in encoder.template.render(probe):
        if segment.kind == "text":
            pieces.append((segment.text, False))
        elif segment.kind == "begin":
            pieces += [(encoder.tokenizer.bos_token, True)] if encoder.begin_token_id is not None else []
        else:
            token = encoder.tokenizer.eos_token if segment.kind == "end" else segment.text
            pieces.append((token, token in encoder.tokenizer.get_vocab()))
    return tuple(pieces)


def jinja_of(template: Template, encoder: Encoder) -> str:
    """Return a template as Jinja; `Rendering.render` in another language.

    Args:
        template: of ours.
        encoder: says which special tokens the tokenizer has.
    """
    write = _Writer(template, encoder)
    request = _request(template, write)
    only_system = write("begin") + write("system_format") + request
    if template.user_with_system:
        only_system = write("begin") + _with_text(write("user_with_system"), joined=True)
    lines = [
        f"{{%- set ns = namespace(system='', round={template.first_round}) -%}}",
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        "{%- set ns.system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}",
        "{%- endif -%}",
        "{%- if not ns.system and messages and messages[0]['context'] -%}",
        f"{{%- set ns.system = {_quoted(template.system_with_context)} -%}}",
        "{%- endif -%}",
        f"{{%- if not ns.system -%}}{{%- set ns.system = {_quoted(template.system)} -%}}{{%- endif -%}}",
        "{%- set last = messages | length - 1 -%}",
        "{%- set last_request = last - 1 if messages and messages[last]['role'] == 'assistant' else last -%}",
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'user' -%}",
        f"{{%- if loop.first and ns.system -%}}{only_system}",
        f"{{%- elif loop.first -%}}{write('begin')}{request}",
        f"{{%- else -%}}{write('between_turns')}{request}{{%- endif -%}}",
        f"{{%- if loop.index0 == last_request -%}}{write('prompt_end')}{write('before_last_response')}{{%- endif -%}}",
        "{%- set ns.round = ns.round + 1 -%}",
        "{%- elif message['role'] == 'assistant' -%}",
        f"{{%- if loop.last or {json.dumps(not template.earlier_response)} -%}}{_with_text(write('response'))}",
        f"{{%- else -%}}{_with_text(write('earlier_response'))}{{%- endif -%}}",
        "{%- else -%}{{- raise_exception('This template knows the roles system, user and assistant.') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    return "\n".join(lines) + "\n"


def _request(template: Template, write: "_Writer") -> str:
    plain = _with_text(write("user"), joined=True)
    if template.single_turn_user:
        single = _with_text(write("single_turn_user"), joined=True)
        plain = f"{{%- if last_request == 0 -%}}{single}{{%- else -%}}{plain}{{%- endif -%}}"
    if not template.user_with_context:
        return plain
    with_context = _with_text(write("user_with_context"), joined="{context}" not in template.user_with_context)
    return f"{{%- if message['context'] -%}}{with_context}{{%- else -%}}{plain}{{%- endif -%}}"


def _with_text(written: str, *, joined: bool = False) -> str:
    """Put in what stands for `{text}`: the message; its context too, where the pattern has no place for that."""
    text = "(message['content'] + ('\\n' + message['context'] if message['context'] else ''))"
    return written.replace("TEXT_OF_MESSAGE", text if joined else "message['content']")


class _Writer:
    """Turns the patterns of a template into Jinja that writes them."""

    def __init__(self, template: Template, encoder: Encoder) -> None:
        self._template, self._encoder = template, encoder

    def __call__(self, name: str) -> str:
        """Return the Jinja of a pattern, with `TEXT_OF_MESSAGE` in the place of the text."""
        pattern: str = getattr(self._template, name)
        pieces = parse_pattern(pattern, _FIELDS, place=f"template '{self._template.name}', {name}")
        is_answer, ended = name in ("response", "earlier_response"), False
        written: list[str] = []
        for piece in pieces:
            after_text = is_answer and not ended and "TEXT_OF_MESSAGE" in "".join(written)
            expression = self._expression(piece, ends=after_text)
            ended |= after_text and not isinstance(piece, str | Field)
            written.append(f"{{{{- {expression} -}}}}" if expression else "")
        return "".join(written)

    def _expression(self, piece: Piece, *, ends: bool) -> str:
        if isinstance(piece, str):
            return _quoted(piece)
        if isinstance(piece, Field):
            names = {"text": "TEXT_OF_MESSAGE", "context": "message['context']", "system": "ns.system"}
            return names.get(piece.name, "ns.round")
        if piece.kind == "begin":
            return "bos_token" if self._encoder.begin_token_id is not None else ""
        if piece.kind == "end" or (ends and piece.text in self._encoder.missing_tokens()):
            return "eos_token"
        return _quoted(piece.text)


def _quoted(text: str) -> str:
    """Return a text as Jinja writes it; JSON's escapes are a part of Python's, which Jinja reads."""
    return json.dumps(text, ensure_ascii=False)


def plain_prompt_ids(tokenizer: Any, pieces: Sequence[tuple[str, bool]], text: str) -> list[int]:
    """Return the ids of a prompt of one turn, as the model card tells how to make them without us."""
    ids: list[int] = []
    for piece, is_special in pieces:
        own = piece.replace(_PLACEHOLDER, text)
        if is_special:
            ids.append(tokenizer.convert_tokens_to_ids(own))
        else:
            ids += tokenizer(own, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids
