"""The world of a check without a run: tokenizers, rows and models made on the spot, from fixed seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ift.checks.tiny_data import all_texts, training_rows, write_lines
from ift.checks.tiny_tokenizers import byte_fallback, byte_level
from ift.checks.workbench import Recipe, World, quiet

NUM_ROWS, NUM_VALIDATION, STEP_EXAMPLES, NUM_EPOCHS = 44, 7, 12, 3
"""37 examples are trained on, 12 a step: 4 steps an epoch, and the last has a single one."""
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}
"""AdamW divides by small numbers, so that it makes roundings of zero gradients as large as gradients."""
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
STEADY_ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "eps": 0.001}}

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2", "gpt_neox", "bloom")
SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "sliding_window": 24,
}
VOCABULARY = 560
"""Rows of embeddings; more than tokens, as in many models."""
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}


def lora(dropout: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return LoRA on all linear layers, small."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": dropout, **more}
    return {"class_path": "peft.LoraConfig", "init_args": settings}


def recipes() -> list[Recipe]:
    """Return what is trained in every case: LoRA, QLoRA where it can be, and all weights."""
    qlora = {"model": {"adapter": lora(), "quantization": {"scheme": "nf4"}}}
    return [
        Recipe("lora", {"model": {"adapter": lora()}}),
        Recipe("qlora", qlora, quantized=True),
        Recipe("full", {"model": {"adapter": None}}, whole=True),
    ]


def make_world(root: Path) -> World:
    """Write tokenizers, rows and models below a folder."""
    texts = all_texts(NUM_ROWS)
    tokenizers = {
        "byte-level": byte_level(root / "byte_level", texts),
        "byte-fallback": byte_fallback(root / "byte_fallback", texts),
    }
    rows = write_lines(root / "rows.jsonl", training_rows(NUM_ROWS))
    families = {name: make_model(root / "models" / name, name, tokenizers["byte-fallback"]) for name in FAMILIES}
    longest = longest_example(root, families["llama"], rows)
    return World(root, settings(root, families["llama"], rows, longest), longest, tokenizers, families)


def make_model(folder: Path, model_type: str, tokenizer: Path) -> Path:
    """Write a random model of a family with a tokenizer, and return its folder."""
    from transformers import AutoConfig, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    known = AutoConfig.for_model(model_type)
    sizes = GPT2_SIZES if model_type == "gpt2" else SIZES
    sizes = {key: value for key, value in sizes.items() if hasattr(known, key)}
    ids = {"bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **sizes, **ids)
    write_random(config, folder)
    loaded.save_pretrained(str(folder))
    return folder


def write_random(config: Any, folder: Path) -> None:
    """Write a model of random weights whose attention matters: at the usual start, all positions are attended alike."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    model = kind.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    with quiet():
        model.save_pretrained(str(folder))


def longest_example(root: Path, base: Path, rows: Path, **data: Any) -> int:
    """Return the tokens of the longest example of rows."""
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    sources = [Source(str(rows), "alpaca")]
    sizes = {"max_length": 1 << 16, "global_batch_size": STEP_EXAMPLES, "micro_batch_tokens": 1 << 16}
    module = InstructionDataModule(sources, str(base), cache_dir=str(root / "cache"), **{**sizes, **data})
    module.load()
    return module.longest_example


def settings(root: Path, base: Path, rows: Path, longest: int) -> dict[str, Any]:
    """Return the settings of a tiny run, without its method."""
    return {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": NUM_EPOCHS,
            "enable_progress_bar": False,
            "log_every_n_steps": 3,
        },
        "model": {"base": str(base), "optimizer": SGD, "gradient_clip_norm": 0.2},
        "data": {
            "sources": [{"path": str(rows), "layout": "alpaca"}],
            "validation": NUM_VALIDATION,
            "max_length": longest,
            "global_batch_size": STEP_EXAMPLES,
            "micro_batch_tokens": 1_000_000,
            "row_layout": "grouped",
            "cache_dir": str(root / "cache"),
        },
        "samples": {"num_samples": 0},
    }
