"""Operations counted by this project against those that torch counts as they are computed."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ift.models.adapters import attach
from ift.models.base_weights import Embeddings, LastLayers
from ift.models.calling import calling_of
from ift.models.flops import FlopsModel, flops_model, num_pairs, recording
from ift.models.methods import Method, as_method, lora, prefix

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",  # sdpa's products on a CPU are not counted by torch
}
ROWS, LENGTH, KEPT = 2, 10, 4
METHODS = {
    "full": as_method(None),
    "lora": lora(r=4, lora_dropout=0.0),
    "lora on values": lora(r=4, lora_dropout=0.0, target_modules=["v_proj", "o_proj"]),
    "lora on the head": lora(r=4, lora_dropout=0.0, target_modules=["up_proj", "lm_head"]),
    "last layer": Method("freeze", LastLayers(1)),
    "embeddings": Method("embeddings", Embeddings()),
}


def measured(model: Any, method: Method, *, checkpointing: bool = False) -> tuple[FlopsModel, float, float]:
    """Return the operations counted here, and torch's of the forward and of both passes."""
    model = attach(model.train(), method, seed=0, num_steps=None)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    ids = torch.randint(3, 97, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    keep = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    keep[:, 3 : 3 + KEPT] = True
    with FlopCounterMode(display=False) as counter:
        with recording(model) as heard:
            logits = calling_of(model).logits(model, {"input_ids": ids, "use_cache": False}, keep)
        forward = counter.get_total_flops()
        logits.float().sum().backward()
    found = flops_model(model, heard, supervised=ROWS * KEPT, checkpointing=checkpointing)
    return found, forward, counter.get_total_flops()


def counted(found: FlopsModel) -> tuple[float, float]:
    """Return what is counted of the batch above; eager attention computes all pairs."""
    pairs: dict[int | None, float] = dict.fromkeys(found.pair, ROWS * LENGTH**2)
    flops = found.of(tokens=ROWS * LENGTH, positions=ROWS * LENGTH, supervised=ROWS * KEPT, pairs=pairs)
    return flops.model, flops.hardware


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_llamas_operations_are_those_that_torch_counts(name: str, checkpointing: bool) -> None:
    found, _, total = measured(LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS[name], checkpointing=checkpointing)
    _, _, needed = measured(LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS[name])
    # Where only values have a gradient, three of attention's four products backward are left out. Here it is so in the
    # lowest layer; fused kernels compute all four.
    left_out = 3 * 2 * 32 * ROWS * LENGTH**2 if name == "lora on values" else 0
    assert counted(found) == (needed + left_out, total + left_out)
    assert (total > needed) == checkpointing


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(
            GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, attn_implementation="eager")
        ),
        GPTNeoXForCausalLM(GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4})),
        Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=4)),
        Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_families_operations_are_those_that_torch_counts(model: Any) -> None:
    found, _, total = measured(model, as_method(None))
    assert counted(found) == (total, total)


def test_the_last_layers_cost_little_more_than_a_forward_pass() -> None:
    """Nothing is counted below the lowest trained layer, nor for frozen weights above it."""
    sizes = {**SIZES, "num_hidden_layers": 12}
    found, forward, total = measured(LlamaForCausalLM(LlamaConfig(**sizes)), METHODS["last layer"])
    assert counted(found)[0] == total < 1.35 * forward
    found, forward, total = measured(LlamaForCausalLM(LlamaConfig(**sizes)), METHODS["lora"])
    assert 2 * forward < counted(found)[0] == total < 2.4 * forward
    found, forward, total = measured(LlamaForCausalLM(LlamaConfig(**sizes)), METHODS["full"])
    assert counted(found)[0] == total == 3 * forward


def test_padding_is_no_work_of_the_model() -> None:
    found, _, _ = measured(LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS["lora"])
    pairs: dict[int | None, float] = {None: 55}
    alone = found.of(tokens=10, positions=10, supervised=4, pairs=pairs)
    padded = found.of(tokens=10, positions=20, supervised=4, pairs=pairs)
    assert padded.model == alone.model == alone.hardware < padded.hardware


def test_an_encoder_decoder_is_counted_to_a_few_per_cent() -> None:
    """Of its attention only the decoder's is counted, over the whole text."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 97}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, attn_implementation="eager"))
    found, _, total = measured(model, as_method(None))
    assert counted(found)[0] == pytest.approx(total, rel=0.1)


def test_a_prefix_method_is_counted_up_to_attention_to_the_prefix() -> None:
    found, _, total = measured(LlamaForCausalLM(LlamaConfig(**SIZES)), prefix(num_virtual_tokens=2))
    assert counted(found)[0] == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_pairs_are_those_of_the_causal_mask(window: int | None) -> None:
    lengths = [1, 2, 7, 12]
    expected = 0
    for length in lengths:
        place = torch.arange(length)
        distance = place[:, None] - place[None]
        expected += int(((distance >= 0) & (distance < (window or length))).sum())
    assert num_pairs(lengths, window) == expected


def test_recording_leaves_nothing_behind_and_hears_no_recomputation() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    with recording(model) as heard:
        model(torch.ones(1, 5, dtype=torch.int64))
    before = {name: one.rows for name, one in heard.records.items()}
    model(torch.ones(1, 5, dtype=torch.int64))
    assert {name: one.rows for name, one in heard.records.items()} == before
    assert heard.positions == 5 and all(rows == 5 for rows in before.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_lora_on_experts_is_listened_to() -> None:
    """PEFT swaps the experts' weights for computed ones within a forward pass."""
    sizes = {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}
    method = lora(r=4, lora_dropout=0.0)
    model = attach(MixtralForCausalLM(MixtralConfig(**sizes)).train(), method, seed=0, num_steps=None)
    assert any("experts" in name and "lora_A" in name for name, _ in model.named_parameters())
    with recording(model) as heard:
        model(torch.arange(3, 13)[None], use_cache=False)
    (record,) = (one for name, one in heard.records.items() if ".layers.0.mlp.experts" in name)
    # For each of 10 tokens two of the experts: gate, up and down.
    assert (record.rows, record.operations) == (10, 2 * 2 * 3 * 32 * 48)
