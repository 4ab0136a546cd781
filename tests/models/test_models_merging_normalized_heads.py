"""Merging into a Baichuan2: what its head divides its rows by is not rounded before its time, in any dtype."""

from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import CHECKPOINTS, write_checkpoint
from peft import LoraConfig, get_peft_model

from ift.models.families.normalized_head import settle_heads
from ift.models.loading import Dtype, load_base_model
from ift.models.merging import merge, write_model
from ift.models.trained_adapters import load_adapter

IDS = torch.tensor([[3, 17, 55, 8, 29, 29, 40, 61, 5, 12, 33]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b"])
def test_a_merged_head_is_rounded_once_at_most(name: str, dtype: Dtype, tmp_path: Path) -> None:
    base = str(write_checkpoint(CHECKPOINTS[name](7).in_dtype(torch.float16), tmp_path / "base"))
    adapted = get_peft_model(load_base_model("model.base", base, "float32"), LoraConfig(target_modules=["o_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"))  # fresh, so that nothing but the head could change
    expected = logits(adapted)
    model = load_base_model("RUN", base, "float16")
    merged = merge("RUN", load_adapter("RUN", model, tmp_path / "adapter").requires_grad_(False), dtype)
    write_model(merged, tmp_path / "merged", shard_size="5GB", stop_token_ids=[2], pad_token_id=0)
    found = load_base_model("--output", str(tmp_path / "merged"), "float32")
    rows = torch.nn.functional.normalize(load_base_model("model.base", base, "float32").lm_head.weight)
    written, roundings = found.lm_head.weight, 1
    if name == "baichuan2_13b":  # which holds the rows undivided: they are rounded, and their lengths with them
        written, roundings = torch.nn.functional.normalize(written), 2
    step = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    assert ((written - rows).abs() <= roundings * step * rows.abs() + 1e-6).all()
    if dtype == "float32" or (name == "baichuan2_13b" and dtype == "float16"):  # what is stored, and no less
        assert (logits(found) - expected).abs().max() < 5e-5


@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b"])
def test_an_adapted_head_is_written_as_it_was_trained(name: str, tmp_path: Path) -> None:
    base = str(write_checkpoint(CHECKPOINTS[name](8), tmp_path / "base"))
    start = load_base_model("model.base", base, "float32")
    settle_heads(start, trained=True)  # as before training
    torch.manual_seed(0)
    adapted = get_peft_model(start, LoraConfig(target_modules=["lm_head", "o_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    model = load_adapter("RUN", load_base_model("RUN", base, "float32"), tmp_path / "adapter")
    merged = merge("RUN", model.requires_grad_(False), "float32")
    write_model(merged, tmp_path / "merged", shard_size="5GB", stop_token_ids=[2], pad_token_id=0)
    found = load_base_model("--output", str(tmp_path / "merged"), "float32")
    assert (logits(found) - logits(adapted)).abs().max() < 5e-5
