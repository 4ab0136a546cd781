"""LoRA on real bilingual records and code, with the LLaMA tokenizer; run where the records are at hand."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT, make_llama

from ift.data.templates import TEMPLATES

SHARED = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository"),
]

FILES = ["alpaca_en_zh_parallel/en.json", "alpaca_en_zh_parallel/zh.json", "code_alpaca/code_alpaca_2k.json"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with LLaMA's own vocabulary, in the layout of the original checkpoints."""
    folder = tmp_path_factory.mktemp("llama") / "base"
    # With weights as small as at the start of pre-training, a frozen random head could express next to nothing.
    make_llama(folder, 32_000, initializer_range=0.1, hidden_size=128)
    shutil.copy(SHARED / "tokenizers" / "llama_tokenizer.model", folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    return folder


def test_lora_learns_on_real_records(llama: Path, tmp_path: Path, fit: Callable[..., Path]) -> None:
    values: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 300,
            "num_sanity_val_steps": -1,
            "val_check_interval": 150,
            "check_val_every_n_epoch": None,
        },
        "model": {
            "base": str(llama),
            "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 8, "target_modules": "all-linear"}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "sources": [{"path": str(SHARED / name), "layout": "alpaca"} for name in FILES],
            "validation": 64,
            "max_length": 512,
            "global_batch_size": 4,
            "micro_batch_tokens": 2048,
            "max_rejected": 0.05,
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    manifest = json.loads((fit(path) / "manifest.json").read_text())
    assert manifest["steps"] == 300
    for source, name in zip(manifest["data"]["sources"], FILES, strict=True):
        rows = json.loads((SHARED / name).read_text(encoding="utf-8"))
        assert source["rows"] == len(rows) == source["examples"] + sum(source["rejected"].values())
    first, last = manifest["validation"][0]["loss"], manifest["validation"][-1]["loss"]
    # Knowing nothing costs ln 32000 = 10.37 nats; the random model is worse, as it is wrong with confidence.
    assert first > 10.37
    assert last < 10.37 - 0.5


@pytest.mark.parametrize("template", ["alpaca", "chinese_alpaca", "plain"])
def test_supervised_tokens_of_real_records_decode_to_the_outputs(llama: Path, template: str) -> None:
    from ift.data.conversation import supervise
    from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer
    from ift.data.layouts import alpaca
    from ift.data.templates import TEMPLATES

    tokenizer = load_tokenizer("base", str(llama))
    encoder = Encoder(tokenizer, TEMPLATES[template])
    rows = [row for name in FILES for row in json.loads((SHARED / name).read_text(encoding="utf-8"))]
    rows = [row for row in rows if row["output"].strip()]
    assert len(rows) > 500
    for row, example in zip(
        rows, encoder.encode([encoder.template.render(supervise(alpaca(r), "outputs")) for r in rows]), strict=True
    ):
        supervised = example.input_ids[example.labels != IGNORE_INDEX]
        assert supervised[-1] == tokenizer.eos_token_id
        assert encoder.decode(supervised[:-1]) == row["output"]


PACKED_FILES = [
    *FILES,
    "alpaca_gpt4_demo/alpaca_en_demo.json",
    "alpaca_gpt4_demo/alpaca_zh_demo.json",
    "alpaca_zh_carbonz0/zh-data-part-00.json",
    "chinese_vicuna_sample/instruct.jsonl",
    "cot_pairs/aqua_formatted.json",
    "cot_pairs/creak_formatted.json",
    "cot_pairs/qasc_formatted.json",
    "cot_pairs/strategyqa_formatted.json",
    "huatuo/llama_data.json",
    "ruozhiba/ruozhiba_qa2449_gpt4t.json",
]


@pytest.mark.parametrize("budget", [2048, 8192])
def test_next_to_nothing_is_padded_at_128_examples_a_step(llama: Path, tmp_path: Path, budget: int) -> None:
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    shares = {}
    for row_layout in ("packed", "flattened", "grouped"):
        data = InstructionDataModule(
            [Source(str(SHARED / name), "alpaca") for name in PACKED_FILES],
            str(llama),
            max_length=2048,
            global_batch_size=128,
            micro_batch_tokens=budget,
            row_layout=row_layout,  # type: ignore[arg-type]
            max_rejected=0.1,
            cache_dir=str(tmp_path),
        )
        data.load()
        assert data.num_train_examples > 3000
        steps = list(data.train_dataloader())
        padded, tokens = sum(step.num_padded for step in steps), sum(step.num_tokens for step in steps)
        shares[row_layout] = padded / (padded + tokens)
    assert max(shares.values()) <= 0.03, shares
    assert shares["flattened"] == 0 and shares["packed"] <= 0.015, shares


RECORDS = [
    "sharegpt/sharegpt_zh_1K_format.jsonl",
    "alpaca_gpt4_demo/alpaca_zh_demo.json",
    "code_alpaca/code_alpaca_2k.json",
    "firefly/dummy_data.jsonl",
    "sharegpt/glaive_toolcall_zh_demo.json",
    "messages/v1_sft_demo.jsonl",
    "oasst/en_100_tree.jsonl",
    "pclue/pCLUE_train_9.json",
    "moss/*.json",
]


@pytest.fixture(scope="module")
def conversations() -> list[Any]:
    """Five hundred conversations of nine sources, a seeded choice."""
    from ift.data.row_conversations import resolve_source, to_conversations
    from ift.data.rows import Source, read_rows

    found = []
    for name in RECORDS:
        source = Source(str(SHARED / name))
        function = resolve_source("source", source).function
        given = [one for row in read_rows(source) for one in to_conversations(row, function, needs_response=True)]
        found += [one for one in given if not isinstance(one, Exception)]
    assert len(found) == 1364
    random.Random(0).shuffle(found)
    return found[:500]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_masks_of_every_template_decode_to_the_responses(llama: Path, conversations: list[Any], template: str) -> None:
    from ift.data.conversation import supervise
    from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer

    encoder = Encoder(load_tokenizer("model.base", str(llama)), TEMPLATES[template])
    decode, ends = encoder.tokenizer.decode, set(encoder.stop_token_ids)
    compared = 0
    for conversation in conversations:
        (example,) = encoder.encode([TEMPLATES[template].render(supervise(conversation, "outputs"))])
        prompt = encoder.prompt_ids(conversation)
        assert example.input_ids[: len(prompt)].tolist() == prompt
        answers = [message for message in conversation.messages if message.role == "assistant"]
        if any(message.thought or message.call for message in answers) or template == "moss_plugins":
            continue  # marks and thoughts are learned too; other tests compare them piece by piece
        runs: list[list[int]] = [[]]
        for label in example.labels.tolist():
            runs = [*runs, []] if label == IGNORE_INDEX and runs[-1] else runs
            runs[-1] += [label] if label != IGNORE_INDEX else []
        texts = [decode([token for token in run if token not in ends]).strip() for run in runs if run]
        expected = [message.text.strip() for message in answers]
        assert texts == (expected[-1:] if TEMPLATES[template].last_output_only else expected)
        compared += 1
    assert compared > 400 or template == "moss_plugins"
