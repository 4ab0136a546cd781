"""Input ids and labels of the 2023 checkpoints, number by number, as their own fine-tuning scripts build them.

Special ids are the real ones; texts are dummies (request 31 32 33, response 41 42; then 51 52 and 61 62 63). The
first label is left out of the comparison: nothing predicts the first token, so whatever stands there has no effect (the
script of Baichuan2 puts end-of-text there).
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from tiny import ROOT

from ift.data.conversation import Conversation, Message, supervise
from ift.data.templates import TEMPLATES

FIXTURE = ROOT.parent / "shared" / "fixtures" / "architectures" / "sft_layout.json"
MOSS = ROOT.parent / "shared" / "data" / "moss"
IGNORED = -100
TEXTS = {"q1": [31, 32, 33], "r1": [41, 42], "q2": [51, 52], "r2": [61, 62, 63]}


@dataclass(frozen=True)
class Layout:
    """What a fine-tuning script makes of one or two rounds."""

    special: dict[str, int]
    """With 'begin' and 'end' for begin-of-text and end-of-text."""
    input_ids: list[int]
    labels: list[int]
    rounds: int = 1
    words: tuple[str, ...] = ()
    """Words of the template that the dummies of the fixture take in."""


NONE = IGNORED
LAYOUTS = {
    # ptuning/main.py of ChatGLM-6B: loss from <sop> on.
    ("chatglm", "chatglm_6b"): Layout(
        {"[gMASK]": 130001, "<sop>": 130004, "end": 130005},
        [31, 32, 33, 130001, 130004, 41, 42, 130005],
        [NONE, NONE, NONE, NONE, 130004, 41, 42, 130005],
    ),
    # ptuning/main.py of ChatGLM2-6B.
    ("chatglm2", "chatglm2_6b"): Layout(
        {"[gMASK]": 64790, "sop": 64792, "end": 2},
        [64790, 64792, 31, 32, 33, 41, 42, 2],
        [NONE, NONE, NONE, NONE, NONE, 41, 42, 2],
        words=("[Round 1]\n\n问：", "\n\n答："),
    ),
    # fine-tune.py of Baichuan2: the label on the second user token is end-of-text.
    ("baichuan2_chat", "baichuan2_7b"): Layout(
        {"<reserved_106>": 195, "<reserved_107>": 196, "end": 2},
        [195, 31, 32, 33, 196, 41, 42, 195, 51, 52, 196, 61, 62, 63, 2],
        [NONE, NONE, NONE, NONE, NONE, 41, 42, 2, NONE, NONE, NONE, 61, 62, 63, 2],
        rounds=2,
    ),
}


def encode(name: str, conversation: Conversation, layout: Layout) -> tuple[list[int], list[int]]:
    """Encode segments as the contract between templates and encoder says, with dummies for texts."""
    input_ids: list[int] = []
    labels: list[int] = []
    for segment in TEMPLATES[name].render(conversation):
        text = segment.text
        for word in layout.words:
            text = text.replace(word, "")
        ids = TEXTS[text] if segment.kind == "text" else [layout.special[segment.text or segment.kind]]
        input_ids += ids
        own = ids if segment.supervised else [IGNORED] * len(ids)
        labels += [layout.special["end"], *own[1:]] if segment.stop_label else own
    return input_ids, labels


def rounds(number: int) -> Conversation:
    turns = [Message("user", "q1"), Message("assistant", "r1"), Message("user", "q2"), Message("assistant", "r2")]
    return supervise(Conversation(tuple(turns[: 2 * number])), "outputs")


@pytest.mark.parametrize(("name", "fixture"), LAYOUTS, ids=lambda name: str(name))
def test_ids_and_labels(name: str, fixture: str) -> None:
    layout = LAYOUTS[name, fixture]
    input_ids, labels = encode(name, rounds(layout.rounds), layout)
    assert input_ids == layout.input_ids
    assert labels[1:] == layout.labels[1:]


@pytest.mark.real_data
@pytest.mark.skipif(not FIXTURE.is_file(), reason="the published layouts are not part of this repository")
def test_the_numbers_above_are_the_published_ones() -> None:
    published = json.loads(FIXTURE.read_text(encoding="utf-8"))
    for (_, fixture), layout in LAYOUTS.items():
        assert published[fixture]["input_ids"] == layout.input_ids
        assert published[fixture]["labels"][1:] == layout.labels[1:]
    assert published["baichuan_13b_chat"]["prompt_two_turns"] == BAICHUAN_PROMPT
    assert published["internlm_7b_chat"]["text"] == INTERNLM.replace("q1", "{query}").replace("r1", "{answer}")


BAICHUAN_PROMPT = [195, 31, 32, 33, 196, 41, 42, 2, 195, 51, 52, 196]
INTERNLM = "<s><|User|>:q1<eoh>\n<|Bot|>:r1<eoa>\n</s>"


def test_prompt_of_baichuan_chat() -> None:
    layout = Layout({"<reserved_102>": 195, "<reserved_103>": 196, "end": 2}, [], [])
    input_ids, _ = encode("baichuan_chat", rounds(2).prompt, layout)
    assert input_ids == BAICHUAN_PROMPT


def test_internlm_learns_the_response_and_all_that_ends_it() -> None:
    segments = TEMPLATES["internlm_chat"].render(rounds(1))
    names = {"begin": "<s>", "end": "</s>"}
    assert "".join(names.get(segment.kind, segment.text) for segment in segments) == INTERNLM
    learned = "".join(names.get(segment.kind, segment.text) for segment in segments if segment.supervised)
    assert learned == "r1<eoa>\n</s>"
    assert [segment.text for segment in segments if segment.kind == "token"] == ["<eoh>", "<eoa>"]


def test_rounds_of_chatglm() -> None:
    """From 0, and only where there is a history; ChatGLM2's from 1, always."""
    history = rounds(2).prompt
    text = "".join(segment.text for segment in TEMPLATES["chatglm"].render(history))
    assert text == "[Round 0]\n问：q1\n答：r1\n[Round 1]\n问：q2\n答：[gMASK]<sop>"
    assert [s.text for s in TEMPLATES["chatglm"].render(rounds(1).prompt)] == ["q1", "[gMASK]", "<sop>"]
    text = "".join(segment.text for segment in TEMPLATES["chatglm2"].render(history))
    assert text == "[gMASK]sop[Round 1]\n\n问：q1\n\n答：r1\n\n[Round 2]\n\n问：q2\n\n答："


@pytest.mark.real_data
@pytest.mark.skipif(not MOSS.is_dir(), reason="the real records are not part of this repository")
def test_moss_writes_its_own_records_again() -> None:
    """The meta instruction without plugins, and to the character every record with plugins.

    Left out are the records that write a result into the line of its marker; most write it into lines of its own.
    """
    without = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(MOSS.glob("h*_conversations__*.json"))]
    assert without and {record["meta_instruction"] for record in without} == {TEMPLATES["moss"].system}
    plugins = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(MOSS.glob("*plugin_conversation_*.json"))
    ]
    usual = [
        record
        for record in plugins
        if all(turn["Tool Responses"].startswith("<|Results|>:\n") for turn in record["chat"].values())
    ]
    assert len(usual) >= len(plugins) // 2
    for record in usual:
        original = record["meta_instruction"] + "".join("".join(turn.values()) for turn in record["chat"].values())
        segments = TEMPLATES["moss_plugins"].render(moss_conversation(record))
        assert "".join(segment.text for segment in segments) + "\n" == original


def moss_conversation(record: dict[str, Any]) -> Conversation:
    turns: list[Message] = []
    for turn in record["chat"].values():
        thought, command, results = (turn[name] for name in ("Inner Thoughts", "Commands", "Tool Responses"))
        turns += [
            Message("user", turn["Human"].removeprefix("<|Human|>: ").removesuffix("<eoh>\n")),
            Message(
                "assistant",
                command.removeprefix("<|Commands|>: ").removesuffix("<eoc>\n"),
                thought=thought.removeprefix("<|Inner Thoughts|>: ").removesuffix("<eot>\n"),
                call=True,
            ),
            Message("tool", results.removeprefix("<|Results|>:\n").removesuffix("\n<eor>\n")),
            Message("assistant", turn["MOSS"].removeprefix("<|MOSS|>: ").removesuffix("<eom>\n")),
        ]
    return Conversation(tuple(turns), system=record["meta_instruction"])
