"""An untrained LLaMA-type model of any size with LLaMA's own tokenizer, in one folder."""

from pathlib import Path
from typing import Any

from compute_budget import ModelShape


def write_original(model: Path, folder: Path) -> Path:
    """Write LLaMA's own tokenizer in transformers' layout into a new folder, and return that."""
    from tokenizer.conversion import LLAMA_SETTINGS, write_tokenizer

    folder.mkdir()
    settings = {name: value for name, value in LLAMA_SETTINGS.items() if name != "pad_token"}
    write_tokenizer(folder, model.read_bytes(), settings)
    return folder


def write_small_base(tokenizer_folder: Path, output: Path, shape: ModelShape, *, positions: int) -> int:
    """Write the folder and return the number of parameters.

    Args:
        tokenizer_folder: in transformers' layout.
        output: new folder.
        shape: `num_rows` is that of the tokenizer.
        positions: longest text in tokens.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    num_heads = max(1, shape.width // 32)
    config = LlamaConfig(
        vocab_size=shape.num_rows,
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))
    return sum(parameter.numel() for parameter in model.parameters())
