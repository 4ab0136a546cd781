"""The ids of a prompt are the same in training, in prediction and in the tokenizer's own hands."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversations import ENDED_BY_ONE_TOKEN, NASTY, Talk, Turn, row_of, talks_of

from ift.data.conversation import Conversation, Message
from ift.data.datamodule import InstructionDataModule
from ift.data.encoding import Encoder, load_tokenizer, make_renderer
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES
from ift.inference.prompts import PromptDataModule

PAIRS = [(name, template) for name in ("sentencepiece", "llama", "byte_level") for template in ENDED_BY_ONE_TOKEN]
PAIRS += [("byte_level", "tokenizer")]


def conversation_of(talk: Talk) -> Conversation:
    messages = []
    for turn in talk.turns:
        messages.append(Message("user", turn.request, context=turn.context))
        messages.append(Message("assistant", turn.response, supervised=turn.supervised))
    return Conversation(tuple(messages), system=talk.system)


def examples_of(path: Path, layout: str, encoder: Encoder, tmp_path: Path) -> list[Any]:
    source = Source(str(path), layout)
    store = ExampleStore(
        prepare([source], encoder, PreparationSettings(9999), cache_dir=tmp_path / "cache", key="data.sources")
    )
    return [store[index] for index in range(len(store))]


@pytest.mark.parametrize("layout", ["alpaca", "messages", "sharegpt"])
@pytest.mark.parametrize(("any_tokenizer_folder", "template"), PAIRS, indirect=["any_tokenizer_folder"])
def test_prompts_are_those_of_training(any_tokenizer_folder: Path, template: str, layout: str, tmp_path: Path) -> None:
    talks = talks_of(layout)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row_of(layout, talk)) + "\n" for talk in talks), encoding="utf-8")
    tokenizer = load_tokenizer("model.base", str(any_tokenizer_folder))
    encoder = Encoder(tokenizer, make_renderer(tokenizer, TEMPLATES.get(template)))
    examples = examples_of(path, layout, encoder, tmp_path)
    predicting = PromptDataModule(str(path), str(any_tokenizer_folder), layout=layout, template=template)
    predicting.load()
    for talk, example, prompt in zip(talks, examples, predicting.prompts, strict=True):
        whole = example.input_ids.tolist()
        assert prompt.ids == encoder.prompt_ids(conversation_of(talk)) == whole[: len(prompt.ids)]
        # What follows is the response as it is scored, and its end.
        response = encoder.response_ids(talk.turns[-1].response)
        assert whole[len(prompt.ids) : len(prompt.ids) + len(response)] == response
        assert whole[len(prompt.ids) + len(response)] in encoder.stop_token_ids
        assert (example.labels[len(prompt.ids)] != -100) == talk.turns[-1].supervised
        assert prompt.reference == talk.turns[-1].response


def test_chat_template_ids_are_the_tokenizers_own(byte_level_folder: Path) -> None:
    """On texts without special tokens (with them, transformers would let a message end itself).

    Earlier responses begin with no blank: transformers would join it with the newline before it into one token.
    """
    tokenizer = load_tokenizer("model.base", str(byte_level_folder))
    encoder = Encoder(tokenizer, make_renderer(tokenizer, None))
    calm = [text for text in NASTY if "<|" not in text]
    answers = [text for text in calm if not text[0].isspace()]
    talks = []
    for i, text in enumerate(calm):
        turns = [Turn(calm[i - k], answers[(i + k) % len(answers)], context=text * (k % 2)) for k in range(3)]
        talks.append(Talk(tuple(turns), system=text * (i % 2)))
    for talk in talks:
        chat = [{"role": "system", "content": talk.system}] if talk.system else []
        for turn in talk.turns:
            content = f"{turn.request}\n{turn.context}" if turn.context else turn.request
            chat += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.response}]
        ids = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=True)
        assert encoder.prompt_ids(conversation_of(talk)) == ids["input_ids"]


def alpaca_text(row: dict[str, str]) -> str:
    """Stanford Alpaca's two prompts, as in its train.py (2023)."""
    if row.get("input", "") != "":
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:"
        )
    return (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{row['instruction']}\n\n### Response:"
    )


def chinese_alpaca_text(row: dict[str, str]) -> str:
    """Chinese-LLaMA-Alpaca's prompt, as in scripts/training/build_dataset.py."""
    instruction = row["instruction"]
    if row["input"] is not None and row["input"] != "":
        instruction = instruction + "\n" + row["input"]
    return (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response: "
    )


@pytest.mark.parametrize(("name", "reference"), [("alpaca", alpaca_text), ("chinese_alpaca", chinese_alpaca_text)])
def test_published_templates_to_the_character(
    name: str, reference: Any, byte_level_folder: Path, tmp_path: Path
) -> None:
    rows = [row_of("alpaca", talk) for talk in talks_of("alpaca")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    module = PromptDataModule(str(path), str(byte_level_folder), layout="alpaca", template=name)
    module.load()
    for row, prompt in zip(rows, module.prompts, strict=True):
        assert module.encoder.tokenizer.decode(prompt.ids) == reference(row)


def test_turns_are_separated_and_the_system_text_is_the_rows_own() -> None:
    talk = Talk((Turn("one?", "1"), Turn("two?", "2", context="{text}")), system="Count.")
    segments = TEMPLATES["alpaca"].render(conversation_of(talk))
    assert [(s.text, s.kind, s.supervised) for s in segments] == [
        ("", "begin", False),
        ("Count.\n\n### Instruction:\none?\n\n### Response:", "text", False),
        ("1", "text", True),
        ("", "end", True),
        ("\n\n### Instruction:\ntwo?\n\n### Input:\n{text}\n\n### Response:", "text", False),
        ("2", "text", True),
        ("", "end", True),
    ]


def test_sample_prompts_and_validation_use_the_same_ids(base: Path, rows_file: Path, tmp_path: Path) -> None:
    module = InstructionDataModule(
        [Source(str(rows_file), "alpaca")],
        str(base),
        256,
        8,
        512,
        validation=[Source(str(rows_file), "alpaca")],
        cache_dir=str(tmp_path / "cache"),
    )
    module.load()
    predicting = PromptDataModule(str(rows_file), str(base), layout="alpaca")
    predicting.load()
    for (prompt, response), expected in zip(module.validation_prompts(40), predicting.prompts, strict=True):
        assert prompt == expected.ids
        assert module.encoder.decode(response) == expected.reference


@pytest.mark.parametrize("template", ["chatglm", "alpaca", "plain"])
def test_sample_prompts_hold_the_token_that_begins_a_response(
    byte_level_folder: Path, template: str, rows_file: Path, tmp_path: Path
) -> None:
    """ChatGLM-6B learns `<sop>` with the response, and is given it with the prompt."""
    tokenizer = load_tokenizer("model.base", str(byte_level_folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    tokenizer.save_pretrained(str(tmp_path / "base"))
    sources, cache = [Source(str(rows_file), "alpaca")], str(tmp_path / "cache")
    arguments: dict[str, Any] = {"template": template, "validation": sources, "cache_dir": cache}
    module = InstructionDataModule(sources, str(tmp_path / "base"), 512, 4, 1024, **arguments)
    module.load()
    predicting = PromptDataModule(str(rows_file), str(tmp_path / "base"), "alpaca", template)
    predicting.load()
    shown = module.validation_prompts(40)
    assert [prompt for prompt, _ in shown] == [prompt.ids for prompt in predicting.prompts]
    assert [module.encoder.decode(response) for _, response in shown] == [p.reference for p in predicting.prompts]
    if template == "chatglm":
        assert tokenizer.convert_ids_to_tokens(shown[0][0])[-2:] == ["[gMASK]", "<sop>"]
