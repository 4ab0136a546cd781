"""What came after 2023 loads as transformers has it: one LoRA step, rows of several examples, merging, each in tiny."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ift.checks.findings import largest_of
from ift.data.encoding import Example
from ift.data.micro_batches import MicroBatch, collate
from ift.models.calling import calling_of
from ift.models.initial_adapters import save_adapter
from ift.models.loading import load_base_model, read_config
from ift.models.mergeability import check_mergeable
from ift.models.merging import merge, write_model
from ift.models.packing import choose_row_layout, keeps_examples_apart
from ift.models.trained_adapters import load_adapter
from ift.training.module import InstructionModule
from ift.training.objective import loss_sum

LENGTHS = (13, 29, 11, 17)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WINDOW = {**SIZES, "head_dim": 8, "sliding_window": 7}
LAYERS = ["sliding_attention", "full_attention"]
LATENT = {
    **{name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "factor": 4.0}
LONG |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("llama", {**SIZES, "num_key_value_heads": 4}),
    "llama-3.2": ("llama", {**SIZES, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "deepseek-coder": (
        "llama",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    ),
    "qwen2": ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen2.5": ("qwen2", {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("mistral", WINDOW),
    "gemma": ("gemma", {**SIZES, "head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**WINDOW, "query_pre_attn_scalar": 8, "layer_types": LAYERS}),
    "gemma3": ("gemma3_text", {**WINDOW, "query_pre_attn_scalar": 8, "layer_types": LAYERS}),
    "phi-2": ("phi", {**SIZES, "num_key_value_heads": 4}),
    "phi-3": ("phi3", SIZES),
    "phi-3-128k": ("phi3", {**SIZES, "rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "glm-4": ("glm4", {**SIZES, "head_dim": 8}),
    "internlm3": ("internlm3", {**SIZES, "head_dim": 8, "tie_word_embeddings": False}),
    "deepseek-v2-lite": ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    "deepseek-v3": ("deepseek_v3", {**LATENT, "q_lora_rank": 12, "rope_parameters": YARN}),
}
EVERY_TIME = ("llama-3.2", "gemma3", "phi-3-128k", "internlm3", "deepseek-v3")
"""What differs most; the others' rows and merges are like those that other tests have."""


def make(name: str, folder: Path, tokenizer_folder: Path) -> Path:
    """Write a random model with its tokenizer, in which attention matters."""
    model_type, settings = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ends, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def examples(vocabulary: int) -> list[Example]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, vocabulary, length) for length in LENGTHS]
    return [Example(one, np.where(np.arange(len(one)) < 4, -100, one)) for one in ids]


def rows(found: list[Example], *, packed: bool) -> list[MicroBatch]:
    return [collate([found], 0)] if packed else [collate([[one]], 0) for one in found]


def loss(model: Any, batches: list[MicroBatch]) -> torch.Tensor:
    return torch.stack([loss_sum(model, one, calling=calling_of(model)) for one in batches]).sum()


@torch.no_grad()
def logits(model: Any, vocabulary: int) -> torch.Tensor:
    ids = torch.from_numpy(examples(vocabulary)[1].input_ids)[None]
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


def largest_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    scale = max(float(one.abs().max()) for one in expected)
    return largest_of(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_family_trains_packs_and_merges(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    base = make(name, tmp_path / "base", tokenizer_folder)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    choice = choose_row_layout("data.row_layout", "auto", base=str(base), adapter=lora)
    module = InstructionModule(str(base), partial(torch.optim.AdamW, lr=1e-2), adapter=lora)
    module.configure_model()
    model = module.model
    vocabulary = read_config(str(base)).vocab_size  # type: ignore[union-attr]
    found = examples(vocabulary)
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in key for key in trained)

    # Packed rows: the gradients of each example alone; where they are not, rows are grouped.
    gradients = []
    for packed in (False, True):
        model.zero_grad()
        loss(model, rows(found, packed=packed)).backward()
        gradients.append([value.grad.clone() for value in trained.values()])
        assert all(bool(torch.isfinite(one).all()) for one in gradients[-1])
    exact = largest_error(gradients[1], gradients[0]) < 1e-5
    assert exact == keeps_examples_apart(model) == (choice.layout == "packed"), choice

    # A few steps: the loss falls, and only the adapter trains.
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(model, rows(found, packed=exact))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[key]) for key, value in model.named_parameters() if key in frozen)

    # Saved, loaded, merged and written, it computes the same.
    expected = logits(model, vocabulary)
    with model.disable_adapter():
        assert largest_error([logits(model, vocabulary)], [expected]) > 1e-3
    save_adapter(model, tmp_path / "adapter", initial=tmp_path / "initial")
    check_mergeable("RUN", tmp_path / "adapter", config=read_config(str(base)))
    again = load_adapter("RUN", load_base_model("RUN", str(base), "float32"), tmp_path / "adapter")
    assert largest_error([logits(again, vocabulary)], [expected]) < 1e-5
    merged = merge("RUN", again, "float32")
    write_model(merged, tmp_path / "merged", shard_size="1GB", stop_token_ids=[2], pad_token_id=0)
    written = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert largest_error([logits(written, vocabulary)], [expected]) < 1e-5
    assert written.config.model_type == MODELS[name][0]


def test_every_family_is_read_as_transformers_has_it(tmp_path: Path, tokenizer_folder: Path) -> None:
    """None of them is taken for a checkpoint of 2023, whatever code its folder brings."""
    for name in EVERY_TIME:
        folder = make(name, tmp_path / name, tokenizer_folder)
        (folder / "modeling_own.py").write_text("raise SystemExit('this code was run')\n", encoding="utf-8")
        path = folder / "config.json"
        text = path.read_text(encoding="utf-8")
        own = '{"auto_map": {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"},'
        path.write_text(text.replace("{", own, 1), encoding="utf-8")
        model = load_base_model("model.base", str(folder), "float32")
        assert type(model).__module__.startswith("transformers.models.")
