"""Named templates: what is supervised, what the prompt is, and the published formats to the character."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest
from conversations import LAST_ONLY
from random_talks import random_conversation
from tiny import ROOT

from ift.data.conversation import Conversation, Message, TrainOn, supervise
from ift.data.segments import Segment
from ift.data.templates import TEMPLATES, Template
from ift.errors import UserError

NAMES = sorted(TEMPLATES)
# What the model writes around the text of a response, beside the special tokens.
WORDS_BEFORE = {"moss_plugins": "<|MOSS|>: "}
WORDS_AFTER = {"internlm_chat": "\n"}
STOPS_AT_THE_NEXT_REQUEST = ("baichuan2_chat", "chatglm2", "chatglm3")


def random_conversations(name: str, **settings: bool) -> list[Conversation]:
    source = random.Random(name)
    return [random_conversation(source, **settings) for _ in range(200)]


def supervised_texts(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.supervised and segment.kind == "text"]


def expected_texts(name: str, responses: list[str]) -> list[str]:
    """The texts of the responses, with the words that the template puts around each."""
    around = (WORDS_BEFORE.get(name), WORDS_AFTER.get(name))
    return [text for response in responses for text in (around[0], response, around[1]) if text is not None]


def without_flags(segments: list[Segment]) -> list[tuple[str, str]]:
    return [(segment.text, segment.kind) for segment in segments]


@pytest.mark.parametrize("train_on", ["outputs", "last_output"])
@pytest.mark.parametrize("name", NAMES)
def test_supervised_text_is_the_responses(name: str, train_on: TrainOn) -> None:
    for conversation in random_conversations(name):
        segments = TEMPLATES[name].render(supervise(conversation, train_on))
        responses = [message.text for message in conversation.messages if message.role == "assistant"]
        if train_on == "last_output" or name in LAST_ONLY:
            responses = responses[-1:]
        assert supervised_texts(segments) == expected_texts(name, responses)


@pytest.mark.parametrize("train_on", ["outputs", "last_output", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_messages_have_the_last_word(name: str, train_on: TrainOn) -> None:
    for conversation in random_conversations(name, flags=True):
        decided = supervise(conversation, train_on)
        segments = TEMPLATES[name].render(decided)
        for message in decided.messages:
            if message.role == "assistant" and (name not in LAST_ONLY or message is decided.messages[-1]):
                flags = {s.supervised for s in segments if s.kind == "text" and s.text == message.text}
                assert bool(message.supervised) in flags
        texts = [s.text for s in segments if s.kind == "text" and not s.supervised]
        unlearned = [m.text for m in decided.messages if m.role == "assistant" and not m.supervised]
        assert all(text in texts for text in unlearned)


@pytest.mark.parametrize("name", NAMES)
def test_every_supervised_response_ends(name: str) -> None:
    """By a supervised token, or by the label on the first token of the next request."""
    for conversation in random_conversations(name):
        segments = TEMPLATES[name].render(supervise(conversation, "outputs"))
        ends = [s for s in segments if s.ends_response and s.supervised]
        stops = [s for s in segments if s.stop_label]
        responses = sum(message.role == "assistant" for message in conversation.messages)
        assert all(s.kind in ("token", "end") for s in ends) and not any(s.supervised for s in stops)
        if name in LAST_ONLY:
            assert (len(ends), len(stops)) == (1, 0)
        elif name in STOPS_AT_THE_NEXT_REQUEST:
            assert (len(ends), len(stops)) == (1, responses - 1)
        else:
            assert (len(ends), len(stops)) == (responses, 0)
        assert segments[-1].supervised  # nothing is written that nobody learns or reads
        for before, segment in pairwise(segments):
            if segment.stop_label:
                assert before.supervised and before.kind == "text"


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_how_the_whole_begins(name: str, tools: bool) -> None:
    for conversation in random_conversations(name, tools=tools):
        whole = TEMPLATES[name].render(supervise(conversation, "outputs"))
        prompt = TEMPLATES[name].render(conversation.prompt)
        assert without_flags(whole)[: len(prompt)] == without_flags(prompt)
        assert not any(segment.supervised for segment in prompt)
        # What follows is the response: its words, its text, its end, and nothing that a request brought.
        written = without_flags(whole[len(prompt) :])
        assert [text for text, kind in written if kind == "text"] == expected_texts(name, [conversation.response or ""])


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_lost_or_read_as_a_pattern(name: str) -> None:
    for conversation in random_conversations(name, tools=True):
        segments = TEMPLATES[name].render(supervise(conversation, "outputs"))
        rest = "".join(segment.text for segment in segments if segment.kind == "text")
        texts = [(m.thought, m.text, m.context) for m in conversation.messages]
        for text in (conversation.system, *(text for own in texts for text in own if text)):
            assert text in rest
            rest = rest[rest.index(text) + len(text) :]
        fixed = {(s.text, s.kind) for s in TEMPLATES[name].render(PROBE) if s.kind != "text"}
        assert {(s.text, s.kind) for s in segments if s.kind != "text"} <= fixed


PROBE = Conversation(
    (
        Message("user", "a"),
        Message("assistant", "b", thought="t", call=True),
        Message("tool", "c"),
        Message("assistant", "d"),
        Message("user", "e"),
        Message("assistant", "f"),
    ),
    system="s",
)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_everything(name: str) -> None:
    for conversation in random_conversations(name):
        segments = TEMPLATES[name].render(supervise(conversation, "everything"))
        if name in LAST_ONLY:  # the model sees the prompt in both directions, so there is nothing to predict in it
            response = segments.index(Segment("<sop>", "token", supervised=True, begins_response=True))
            assert not any(s.supervised for s in segments[:response]) and all(s.supervised for s in segments[response:])
        else:
            assert all(segment.supervised and not segment.stop_label for segment in segments)


@pytest.mark.parametrize("name", NAMES)
def test_results_of_tools_are_read_and_not_learned(name: str) -> None:
    for conversation in random_conversations(name, tools=True):
        segments = TEMPLATES[name].render(supervise(conversation, "everything"))
        results = [message.text for message in conversation.messages if message.role == "tool"]
        unsupervised = "".join(s.text for s in segments if not s.supervised)
        assert all(result in unsupervised for result in results)
        if name not in {*LAST_ONLY, "moss_plugins"}:
            calls = [m for m in conversation.messages if m.call]
            assert [s.text for s in segments if s.text in {f"{m.thought}\n" for m in calls} and s.supervised] == [
                f"{m.thought}\n" for m in calls
            ]


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_touch_are_one_segment(name: str) -> None:
    """Except where a response begins or ends: so its ids are the same wherever it stands."""
    for conversation in random_conversations(name):
        segments = TEMPLATES[name].render(supervise(conversation, "outputs"))
        for left, right in pairwise(segments):
            if left.kind == right.kind == "text":
                assert left.supervised or right.supervised or name in LAST_ONLY


def test_plain_text_is_one_response() -> None:
    document = Conversation((Message("assistant", "Once upon a time.", supervised=True),), system="not for documents")
    for name in NAMES:
        segments = TEMPLATES[name].render(document)
        assert supervised_texts(segments) == expected_texts(name, ["Once upon a time."])
        prompt = TEMPLATES[name].render(document.prompt)
        assert without_flags(segments)[: len(prompt)] == without_flags(prompt)


def as_text(segments: list[Segment]) -> str:
    """Return segments as one text: begin-of-text as ⟨, end-of-text as ⟩, special tokens as they are called."""
    return "".join({"begin": "⟨", "end": "⟩"}.get(segment.kind, segment.text) for segment in segments)


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VIGOGNE = (
    "Ci-dessous se trouve une instruction qui décrit une tâche. "
    "Écrivez une réponse qui complète correctement la demande.\n\n"
)
PHOENIX = VICUNA.replace("user", "human")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
# Two rounds without a system text of the row: requests q1 and q2, responses r1 and r2.
TWO_ROUNDS = {
    "alpaca": f"⟨{ALPACA}### Instruction:\nq1\n\n### Response:r1⟩\n\n### Instruction:\nq2\n\n### Response:r2⟩",
    "alpaca_chatglm": f"{ALPACA}### Instruction:\nq1\n\n### Response:r1\n\n"
    "### Instruction:\nq2\n\n### Response:[gMASK]<sop>r2⟩",
    "alpaca_chatglm2": f"[gMASK]sop{ALPACA}### Instruction:\nq1\n\n### Response:r1⟩\n\n"
    "### Instruction:\nq2\n\n### Response:r2⟩",
    "chinese_alpaca": f"⟨{ALPACA}### Instruction:\nq1\n\n### Response: r1⟩"
    "\n\n### Instruction:\nq2\n\n### Response: r2⟩",
    "chinese_alpaca_2": "⟨[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n"
    "q1 [/INST]r1⟩⟨[INST] q2 [/INST]r2⟩",
    "vigogne": f"⟨{VIGOGNE}### Instruction:\nq1\n\n### Réponse:\nr1⟩\n\n### Instruction:\nq2\n\n### Réponse:\nr2⟩",
    "plain": "⟨q1\nr1⟩\nq2\nr2⟩",
    "raw": "⟨q1r1⟩q2r2⟩",
    "vicuna": f"⟨{VICUNA} USER: q1 ASSISTANT:r1⟩USER: q2 ASSISTANT:r2⟩",
    "belle": "Human: \nq1\n\nAssistant: \nr1⟩Human: \nq2\n\nAssistant: \nr2⟩",
    "firefly": "⟨q1⟩r1⟩q2⟩r2⟩",
    "phoenix": f"{PHOENIX}\n\nHuman: <s>q1⟩Assistant: <s>r1⟩Human: <s>q2⟩Assistant: <s>r2⟩",
    "tulu": "⟨<|user|>\nq1\n<|assistant|>\nr1⟩\n<|user|>\nq2\n<|assistant|>\nr2⟩",
    "zephyr": "⟨<|user|>\nq1⟩\n<|assistant|>\nr1⟩\n<|user|>\nq2⟩\n<|assistant|>\nr2⟩",
    "llama2_chat": "⟨[INST] q1 [/INST]r1⟩⟨[INST] q2 [/INST]r2⟩",
    "mistral": "⟨[INST] q1 [/INST]r1⟩[INST] q2 [/INST]r2⟩",
    "chatglm": "[Round 0]\n问：q1\n答：r1\n[Round 1]\n问：q2\n答：[gMASK]<sop>r2⟩",
    "chatglm2": "[gMASK]sop[Round 1]\n\n问：q1\n\n答：r1\n\n[Round 2]\n\n问：q2\n\n答：r2⟩",
    "chatglm3": "[gMASK]sop<|user|>\n q1<|assistant|>\nr1<|user|>\n q2<|assistant|>\nr2⟩",
    "baichuan_chat": "<reserved_102>q1<reserved_103>r1⟩<reserved_102>q2<reserved_103>r2⟩",
    "baichuan2_chat": "<reserved_106>q1<reserved_107>r1<reserved_106>q2<reserved_107>r2⟩",
    "internlm_chat": "⟨<|User|>:q1<eoh>\n<|Bot|>:r1<eoa>\n<|User|>:q2<eoh>\n<|Bot|>:r2<eoa>\n⟩",
    "chatml": "⟨<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\nr1<|im_end|>\n"
    "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\nr2<|im_end|>",
    "qwen": "⟨<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n"
    "<|im_start|>assistant\nr1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\nr2<|im_end|>",
    "llama3": f"⟨{HEADER.format('user')}q1<|eot_id|>{HEADER.format('assistant')}r1<|eot_id|>"
    f"{HEADER.format('user')}q2<|eot_id|>{HEADER.format('assistant')}r2<|eot_id|>",
    "gemma": "⟨<start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\nr1<end_of_turn>\n"
    "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\nr2<end_of_turn>",
}
# One round with the system text S of the row, where that is not just what stands before.
WITH_SYSTEM = {
    "alpaca": "⟨S\n\n### Instruction:\nq1\n\n### Response:r1⟩",
    "chinese_alpaca_2": "⟨[INST] <<SYS>>\nS\n<</SYS>>\n\nq1 [/INST]r1⟩",
    "vicuna": "⟨S USER: q1 ASSISTANT:r1⟩",
    "zephyr": "⟨<|system|>\nS⟩\n<|user|>\nq1⟩\n<|assistant|>\nr1⟩",
    "llama2_chat": "⟨[INST] <<SYS>>\nS\n<</SYS>>\n\nq1 [/INST]r1⟩",
    "mistral": "⟨[INST] S\n\nq1 [/INST]r1⟩",
    "chatglm": "S\nq1[gMASK]<sop>r1⟩",
    "chatglm3": "[gMASK]sop<|system|>\n S<|user|>\n q1<|assistant|>\nr1⟩",
    "baichuan2_chat": "S<reserved_106>q1<reserved_107>r1⟩",
    "internlm_chat": "⟨<|System|>:S\n<|User|>:q1<eoh>\n<|Bot|>:r1<eoa>\n⟩",
    "chatml": "⟨<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\nr1<|im_end|>",
    "gemma": "⟨<start_of_turn>user\nS\n\nq1<end_of_turn>\n<start_of_turn>model\nr1<end_of_turn>",
    "moss": "⟨S<|Human|>: q1<eoh>\n<|MOSS|>:r1<eom>",
}


def test_published_formats_to_the_character() -> None:
    turns = [Message("user", "q1"), Message("assistant", "r1"), Message("user", "q2"), Message("assistant", "r2")]
    found = {name: as_text(TEMPLATES[name].render(Conversation(tuple(turns)))) for name in TWO_ROUNDS}
    assert found == TWO_ROUNDS
    with_system = Conversation(tuple(turns[:2]), system="S")
    assert {name: as_text(TEMPLATES[name].render(with_system)) for name in WITH_SYSTEM} == WITH_SYSTEM
    # Every template is above or in a test of its own.
    assert set(NAMES) - set(TWO_ROUNDS) == {"alpaca_chinese", "alpaca_moss", "moss", "moss_plugins"}


def test_contexts_of_the_alpaca_family() -> None:
    row = Conversation((Message("user", "q", context="c"),))
    said = {name: as_text(TEMPLATES[name].render(row)) for name in ("alpaca", "alpaca_chinese", "vigogne", "vicuna")}
    assert said["alpaca"].endswith("### Instruction:\nq\n\n### Input:\nc\n\n### Response:")
    assert "paired with an input that provides further context" in said["alpaca"]
    assert said["alpaca_chinese"].endswith("### 指令：\nq\n\n### 输入：\nc\n\n### 回答：")
    assert said["vigogne"].endswith("### Instruction:\nq\n\n### Entrée:\nc\n\n### Réponse:\n")
    assert "associée à une entrée qui fournit un contexte supplémentaire" in said["vigogne"]
    assert said["vicuna"].endswith("USER: q\nc ASSISTANT:")


def test_alpacas_prompt_follows_the_meta_instruction_of_moss() -> None:
    row = Conversation((Message("user", "q", context="c"), Message("assistant", "r")))
    alpaca, moss = (as_text(TEMPLATES[name].render(row)) for name in ("alpaca", "alpaca_moss"))
    meta, shared = TEMPLATES["moss"].system.split("- Inner thoughts")[0], alpaca.removeprefix("⟨").removesuffix("⟩")
    assert moss == f"{meta}{shared}<eom>"


def test_moss_with_plugins() -> None:
    """A call with its thought, the results, the answer; and a round without a call."""
    turns = (
        Message("user", "What is 2+3?"),
        Message("assistant", 'Calculate("2+3")', thought="A sum.", call=True),
        Message("tool", 'Calculate("2+3") => 5'),
        Message("assistant", "It is 5."),
        Message("user", "Thanks."),
        Message("assistant", "Gladly."),
    )
    segments = TEMPLATES["moss_plugins"].render(supervise(Conversation(turns, system="Meta.\n"), "outputs"))
    assert as_text(segments) == (
        '⟨Meta.\n<|Human|>: What is 2+3?<eoh>\n<|Inner Thoughts|>: A sum.<eot>\n<|Commands|>: Calculate("2+3")<eoc>\n'
        '<|Results|>:\nCalculate("2+3") => 5\n<eor>\n<|MOSS|>: It is 5.<eom>\n'
        "<|Human|>: Thanks.<eoh>\n<|MOSS|>: Gladly.<eom>"
    )
    assert as_text([segment for segment in segments if segment.supervised]) == (
        '<|Inner Thoughts|>: A sum.<eot>\n<|Commands|>: Calculate("2+3")<eoc>'
        "<|MOSS|>: It is 5.<eom><|MOSS|>: Gladly.<eom>"
    )
    assert [segment.text for segment in segments if segment.ends_response] == ["<eoc>", "<eom>", "<eom>"]


def test_a_thought_stands_before_its_response() -> None:
    turns = (Message("user", "q"), Message("assistant", "r", thought="t"))
    segments = TEMPLATES["vicuna"].render(supervise(Conversation(turns), "outputs"))
    assert supervised_texts(segments) == ["t\n", "r"]


class TestWrittenOut:
    """Templates of one's own."""

    def test_braces_tokens_and_rounds(self) -> None:
        own = Template(
            "own",
            user="{token:sop}{{{text}}} %s {round}{[MASK]}",
            begin="",
            between_turns="{<b>} ",
            response="{text}{<e>}",
            first_round=7,
        )
        turns = [
            Message("user", "{text}%d"),
            Message("assistant", "a"),
            Message("user", "b"),
            Message("assistant", "c"),
        ]
        assert own.render(supervise(Conversation(tuple(turns)), "outputs")) == [
            Segment("sop", "token"),
            Segment("{{text}%d} %s 7"),
            Segment("[MASK]", "token"),
            Segment("a", supervised=True),
            Segment("<e>", "token", supervised=True, ends_response=True),
            Segment("<b>", "token"),
            Segment(" "),
            Segment("sop", "token"),
            Segment("{b} %s 8"),
            Segment("[MASK]", "token"),
            Segment("c", supervised=True),
            Segment("<e>", "token", supervised=True, ends_response=True),
        ]

    def test_rounds_count_requests(self) -> None:
        """The results of tools only where they are written as requests."""
        answered = Conversation(PROBE.messages)
        as_request = Template("own", user="{round}{text}", between_turns="")
        assert as_text(as_request.render(answered)) == "⟨1at\nb⟩2cd⟩3ef⟩"
        own_way = Template("own", user="{round}{text}", between_turns="", tool="{round}:{text}")
        assert as_text(own_way.render(answered)) == "⟨1at\nb⟩2:cd⟩2ef⟩"

    def test_a_template_survives_its_description(self) -> None:
        for name in NAMES:
            assert Template(**TEMPLATES[name].describe()) == TEMPLATES[name]

    @pytest.mark.parametrize(
        ("field", "pattern", "reason"),
        [
            ("user", "Q: {txt}", "must contain '{text}'"),
            ("user", "{{text}}", "must contain '{text}' once, as a field"),
            ("user", "{text}{text}", "must contain '{text}' once, as a field"),
            (
                "user",
                "{text}{system}",
                "{system} is no field of this pattern. Known here: {text}, {round}, {begin}, {end}",
            ),
            ("user", '{"role": "{text}"}', "{ is no field of this pattern"),
            ("user", "{text} }", "} is no field of this pattern"),
            ("user", "{text}{token:}", "{token:} is no field"),
            ("user_with_context", "{text}", "must contain '{context}'"),
            ("user_with_system", "{text}", "must contain '{system}'"),
            ("system_format", "", "must contain '{system}'"),
            ("response", "{text}", "has no special token after {text}"),
            ("response", "{<e>}{text}", "has no special token after {text}"),
            ("thought", "hm", "must contain '{thought}'"),
            ("begin", "{text}", "{text} is no field"),
            ("before_last_response", "so: {<sop>}", "must be special tokens only"),
        ],
    )
    def test_wrong_patterns_are_refused_with_their_place(self, field: str, pattern: str, reason: str) -> None:
        with pytest.raises(UserError) as caught:
            Template(**{"name": "own", "user": "{text}", field: pattern})
        assert str(caught.value).startswith(f"data.template.{field}: {pattern!r} of template 'own'")
        assert reason in str(caught.value)


def test_the_named_templates_are_read_when_one_is_asked_for() -> None:
    program = (
        "import sys, ift.data.templates as t; print('yaml' in sys.modules, len(t.TEMPLATES), 'yaml' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["False", str(len(NAMES)), "True"], result.stderr
