"""Settings of a Llama that families in its likeness state under the same names."""

from typing import Any

import torch

from ift.models.families.family import Config

_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id",
    "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip


def llama_settings(config: Config) -> dict[str, Any]:
    """Return arguments for transformers' `LlamaConfig`: what has the same name there, and the rotation of Llama 1."""
    rotation = {"rope_type": "default", "rope_theta": 10000.0}
    settings = {"tie_word_embeddings": False, "rope_parameters": rotation, **stated_dtype(config)}
    return settings | {name: config[name] for name in _SHARED if name in config}


def original_llama_settings(native: Any) -> dict[str, Any]:
    """Return what originals state of a Llama under its own names; the other way of `llama_settings`.

    As many keys and values as queries: the originals know nothing else, and say nothing of it.
    """
    stated = {name: getattr(native, name) for name in _SHARED if name != "num_key_value_heads"}
    return stated | original_dtype(native)


def original_dtype(native: Any) -> dict[str, str]:
    """Return the dtype of a native config under the name of 2023."""
    return {"torch_dtype": str(native.dtype).removeprefix("torch.")} if native.dtype is not None else {}


def stated_dtype(config: Config) -> dict[str, Any]:
    """Return the dtype that a `config.json` states, under the name of today; nothing of what is no name of one."""
    found = str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch.")
    return {"dtype": found} if isinstance(getattr(torch, found, None), torch.dtype) else {}


def only_silu(config: Config) -> list[str]:
    """Return why an activation is not that of the family."""
    found = config.get("hidden_act", "silu")
    return [] if found == "silu" else [f"hidden_act '{found}', and the family has 'silu'"]
