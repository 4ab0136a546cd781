"""Settings of a Llama that families in its likeness state under the same names."""

from typing import Any

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


def stated_dtype(config: Config) -> dict[str, Any]:
    """Return the dtype that a `config.json` states, under the name of today."""
    found = config.get("torch_dtype", config.get("dtype"))
    return {"dtype": found} if found is not None else {}


def only_silu(config: Config) -> list[str]:
    """Return why an activation is not that of the family."""
    found = config.get("hidden_act", "silu")
    return [] if found == "silu" else [f"hidden_act '{found}', and the family has 'silu'"]
