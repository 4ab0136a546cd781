"""Tiny quantized models, and the plain models that they stand for, by formulas written out here."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from bitsandbytes.nn import Linear4bit, Linear8bitLt  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoConfig, GPT2Config, GPTNeoXConfig  # noqa: E402

from ift.models.adapters import attach  # noqa: E402
from ift.models.loading import load_base_model  # noqa: E402
from ift.models.methods import as_method  # noqa: E402
from ift.models.quantization import Quantization  # noqa: E402

# QLoRA (Dettmers et al. 2023), appendix E.
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on
# One sign, two exponent and one mantissa bit, as bitsandbytes documents them: these twelfths, by code.
FP4 = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
FP4 = torch.cat([FP4, -FP4])
TABLES = {"nf4": NF4, "fp4": FP4}

QUANTIZATIONS = [Quantization("nf4"), Quantization("nf4", double=False), Quantization("fp4"), Quantization("int8")]
NAMES = ["nf4-double", "nf4", "fp4-double", "int8"]
every_scheme = pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=NAMES)
IDS = torch.arange(48).reshape(2, 24) * 7 % 90


def families() -> Iterator[tuple[str, Any]]:
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {"num_key_value_heads": 2, "intermediate_size": 48, "attention_bias": True, "mlp_bias": True}
    yield "llama", AutoConfig.for_model("llama", **sizes, **llama)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    yield "gpt2", GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64, **still)
    yield "gpt_neox", GPTNeoXConfig(**sizes, intermediate_size=48)


FAMILIES = [name for name, _ in families()]


def load(folder: Path, quantization: Quantization | None = None, dtype: Any = "float32") -> Any:
    return load_base_model("model.base", str(folder), dtype, quantization=quantization)


def quantized_layers(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


def written_out(layer: Any) -> torch.Tensor:
    """The weight of a quantized layer from its stored parts, by the formulas of the papers."""
    if isinstance(layer, Linear8bitLt):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return layer.weight.data.float() * (scales / 127)[:, None]
    state = layer.weight.quant_state
    packed = layer.weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    scales = state.absmax
    if state.nested:
        per_scale = torch.arange(len(scales)) // 256
        scales = state.state2.code[state.absmax.long()] * state.state2.absmax[per_scale] + state.offset
    number = layer.in_features * layer.out_features
    values = TABLES[state.quant_type][codes[:number]] * scales.repeat_interleave(64)[:number]
    return values.reshape(layer.out_features, layer.in_features)


def dense_twin(folder: Path, quantized: Any) -> Any:
    """The unquantized model with the weights that the quantized one stands for."""
    model = load(folder)
    for name, layer in quantized_layers(quantized).items():
        plain = model.get_submodule(name)
        weight = written_out(layer)
        plain.weight.data = weight.T.contiguous() if type(plain).__name__ == "Conv1D" else weight
    return model


def with_lora(model: Any, **settings: Any) -> Any:
    model = attach(model, as_method(LoraConfig(r=2, target_modules="all-linear", **settings)), seed=0, num_steps=None)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # else the gradients of lora_A are zero
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
