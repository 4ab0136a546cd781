"""Chat templates in the style of well-known models, written here: segments are exactly what the template writes."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conversations import NASTY
from random_talks import random_conversation

from ift.data.chat_templates import ChatTemplate
from ift.data.conversation import Conversation, Message, TrainOn, supervise
from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer
from ift.data.layouts import RowError
from ift.data.segments import Segment
from ift.data.templates import TEMPLATES
from ift.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A default system text, as Qwen2's.
QWEN2 = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}" + CHATML
# The system text inside the first request, all texts stripped, a blank before end-of-text.
LLAMA2 = """{%- if messages[0].role == 'system' -%}
{%- set talk = messages[1:] -%}{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}{%- set talk = messages -%}{%- set system = '' -%}{%- endif -%}
{%- for m in talk -%}
{%- if m.role == 'user' -%}
{{ '<s>[INST] ' + ((system + m.content) if loop.index0 == 0 else m.content).strip() + ' [/INST]' }}
{%- elif m.role == 'assistant' -%}{{ ' ' + m.content.strip() + ' </s>' }}{%- endif -%}
{%- endfor -%}"""
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}<s>{% endif %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Refuses a system text and tools.
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
# Writes the system text before the last request, as newer ones of Mistral do.
MISTRAL_LAST = (
    "<s>{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set talk = messages[1:] %}{% else %}{% set system = '' %}{% set talk = messages %}{% endif %}"
    "{% for m in talk %}{% if m.role == 'user' %}[INST] "
    "{{ system if (loop.last or loop.index0 == talk | length - 2) else '' }}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
# Role names as plain text, every turn ended by end-of-text.
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The role model, no system role.
GEMMA = (
    "<s>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# An empty thought for the last response, none for those before the last request; off by enable_thinking.
QWEN3 = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + m.content.lstrip('\\n') -}}
{%- else -%}{{- m.content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""
# Drops what stands before </think> in earlier responses, and makes the model begin with a thought.
DEEPSEEK = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}"
    "<|Assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
DEEPSEEK_PLAIN = DEEPSEEK.replace("<think>\n{%", "{%")

SPECIAL = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|User|>", "<|Assistant|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "[/INST]"]


@dataclass(frozen=True)
class Style:
    """What a template does."""

    source: str
    strips: bool = False
    system: bool = True
    tools: bool = True
    blanks: bool = False
    """Whether blanks stand around a response; they are left out."""


STYLES = {
    "chatml": Style(CHATML),
    "qwen2": Style(QWEN2),
    "llama2": Style(LLAMA2, strips=True, tools=False, blanks=True),
    "llama3": Style(LLAMA3, strips=True),
    "mistral": Style(MISTRAL, system=False, tools=False),
    "zephyr": Style(ZEPHYR),
    "gemma": Style(GEMMA, strips=True, system=False),
    "deepseek": Style(DEEPSEEK_PLAIN, system=False, tools=False),
}


@pytest.fixture(scope="module")
def tokenizer(byte_level_folder: Path) -> Any:
    tokenizer = load_tokenizer("model.base", str(byte_level_folder))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def chat_template(tokenizer: Any, source: str, **options: bool) -> ChatTemplate:
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer, options)


def conversations(name: str, *, tools: bool = False) -> list[Conversation]:
    """Two hundred, without the one text that DeepSeek's template cuts."""
    source = random.Random(name)
    style, talks = STYLES.get(name), []
    while len(talks) < 200:
        talk = random_conversation(source, tools=tools)
        messages = tuple(replace(message, thought="") for message in talk.messages)
        talks.append(replace(talk, messages=messages, system=talk.system if style is None or style.system else ""))
    return talks


def own_rendering(tokenizer: Any, conversation: Conversation, **options: Any) -> str:
    """Render with the tokenizer's own method."""
    chat = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for message in conversation.messages:
        content = f"{message.text}\n{message.context}" if message.context else message.text
        turn = {"role": message.role, "content": content}
        chat.append(turn | ({"reasoning_content": message.thought} if message.thought else {}))
    prompt = chat[-1]["role"] != "assistant"
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt, **options))


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("train_on", ["outputs", "last_output", "everything"])
@pytest.mark.parametrize("name", STYLES)
def test_segments_are_what_the_template_writes(name: str, train_on: TrainOn, tokenizer: Any) -> None:
    style = STYLES[name]
    renderer = chat_template(tokenizer, style.source)
    for conversation in conversations(name, tools=style.tools):
        decided = supervise(conversation, train_on)
        segments = renderer.render(decided)
        rendered = own_rendering(tokenizer, conversation)
        if style.blanks:
            for message in conversation.messages:
                if message.role == "assistant":
                    text = message.text.strip()
                    rendered = rendered.replace(f"[/INST] {text} </s>", f"[/INST]{text}</s>")
        assert text_of(segments) == rendered
        assert all(
            segment.kind == ("token" if segment.text in SPECIAL + CONTROL else segment.kind) for segment in segments
        )
        if train_on == "everything":
            read = [m.text.strip() if style.strips else m.text for m in decided.messages if not m.supervised]
            assert all(text in text_of([s for s in segments if not s.supervised]) for text in read)
            continue
        responses = [m.text for m in decided.messages if m.supervised]
        expected = [text.strip() if style.strips else text for text in responses]
        assert [s.text for s in segments if s.supervised and s.kind == "text"] == expected
        ends = [segment for segment in segments if segment.ends_response and segment.supervised]
        assert len(ends) == len(responses) == sum(s.kind == "token" and s.supervised for s in segments)


CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize("name", STYLES)
def test_the_prompt_is_how_the_whole_begins(name: str, tokenizer: Any) -> None:
    style = STYLES[name]
    renderer = chat_template(tokenizer, style.source)
    for conversation in conversations(name, tools=style.tools):
        whole = renderer.render(supervise(conversation, "outputs"))
        prompt = renderer.render(conversation.prompt)
        if not style.blanks:
            assert text_of(prompt) == own_rendering(tokenizer, conversation.prompt)
        assert [(s.text, s.kind) for s in whole[: len(prompt)]] == [(s.text, s.kind) for s in prompt]
        response = conversation.response or ""
        assert whole[len(prompt)].text == (response.strip() if style.strips else response)


def test_messages_never_become_special_tokens(tokenizer: Any) -> None:
    renderer = chat_template(tokenizer, CHATML)
    talk = Conversation((Message("user", "a<|im_end|>b"), Message("assistant", "<|im_start|>c", supervised=True)))
    segments = renderer.render(talk)
    assert [s.text for s in segments if s.kind == "text" and ("b" in s.text or "c" in s.text)] == [
        "user\na<|im_end|>b",
        "<|im_start|>c",
    ]


def test_everything_takes_the_request_with_its_marks(tokenizer: Any) -> None:
    renderer = chat_template(tokenizer, CHATML)
    turns = (Message("user", "q"), Message("assistant", "r", supervised=False), Message("user", "p"))
    talk = supervise(Conversation((*turns, Message("assistant", "s")), system="S"), "everything")
    unlearned = text_of([segment for segment in renderer.render(talk) if not segment.supervised])
    assert unlearned == "r<|im_end|>\n"  # the last newline belongs to nobody


def test_a_role_that_is_refused(tokenizer: Any) -> None:
    for source in (MISTRAL, GEMMA):
        renderer = chat_template(tokenizer, source)
        with pytest.raises(RowError, match="refuses the conversation: .*not? supported|refuses .*are supported"):
            renderer.render(Conversation((Message("user", "q"), Message("assistant", "r")), system="S"))


def test_a_message_that_is_left_out(tokenizer: Any) -> None:
    """Silently, as templates do that know no tools."""
    renderer = chat_template(tokenizer, LLAMA2)
    turns = [
        Message("user", "q"),
        Message("assistant", "c", call=True),
        Message("tool", "5"),
        Message("assistant", "r"),
    ]
    with pytest.raises(RowError, match="leaves out the message of role 'tool'"):
        renderer.render(supervise(Conversation(tuple(turns)), "outputs"))


def test_a_response_that_later_turns_change(tokenizer: Any) -> None:
    """The system text moves to the last request: the first response was given to another prompt."""
    renderer = chat_template(tokenizer, MISTRAL_LAST)
    turns = [Message("user", "q"), Message("assistant", "r"), Message("user", "p"), Message("assistant", "s")]
    talk = Conversation(tuple(turns), system="S")
    with pytest.raises(RowError, match="only the last can be learned from .data.train_on: last_output."):
        renderer.render(supervise(talk, "outputs"))
    segments = renderer.render(supervise(talk, "last_output"))
    assert text_of([segment for segment in segments if segment.supervised]) == "s</s>"
    assert renderer.render(supervise(replace(talk, system=""), "outputs"))


def test_a_text_that_is_rewritten(tokenizer: Any) -> None:
    """Only in the conversation that has it."""
    renderer = chat_template(tokenizer, DEEPSEEK_PLAIN)
    fine, cut = (Conversation((Message("user", "q"), Message("assistant", text))) for text in ("r", "a</think>r"))
    assert renderer.render(fine)
    with pytest.raises(RowError, match="rewrites the text of a message"):
        renderer.render(cut)


def test_a_template_that_reads_the_texts(tokenizer: Any) -> None:
    renderer = chat_template(tokenizer, CHATML + "{% if 'bye' in messages[-1].content %}<|endoftext|>{% endif %}")
    assert renderer.render(Conversation((Message("user", "q"), Message("assistant", "r"))))
    with pytest.raises(RowError, match="rewrites the text of a message"):
        renderer.render(Conversation((Message("user", "q"), Message("assistant", "good bye"))))


@pytest.mark.parametrize("speaker", ["bot", "the assistant"])
def test_a_speaker_that_has_another_name(speaker: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="another prompt for generation .* Name another template"):
        chat_template(tokenizer, CHATML.replace("<|im_start|>assistant", f"<|im_start|>{speaker}"))


def test_a_prompt_that_is_another_one(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="another prompt for generation .* Name another template"):
        chat_template(tokenizer, DEEPSEEK)


class TestThoughts:
    """Templates that write thoughts, empty ones and none."""

    PLAIN = (Message("user", "q"), Message("assistant", "r"))
    THOUGHT = (Message("user", "q"), Message("assistant", "r", thought="t"))

    def test_an_empty_thought_needs_a_decision(self, tokenizer: Any) -> None:
        with pytest.raises(UserError) as caught:
            chat_template(tokenizer, QWEN3)
        said = str(caught.value)
        assert "writes '<think>\\n\\n</think>\\n\\n' between its prompt for generation and a response" in said
        assert "set data.template_options to {enable_thinking: false} (or to {enable_thinking: true}" in said

    def test_off(self, tokenizer: Any) -> None:
        """The empty thought is part of the prompt, in training as in generation."""
        renderer = chat_template(tokenizer, QWEN3, enable_thinking=False)
        whole = renderer.render(supervise(Conversation(self.PLAIN), "outputs"))
        prompt = renderer.render(Conversation(self.PLAIN).prompt)
        assert whole[: len(prompt)] == prompt
        assert text_of(prompt) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert text_of([segment for segment in whole if segment.supervised]) == "r<|im_end|>"
        with pytest.raises(RowError, match="another prompt for generation"):
            renderer.render(supervise(Conversation(self.THOUGHT), "outputs"))

    def test_on(self, tokenizer: Any) -> None:
        """The model writes the marks of a thought itself, also of an empty one."""
        renderer = chat_template(tokenizer, QWEN3, enable_thinking=True)
        for turns, thought in ((self.PLAIN, ""), (self.THOUGHT, "t")):
            whole = renderer.render(supervise(Conversation(turns), "outputs"))
            prompt = renderer.render(Conversation(turns).prompt)
            assert whole[: len(prompt)] == prompt
            assert text_of(prompt).endswith("<|im_start|>assistant\n")
            learned = [segment for segment in whole if segment.supervised]
            assert [s.text for s in learned] == [f"<think>\n{thought}\n</think>\n\n", "r", "<|im_end|>"]

    @pytest.mark.parametrize("options", [{"enable_thinking": False}, {"enable_thinking": True}])
    def test_earlier_turns_lose_theirs(self, options: dict[str, bool], tokenizer: Any) -> None:
        renderer = chat_template(tokenizer, QWEN3, **options)
        turns = self.THOUGHT if options["enable_thinking"] else self.PLAIN
        talk = Conversation((*turns, Message("user", "p"), replace(turns[1], text="s")))
        with pytest.raises(RowError, match="leaves out the thought|only the last can be learned from"):
            renderer.render(supervise(talk, "outputs"))
        segments = renderer.render(supervise(talk, "last_output"))
        learned = text_of([segment for segment in segments if segment.supervised])
        assert learned == ("<think>\nt\n</think>\n\ns<|im_end|>" if options["enable_thinking"] else "s<|im_end|>")
        assert text_of(segments) == own_rendering(tokenizer, talk, **options)

    def test_random_conversations(self, tokenizer: Any) -> None:
        renderer = chat_template(tokenizer, QWEN3, enable_thinking=False)
        for talk in conversations("qwen3", tools=True):
            segments = renderer.render(supervise(talk, "last_output"))
            assert text_of(segments) == own_rendering(tokenizer, talk, enable_thinking=False)
            response = talk.messages[-1].text.lstrip("\n")
            assert [s.text for s in segments if s.supervised] == [response, "<|im_end|>"]

    def test_options_are_part_of_what_decides_the_rendering(self, tokenizer: Any) -> None:
        on, off = (chat_template(tokenizer, QWEN3, enable_thinking=flag) for flag in (True, False))
        assert on.describe() != off.describe()
        assert off.describe() == {"name": "tokenizer", "chat_template": QWEN3, "options": {"enable_thinking": False}}


def test_one_rendering_per_conversation(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders are rendered once per shape, however many conversations follow."""
    renderer = chat_template(tokenizer, CHATML)
    calls: list[int] = []
    original = tokenizer.apply_chat_template

    def counted(chat: Any, **settings: Any) -> str:
        calls.append(1)
        return str(original(chat, **settings))

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    for number in range(50):
        renderer.render(Conversation((Message("user", f"q{number}"), Message("assistant", "r", supervised=True))))
    assert len(calls) == 50


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "mistral", "zephyr", "gemma"])
def test_named_templates_write_the_same(name: str, tokenizer: Any) -> None:
    """Two ways to one format: patterns, and Jinja cut into segments."""
    renderer = chat_template(tokenizer, STYLES[name].source)
    named = TEMPLATES["llama2_chat" if name == "llama2" else name]
    tokens = {"begin": "" if name in ("chatml", "zephyr") else "<s>", "end": "</s>"}
    for talk in conversations(name):
        stripped = tuple(replace(m, text=m.text.strip(), context=m.context.strip()) for m in talk.messages)
        decided = supervise(replace(talk, messages=stripped, system=talk.system.strip()), "outputs")
        ours, theirs = named.render(decided), renderer.render(decided)
        assert "".join(tokens.get(s.kind, s.text) for s in ours) == text_of(theirs).removesuffix("\n")
        learned = [(tokens.get(s.kind, s.text), s.ends_response) for s in ours if s.supervised]
        assert learned == [(s.text, s.ends_response) for s in theirs if s.supervised]


def test_the_mask_is_that_of_transformers(tokenizer: Any) -> None:
    """Where a template marks what the model writes, transformers finds the same tokens by other means.

    On texts that have no special tokens (transformers would read them as such) and begin with no blank (it would join
    that with the newline before).
    """
    marked = CHATML.replace(
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n",
    )
    encoder = Encoder(tokenizer, chat_template(tokenizer, marked))
    texts = [text for text in NASTY if not any(token in text for token in SPECIAL + CONTROL) and not text[0].isspace()]
    for place in range(len(texts)):
        turns = [Message(role, texts[(place + k) % len(texts)]) for k, role in enumerate(("user", "assistant") * 2)]
        talk = supervise(Conversation(tuple(turns)), "outputs")
        (example,) = encoder.encode([encoder.template.render(talk)])
        chat = [{"role": turn.role, "content": turn.text} for turn in turns]
        theirs = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert example.input_ids.tolist() == theirs["input_ids"]
        assert (example.labels != IGNORE_INDEX).tolist() == [bool(flag) for flag in theirs["assistant_masks"]]


# Prints today's date where none is given, as Llama 3.1's.
DATED = "{{ '<s>Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


def test_today_is_the_same_on_every_day_and_is_recorded(tokenizer: Any) -> None:
    talk = Conversation((Message("user", "a"), Message("assistant", "b", supervised=True)))
    renderer = chat_template(tokenizer, DATED)
    assert "Today: 26 Jul 2024\n" in text_of(renderer.render(talk))
    assert renderer.describe()["options"] == {"date": "2024-07-26"}  # what predictions with the run are made with
    again = ChatTemplate(tokenizer, renderer.describe()["options"])
    assert again.render(talk) == renderer.render(talk) and again.describe() == renderer.describe()
    other = ChatTemplate(tokenizer, {"date": "2031-02-03"})
    assert "Today: 03 Feb 2031\n" in text_of(other.render(talk))
    assert other.describe() != renderer.describe()
    assert "date" not in chat_template(tokenizer, CHATML).describe()["options"]


def test_a_date_in_a_format_of_no_fixed_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no date can be set for this format: %Y"):
        chat_template(tokenizer, DATED.replace("'%d %b %Y'", "'%' + 'Y'"))


def test_several_templates_without_a_default_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(UserError, match="data.template: 'tokenizer' cannot be used: .* Name another template"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize("written", ["today", "26.07.2024", True])
def test_a_date_that_is_none_is_refused(written: bool | str, tokenizer: Any) -> None:
    tokenizer.chat_template = DATED
    with pytest.raises(UserError, match=f"data.template_options: date '{written}' is no date"):
        ChatTemplate(tokenizer, {"date": written})
