"""MOSS (moss-moon-003, Sun et al. 2023): CodeGen under another name, parameters and fused layout the same.

The stored masks are left out. CodeGen computes attention in float32 over the full matrix, as MOSS does.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from ift.models.families.family import Config, Family
from ift.models.families.llama_settings import stated_dtype

_SHARED = (
    "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "activation_function",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip
_DEFAULTS = {
    "vocab_size": 107008, "n_positions": 2048, "n_ctx": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16,
    "rotary_dim": 64, "bos_token_id": 106028, "eos_token_id": 106068,
}  # fmt: skip
"""Of MOSS's own config class, where they are not CodeGen's."""


def _native_config(config: Config) -> Any:
    from transformers import CodeGenConfig

    settings = _DEFAULTS | {name: config[name] for name in _SHARED if name in config}
    return CodeGenConfig(**settings, **stated_dtype(config), tie_word_embeddings=False)


def _refusals(config: Config) -> Iterable[str]:
    if config.get("tie_word_embeddings"):
        yield "tie_word_embeddings true, and the head of MOSS is a matrix of its own"
    if config.get("scale_attn_weights") is False:
        yield "scale_attn_weights false, and CodeGen always divides by the root of the head's size"
    heads = config.get("n_head", _DEFAULTS["n_head"])
    if heads % 4:
        yield f"n_head {heads}, and the fused matrix holds four groups of heads"


@cache
def _reader() -> Any:
    from transformers import CodeGenForCausalLM

    from ift.models.families.reading import reading_class

    return reading_class(CodeGenForCausalLM, "MossReaderForCausalLM", conversions=(), ignored=(r"attn\.causal_mask$",))


def _native() -> Any:
    from transformers import CodeGenForCausalLM

    return CodeGenForCausalLM


MOSS = Family(
    "moss",
    "MOSS",
    recognises=lambda config: config.get("model_type") == "moss",
    native_config=_native_config,
    reader=_reader,
    native=_native,
    refusals=_refusals,
)
