"""What the experiment with a merged vocabulary counts: compute, by PyTorch's own counter, and documents."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHINESE, ROOT, make_llama
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "scripts" / "chinese_llama"))

from compute_budget import ModelShape, flops_per_token, steps_within
from text_split import SHARES, part_of, split_texts, whole_text

from ift.errors import UserError

LENGTH, WIDTH, ROWS = 64, 32, 300


def counted(folder: Path, trained: str) -> float:
    """Return what PyTorch counts per token of a forward and backward pass."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), attn_implementation="eager")
    if trained == "lora":
        ends = ["embed_tokens", "lm_head"]
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", modules_to_save=ends))
    if trained == "embeddings":
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    ids = torch.arange(LENGTH).unsqueeze(0) % ROWS
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops() / LENGTH


@pytest.mark.parametrize("trained", ["everything", "embeddings", "lora"])
def test_compute_is_what_pytorch_counts(tmp_path: Path, trained: Any) -> None:
    """Eager attention computes the whole square, of which a causal kernel needs half: that is all that differs."""
    folder = make_llama(tmp_path / "llama", ROWS, num_key_value_heads=4)
    shape = ModelShape(WIDTH, 64, 2, ROWS)
    attention = 6 * shape.num_layers * WIDTH * LENGTH
    found, expected = counted(folder, trained), flops_per_token(shape, trained, length=LENGTH) + attention
    # PyTorch counts the rotary angles of a forward pass too, an outer product of 4 numbers per token.
    assert abs(found - expected) <= 0.002 * expected


def test_a_budget_pays_for_whole_steps() -> None:
    assert steps_within(1e6, 100, tokens_per_step=1000) == 10
    assert steps_within(1.0999e6, 100, tokens_per_step=1000) == 10
    assert steps_within(1, 100, tokens_per_step=1000) == 1


def texts(number: int) -> list[str]:
    return [f"{i}：" + "，".join(CHINESE[(i * k) % 10] for k in range(1 + i % 9)) for i in range(number)]


def test_a_document_is_in_one_part_wherever_it_stands(tmp_path: Path) -> None:
    documents = texts(2000)
    for name, order in (("one", documents), ("two", documents[::-1] + documents[:50])):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_text("\n\n".join(order), encoding="utf-8")
    parts = [split_texts([str(tmp_path / f"{name}.txt")], tmp_path / name) for name in ("one", "two")]
    for name in ("held_out", "base", "train"):
        first, second = (part[name].path.read_text(encoding="utf-8").splitlines() for part in parts)
        assert sorted(line.replace('"one"', '"two"') for line in first) == sorted(second)
        assert parts[0][name].documents == len(first) == sum(part_of(text) == name for text in documents)
        assert parts[0][name].characters == sum(len(text) for text in documents if part_of(text) == name)
    for name, share in SHARES.items():
        assert abs(parts[0][name].documents / 2000 - share) < 0.02
    assert whole_text([str(tmp_path / "one.txt")], tmp_path / "whole.jsonl").documents == 2000


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(texts(3)), encoding="utf-8")
    with pytest.raises(UserError, match="3 documents are too few"):
        split_texts([str(tmp_path / "few.txt")], tmp_path)
