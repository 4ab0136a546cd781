"""Real records of most layouts: detected, and counted in a second way."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layout_outcomes import outcomes
from tiny import ROOT

from ift.data.conversation import Conversation
from ift.data.layouts import detect_layout

SHARED = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository"),
]


def rows_of(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return value if isinstance(value, list) else [value]


Counts = tuple[int, int]
"""Conversations and refusals that a row holds, counted without the layouts."""


def filled(*keys: str) -> Callable[[Any], Counts]:
    return lambda row: (1, 0) if all(row[key].strip() for key in keys) else (0, 1)


def no_response(row: Any) -> Counts:
    assert not {"output", "Output", "response"} & set(row)
    return 0, 1


def ends_with_assistant(row: Any) -> Counts:
    speakers = [turn.get("from") or turn.get("role") for turn in row.get("conversations") or row["messages"]]
    return (1, 0) if speakers[-1] in ("gpt", "assistant") else (0, 1)


def completion(row: Any) -> Counts:
    return (1, 0) if row["completion"].replace("<|endoftext|>", "").strip() else (0, 1)


def threads(row: Any) -> Counts:
    """Count the assistant's messages at which a path ends once the prompter's last word is cut."""
    root = row.get("prompt", row)
    ends: set[str] = set()

    def walk(message: Any, last: str) -> None:
        last = message["message_id"] if message["role"] == "assistant" else last
        for item in message["replies"]:
            walk(item, last)
        if not message["replies"]:
            ends.add(last)

    walk(root, "")
    return len(ends), 0


ALPACA = filled("instruction", "output")
FILES: dict[str, tuple[str, Callable[[Any], Counts], Counts]] = {
    "agieval_zh/gaokao-chinese.jsonl": ("gaokao", filled("question"), (50, 0)),
    "agieval_zh/gaokao-history.jsonl": ("gaokao", filled("question"), (118, 0)),
    "agieval_zh/gaokao-physics.jsonl": ("gaokao", filled("question"), (100, 0)),
    "agieval_zh/jec-qa-ca.jsonl": ("gaokao", filled("question"), (200, 0)),
    "agieval_zh/jec-qa-kd.jsonl": ("gaokao", filled("question"), (200, 0)),
    "agieval_zh/logiqa-zh.jsonl": ("gaokao", filled("question"), (109, 0)),
    "alpaca_en_zh_parallel/en.json": ("alpaca", ALPACA, (296, 0)),
    "alpaca_en_zh_parallel/zh.json": ("alpaca", ALPACA, (296, 0)),
    "alpaca_gpt4_demo/alpaca_en_demo.json": ("alpaca", ALPACA, (333, 0)),
    "alpaca_gpt4_demo/alpaca_zh_demo.json": ("alpaca", ALPACA, (334, 0)),
    "alpaca_zh_carbonz0/zh-data-part-00.json": ("alpaca", ALPACA, (251, 0)),
    "chinese_vicuna_sample/chat.jsonl": ("chinese_vicuna", lambda row: (1, 0), (3, 0)),
    "chinese_vicuna_sample/instruct.jsonl": ("alpaca", ALPACA, (10, 0)),
    "code_alpaca/code_alpaca_2k.json": ("alpaca", ALPACA, (253, 0)),
    "cot_pairs/aqua_formatted.json": ("alpaca", ALPACA, (304, 0)),
    "cot_pairs/creak_formatted.json": ("alpaca", ALPACA, (346, 0)),
    "cot_pairs/qasc_formatted.json": ("alpaca", ALPACA, (271, 0)),
    "cot_pairs/strategyqa_formatted.json": ("alpaca", ALPACA, (295, 0)),
    "firefly/dummy_data.jsonl": ("firefly", lambda row: (1, 0), (17, 0)),
    "firefly/dummy_pretrain.jsonl": ("text", filled("text"), (23, 0)),
    "gaokao_gpt4_replies/History_MCQs.json": ("gaokao", lambda row: (len(row["example"]), 0), (58, 0)),
    "gpteacher/codegen.json": ("gpteacher", filled("instruction", "response"), (227, 0)),
    "gpteacher/roleplay.json": ("gpteacher", filled("instruction", "response"), (193, 0)),
    "gsm8k/test.jsonl": ("question_answer", filled("question", "answer"), (330, 0)),
    "huatuo/llama_data.json": ("alpaca", ALPACA, (217, 0)),
    "instinwild/seed_prompts_ch.jsonl": ("instruction_wild", no_response, (0, 215)),
    "instinwild/user_1.jsonl": ("instruction_wild", no_response, (0, 215)),
    "messages/reason_tool_use_demo_50.jsonl": ("messages", ends_with_assistant, (10, 0)),
    "messages/v1_sft_demo.jsonl": ("messages", ends_with_assistant, (100, 0)),
    "natural_instructions/task1319_country_by_barcode_prefix.json": (
        "super_natural_instructions",
        lambda row: (len(row["Instances"]), 0),
        (101, 0),
    ),
    "natural_instructions/task489_mwsc_question_generation.json": (
        "super_natural_instructions",
        lambda row: (len(row["Instances"]), 0),
        (100, 0),
    ),
    "oasst/en_100_message.jsonl": ("oasst", threads, (58, 0)),
    "oasst/en_100_tree.jsonl": ("oasst", threads, (111, 0)),
    "pclue/pCLUE_train_9.json": ("pclue", filled("input", "target"), (353, 0)),
    "ruozhiba/ruozhiba_qa2449_gpt4t.json": ("alpaca", ALPACA, (307, 0)),
    "seed_tasks/seed_tasks.jsonl": ("self_instruct", lambda row: (len(row["instances"]), 0), (175, 0)),
    "seed_tasks/zh_seed_tasks.json": ("self_instruct", lambda row: (len(row["instances"]), 0), (175, 0)),
    "self_instruct_user_oriented/user_oriented_instructions.jsonl": (
        "self_instruct",
        lambda row: (len(row["instances"]), 0),
        (126, 0),
    ),
    "sharegpt/fastchat_dummy_conversation.json": ("sharegpt", ends_with_assistant, (250, 0)),
    "sharegpt/glaive_toolcall_zh_demo.json": ("sharegpt", ends_with_assistant, (50, 0)),
    "sharegpt/sharegpt_zh_1K_format.jsonl": ("sharegpt", ends_with_assistant, (98, 2)),
    "t0_p3/ag_news_classify_question_first.jsonl": ("p3", completion, (25, 0)),
    "t0_p3/cnn_dailymail_3_0_0_tldr_summary.jsonl": ("p3", completion, (20, 0)),
    "t0_p3/duorc_SelfRC_extract_answer.jsonl": ("p3", completion, (20, 0)),
    "t0_p3/glue_mrpc_generate_sentence.jsonl": ("p3", completion, (24, 0)),
    "t0_p3/paws_labeled_final_paraphrase_task.jsonl": ("p3", completion, (16, 0)),
    "t0_p3/quoref_Find_Answer.jsonl": ("p3", completion, (20, 0)),
    "t0_p3/rotten_tomatoes_Sentiment_with_choices_.jsonl": ("p3", completion, (25, 0)),
    "t0_p3/trec_fine_grained_open.jsonl": ("p3", completion, (0, 25)),
    "t0_p3/wiki_qa_Jeopardy_style.jsonl": ("p3", completion, (2, 0)),
    "wizardlm_testset/WizardLM_testset.jsonl": ("evol_instruct", no_response, (0, 109)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_detected_and_counted(name: str) -> None:
    """The pinned counts are those of the second way, row by row; both are compared with the layout's own."""
    layout, count, pinned = FILES[name]
    rows = rows_of(SHARED / name)
    assert detect_layout(rows) == layout
    total: Counter[str] = Counter()
    for row in rows:
        result = outcomes(layout, row)
        num_read = sum(isinstance(one, Conversation) for one in result)
        assert (num_read, len(result) - num_read) == count(row)
        total.update(read=num_read, refused=len(result) - num_read)
    assert (total["read"], total["refused"]) == pinned


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


EXACT = [name for name, (layout, _, _) in FILES.items() if layout not in ("p3", "gaokao", "messages")]


@pytest.mark.parametrize("name", EXACT)
def test_texts_are_those_of_the_row(name: str) -> None:
    """Every response is one of the row's own texts, to the letter."""
    layout = FILES[name][0]
    for row in rows_of(SHARED / name):
        own = set(strings(row))
        for one in outcomes(layout, row):
            if isinstance(one, Conversation):
                assert {message.text for message in one.messages} <= own


def test_moss() -> None:
    """All 48 chats, with and without plugins; parts cut out by plain slicing."""
    paths = sorted((SHARED / "moss").glob("*.json"))
    assert len(paths) == 48
    num_calls = 0
    for path in paths:
        (row,) = rows_of(path)
        assert detect_layout([row]) == "moss"
        (one,) = outcomes("moss", row)
        assert isinstance(one, Conversation) and one.system == row["meta_instruction"]
        expected: list[str] = []
        for number in range(1, row["num_turns"] + 1):
            turn = row["chat"][f"turn_{number}"]
            expected.append(turn["Human"][len("<|Human|>: ") : -len("<eoh>\n")])
            if "None" not in turn["Commands"]:
                expected.append(turn["Commands"][len("<|Commands|>: ") : -len("<eoc>\n")])
                expected.append(turn["Tool Responses"][len("<|Results|>:") : -len("<eor>\n")].strip())
                num_calls += 1
            expected.append(turn["MOSS"][len("<|MOSS|>: ") : -len("<eom>\n")])
        assert [message.text for message in one.messages] == expected
        thoughts = [turn["Inner Thoughts"] for turn in row["chat"].values()]
        given = [message.thought for message in one.messages if message.thought]
        assert given == [t[len("<|Inner Thoughts|>: ") : -len("<eot>\n")] for t in thoughts if "None" not in t]
    assert num_calls == 34  # turns of the 48 files whose Commands do not hold None, counted with a script


def test_reasoning_and_calls() -> None:
    """The messages with parts: every thought and every call is found; one chat ends with a call."""
    found: Counter[str] = Counter()
    for row in rows_of(SHARED / "messages" / "reason_tool_use_demo_50.jsonl"):
        (one,) = outcomes("messages", row)
        assert isinstance(one, Conversation)
        found.update(thoughts=sum(bool(m.thought) for m in one.messages), calls=sum(m.call for m in one.messages))
        found.update(results=sum(m.role == "tool" for m in one.messages), messages=len(one.messages))
        parts = [part for turn in row["messages"] for part in turn["content"]]
        found.update(part["type"] for part in parts)
    assert found["thoughts"] == found["reasoning"] and found["calls"] == found["tool_call"]
    assert (found["messages"], found["thoughts"], found["calls"], found["results"]) == (32, 16, 5, 4)
