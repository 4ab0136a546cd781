"""Rows of every layout, written for these tests, with the conversations that they hold."""

from dataclasses import dataclass, field
from typing import Any

from ift.data.conversation import Message


def user(text: str, context: str = "") -> Message:
    return Message("user", text, context=context)


def bot(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def tool(text: str) -> Message:
    return Message("tool", text)


@dataclass(frozen=True)
class Sample:
    layout: str
    row: dict[str, Any]
    conversations: list[list[Message]]
    system: str = ""
    ids: list[str] = field(default_factory=list)
    detected: str = ""
    """The name that detection gives, where it is not the layout's own."""


def marked(part: str, end: str, text: str) -> str:
    return f"<|{part}|>: {text}<{end}>\n"


def moss_turn(
    human: str, answer: str, thought: str = "None", command: str = "None", result: str = ""
) -> dict[str, str]:
    return {
        "Human": marked("Human", "eoh", human),
        "Inner Thoughts": marked("Inner Thoughts", "eot", thought),
        "Commands": marked("Commands", "eoc", command),
        "Tool Responses": f"<|Results|>:\n{result}\n<eor>\n" if result else marked("Results", "eor", "None"),
        "MOSS": marked("MOSS", "eom", answer),
    }


def reply(name: str, role: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_id": name, "text": f"text of {name}", "role": role, "replies": list(replies), **more}


TREE = reply(
    "p0",
    "prompter",
    reply("a1", "assistant", rank=1),
    reply(
        "a0",
        "assistant",
        reply("p1", "prompter", reply("a2", "assistant"), lang="en"),
        reply("p2", "prompter"),
        rank=0,
    ),
)
THREADS = [
    [user("text of p0"), bot("text of a0"), user("text of p1"), bot("text of a2")],
    [user("text of p0"), bot("text of a0")],
    [user("text of p0"), bot("text of a1")],
]
PAIR = [[user("Name a colour."), bot(" red\n")]]
PAIR_WITH_INPUT = [[user("Translate.", "rot"), bot("red")]]
CHAT = [[user("Hello"), bot("Good day"), user("And now?"), bot("Good bye")]]
TASK = {"Contributors": ["n. n."], "Categories": ["Colours"], "Positive Examples": [{"input": "x", "output": "y"}]}
EXAM = {"question": "Which is a colour?", "options": ["(A) red", "(B) loud"]}
PAPER = {"abst": "We painted a wall.", "title": "On walls", "keywords": ["wall", "paint"], "discipline": "art"}

SAMPLES = [
    Sample("alpaca", {"instruction": "Name a colour.", "input": "", "output": " red\n", "id": 7}, PAIR, ids=["7"]),
    Sample("alpaca", {"instruction": "Translate.", "input": "rot", "output": "red"}, PAIR_WITH_INPUT),
    Sample(
        "alpaca",
        {"instruction": "And now?", "output": "Good bye", "history": [["Hello", "Good day"]], "system": "Be brief."},
        CHAT,
        system="Be brief.",
    ),
    Sample(
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "How warm?"},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Ask.",
                    "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}],
                },
                {"role": "tool", "content": "20", "tool_call_id": "1"},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "20 "}, {"type": "text", "value": "degrees"}],
                },
            ],
            "tools": [],
        },
        [
            [
                user("How warm?"),
                bot('{"name": "weather", "arguments": {"city": "Köln"}}', thought="Ask.", call=True),
                tool("20"),
                bot("20 degrees"),
            ]
        ],
        system="Be brief.",
    ),
    Sample(
        "sharegpt",
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "How warm?"},
                {"from": "function_call", "value": '{"name": "weather"}'},
                {"from": "observation", "value": "20"},
                {"from": "gpt", "value": "20 degrees"},
            ],
            "tools": "[]",
        },
        [[user("How warm?"), bot('{"name": "weather"}', call=True), tool("20"), bot("20 degrees")]],
        system="Be brief.",
    ),
    Sample("text", {"text": " a document\n"}, [[bot(" a document\n")]]),
    Sample(
        "alpaca_cot",
        {
            "instruction": "Human: Hello\nAssistant: Good day\nHuman: And now?\nAssistant:\n",
            "input": "",
            "output": "Good bye",
        },
        CHAT,
    ),
    Sample("alpaca_cot", {"instruction": "Name a colour.", "output": " red\n"}, PAIR, detected="alpaca"),
    Sample(
        "baize",
        {
            "topic": "t",
            "input": "A talk.\n[|Human|] Hello\n[|AI|] Good day\n[|Human|] And now?\n[|AI|] Good bye\n[|Human|] ",
        },
        CHAT,
        system="A talk.",
    ),
    Sample(
        "belle",
        {
            "instruction": "Human:Hello\nAssistant: Good day\nHuman:And now?\nAssistant:",
            "input": "",
            "output": "Good bye",
        },
        CHAT,
        detected="alpaca_cot",
    ),
    Sample(
        "belle",
        {
            "id": "9",
            "conversations": [{"from": "human", "value": "Name a colour."}, {"from": "assistant", "value": " red\n"}],
        },
        PAIR,
        ids=["9"],
        detected="sharegpt",
    ),
    Sample("belle", {"instruction": "Translate.", "input": "rot", "output": "red"}, PAIR_WITH_INPUT, detected="alpaca"),
    Sample(
        "camel",
        {
            "message_1": {"role_name": "Painter", "content": "Hello"},
            "message_2": "Good day",
            "message_3": "And now?",
            "message_4": "Good bye",
        },
        CHAT,
    ),
    Sample(
        "chinese_medical_dialogue",
        {"department": "内科", "title": "咳嗽", "ask": "咳嗽怎么办？", "answer": "多喝水。"},
        [[user("咳嗽怎么办？"), bot("多喝水。")]],
    ),
    Sample("chinese_vicuna", {"input": ["Hello", "And now?"], "output": ["Good day", "Good bye"]}, CHAT),
    Sample(
        "code_alpaca",
        {"instruction": "Translate.", "input": "rot", "output": "red"},
        PAIR_WITH_INPUT,
        detected="alpaca",
    ),
    Sample(
        "huatuo", {"instruction": "Translate.", "input": "rot", "output": "red"}, PAIR_WITH_INPUT, detected="alpaca"
    ),
    Sample(
        "instruction_wild",
        {"instruction": "Translate.", "input": "rot", "output": "red"},
        PAIR_WITH_INPUT,
        detected="alpaca",
    ),
    Sample(
        "coig",
        {
            "instruction": "Translate!",
            "trans_instruction": "Translate.",
            "trans_input": "rot",
            "output": "x",
            "trans_output": "red",
        },
        PAIR_WITH_INPUT,
    ),
    Sample(
        "coig",
        {
            "textbox_q_instruction": "选出正确的一项。",
            "textbox_q_context": "一段文字",
            "textbox_question": "哪一项？",
            "textbox_answer": "A",
            "textbox_answer_analysis": "因为。",
            "subject": "语文",
        },
        [[user("选出正确的一项。", "一段文字\n哪一项？"), bot("A\n因为。")]],
    ),
    Sample(
        "coig",
        {
            "instruction": "",
            "conversations": [
                {"question": "Hello", "answer": "Good day"},
                {"question": "And now?", "answer": "Good bye"},
            ],
        },
        CHAT,
    ),
    Sample(
        "coig",
        {
            "round_1": {"response": '{"Q": "And now?", "A": "Good bye"}'},
            "round_0": {"response": '{"Q": "Hello", "A": "Good day"}'},
        },
        CHAT,
    ),
    Sample("coig", {"instruction": "Name a colour.", "input": "", "output": " red\n"}, PAIR, detected="alpaca"),
    Sample(
        "csl",
        PAPER,
        [
            [user("请根据以下论文摘要，写出论文的标题。", "We painted a wall."), bot("On walls")],
            [user("请从以下论文摘要中提取关键词，用“；”隔开。", "We painted a wall."), bot("wall；paint")],
        ],
    ),
    Sample(
        "dolly", {"instruction": "Translate.", "context": "rot", "response": "red", "category": "x"}, PAIR_WITH_INPUT
    ),
    Sample("evol_instruct", {"Instruction": "Name a colour.", "Output": " red\n", "idx": 1}, PAIR),
    Sample("evol_instruct", {"instruction": "Name a colour.", "output": " red\n"}, PAIR, detected="alpaca"),
    Sample("firefly", {"kind": "NLI", "input": "Name a colour.", "target": " red\n"}, PAIR),
    Sample(
        "firefly",
        {
            "conversation_id": 3,
            "conversation": [
                {"human": "Hello", "assistant": "Good day"},
                {"human": "And now?", "assistant": "Good bye"},
            ],
        },
        CHAT,
        ids=["3"],
    ),
    Sample("flan", {"inputs": "Name a colour.", "targets": " red\n", "task": "t"}, PAIR, detected="p3"),
    Sample(
        "gaokao",
        {"passage": "Read this.", **EXAM, "label": "A", "answer": None, "other": None},
        [[user("Read this.\nWhich is a colour?\n(A) red\n(B) loud"), bot("A")]],
    ),
    Sample(
        "gaokao",
        {"passage": None, **EXAM, "label": ["A", "B"]},
        [[user("Which is a colour?\n(A) red\n(B) loud"), bot("AB")]],
    ),
    Sample(
        "gaokao",
        {
            "keywords": "k",
            "example": [{"question": "Which?\nA. red", "standard_answer": ["A"], "analysis": "so", "index": 0}],
        },
        [[user("Which?\nA. red"), bot("A")]],
    ),
    Sample("gpt4all", {"prompt": "Name a colour.", "response": " red\n", "source": "s"}, PAIR),
    Sample("gpteacher", {"instruction": "Translate.", "input": "rot", "response": "red"}, PAIR_WITH_INPUT),
    Sample(
        "guanaco",
        {
            "instruction": "User: Hello\nAssistant: Good day",
            "input": "System: Be brief.\nUser: And now?",
            "output": "Good bye",
        },
        CHAT,
        system="Be brief.",
    ),
    Sample("guanaco", {"instruction": "", "input": "User:Name a colour.", "output": " red\n"}, PAIR),
    Sample(
        "guanaco", {"instruction": "Translate.", "input": "rot", "output": "red"}, PAIR_WITH_INPUT, detected="alpaca"
    ),
    Sample(
        "guanaco", {"text": "### Human: Hello### Assistant: Good day### Human: And now?### Assistant: Good bye"}, CHAT
    ),
    Sample(
        "hc3",
        {"id": "5", "question": "Name a colour.", "human_answers": ["blue"], "chatgpt_answers": [" red\n", "green"]},
        [*PAIR, [user("Name a colour."), bot("green")]],
        ids=["5-0", "5-1"],
    ),
    Sample(
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Good day\n\nHuman: And now?\n\nAssistant: Good bye",
            "rejected": "\n\nHuman: Hello\n\nAssistant: No",
        },
        CHAT,
    ),
    Sample("lima", {"conversations": ["Hello", "Good day", "And now?", "Good bye"], "source": "multi_turn"}, CHAT),
    Sample("ultrachat", {"id": "0", "data": ["Hello", "Good day", "And now?", "Good bye"]}, CHAT, ids=["0"]),
    Sample(
        "moss",
        {
            "conversation_id": 4,
            "meta_instruction": "You are MOSS.\n",
            "num_turns": 2,
            "chat": {
                "turn_2": moss_turn(
                    "2 times 3?", "It is 6.", "Compute.", 'Calculate("2*3")', "Calculate(\"2*3\") => '6'"
                ),
                "turn_1": moss_turn("Hello", "Good day", "Be polite."),
            },
        },
        [
            [
                user("Hello"),
                bot("Good day", thought="Be polite."),
                user("2 times 3?"),
                bot('Calculate("2*3")', thought="Compute.", call=True),
                tool("Calculate(\"2*3\") => '6'"),
                bot("It is 6."),
            ]
        ],
        system="You are MOSS.\n",
        ids=["4"],
    ),
    Sample(
        "moss",
        {
            "prefix": "MOSS is kind.",
            "plain_text": "[Human]: Hello <eoh> [MOSS]: Good day <eoa> [Human]: And now? <eoh> [MOSS]: Good bye <eoa>",
        },
        CHAT,
        system="MOSS is kind.",
    ),
    Sample(
        "natural_instructions",
        {
            "Title": "Colours",
            "Definition": "Translate.",
            "Emphasis & Caution": "-",
            "Things to Avoid": "Do not guess.",
            "Prompt": "",
            "Instances": [{"input": "rot", "output": ["red", "reddish"]}, {"input": "blau", "output": "blue"}],
        },
        [
            [user("Translate.\nDo not guess.", "rot"), bot("red")],
            [user("Translate.\nDo not guess.", "blau"), bot("blue")],
        ],
    ),
    Sample(
        "natural_instructions",
        {"definition": "Translate.", "inputs": "rot", "targets": "red", "id": "t-1"},
        PAIR_WITH_INPUT,
        ids=["t-1"],
    ),
    Sample(
        "super_natural_instructions",
        {**TASK, "Definition": ["Translate."], "Instances": [{"id": "t-1", "input": "rot", "output": ["red", "r"]}]},
        PAIR_WITH_INPUT,
        ids=["t-1"],
    ),
    Sample(
        "oasst",
        {"message_tree_id": "p0", "tree_state": "ready_for_export", "prompt": TREE},
        THREADS,
        ids=["a2", "a0", "a1"],
    ),
    Sample("oasst", {**TREE, "parent_id": None}, THREADS, ids=["a2", "a0", "a1"]),
    Sample(
        "oig", {"text": "<human>: Hello\n<bot>: Good day\n<human>: And now?\n<bot>: Good bye", "metadata": {}}, CHAT
    ),
    Sample("p3", {"inputs": "Name a colour.", "targets": " red\n"}, PAIR),
    Sample(
        "p3",
        {"inputs": [3, 4], "inputs_pretokenized": "Name a colour.", "targets": [5], "targets_pretokenized": " red\n"},
        PAIR,
    ),
    Sample("p3", {"prompt": "Name a colour.", "completion": " red\n<|endoftext|>"}, PAIR),
    Sample("xp3", {"inputs": "Name a colour.", "targets": " red\n"}, PAIR, detected="p3"),
    Sample("pclue", {"input": "Name a colour.", "target": " red\n", "type": "mrc", "answer_choices": ["x"]}, PAIR),
    Sample(
        "prosocial_dialog",
        {"context": "Name a colour.", "response": " red\n", "rots": ["Be kind."], "safety_label": "x"},
        PAIR,
    ),
    Sample("question_answer", {"question": "Name a colour.", "answer": " red\n"}, PAIR),
    Sample(
        "self_instruct",
        {
            "id": "seed_task_0",
            "instruction": "Translate.",
            "instances": [{"input": "rot", "output": "red"}, {"input": "", "output": "nothing"}],
            "is_classification": False,
        },
        [*PAIR_WITH_INPUT, [user("Translate."), bot("nothing")]],
        ids=["seed_task_0-0", "seed_task_0-1"],
    ),
    Sample("self_instruct", {"prompt": "Name a colour.", "completion": " red\n<|endoftext|>"}, PAIR, detected="p3"),
    Sample(
        "stack_exchange_paired",
        {"qid": 1, "question": "Name a colour.", "response_j": " red\n", "response_k": "no"},
        PAIR,
    ),
    Sample(
        "unnatural_instructions",
        {
            "instruction": "Name a thing.",
            "instances": [
                {
                    "instruction_with_input": "Name a colour.",
                    "input": "colour",
                    "constraints": "None.",
                    "output": " red\n",
                }
            ],
            "reformulations": [
                {
                    "instruction": "Say a {INPUT}.",
                    "instruction_with_input": "Say a colour.",
                    "input": "colour",
                    "output": "blue",
                }
            ],
        },
        [*PAIR, [user("Say a colour."), bot("blue")]],
    ),
    Sample(
        "webgpt",
        {
            "question": {"full_text": "Name a colour.", "id": "x"},
            "answer_0": "loud",
            "answer_1": " red\n",
            "score_0": -0.5,
            "score_1": 0.5,
            "quotes_0": {"title": []},
        },
        PAIR,
    ),
]
