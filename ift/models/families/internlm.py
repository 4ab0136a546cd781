"""InternLM-7B and -20B of 2023 (InternLM Team 2023): Llama with biases on all four projections of the attention.

Names and shapes are Llama's. Later revisions on the hub state the rotation under `rotary`.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from ift.models.families.family import Config, Family
from ift.models.families.llama_settings import llama_settings, only_silu, original_llama_settings


def _native_config(config: Config) -> Any:
    from transformers import LlamaConfig

    settings = llama_settings(config) | {"rope_parameters": _rotation(config)}
    # transformers puts these biases on queries, keys, values and the output, as InternLM does, and none into the MLP.
    return LlamaConfig(**settings, attention_bias=bool(config.get("bias", True)), mlp_bias=False)


def _rotation(config: Config) -> dict[str, Any]:
    stated: dict[str, Any] = {"base": config.get("rope_theta", 10000), "type": "origin"}
    scaling = config.get("rope_scaling") or {}
    stated |= {"type": _kind_of(scaling) or "origin"} if scaling else {}
    stated |= {"scaling_factor": scaling["factor"]} if "factor" in scaling else {}
    stated |= config.get("rotary") or {}
    rotation: dict[str, Any] = {"rope_type": "default", "rope_theta": float(stated["base"])}
    if stated["type"] == "dynamic":
        rotation |= {"rope_type": "dynamic", "factor": float(stated.get("scaling_factor", 1.0))}
    return rotation


def _kind_of(rotation: Config) -> str | None:
    """Return the kind of a stated rotation; `rope_scaling` names it in either of two ways."""
    found: str | None = rotation.get("type", rotation.get("rope_type"))
    return None if found == "default" else found


def _original_config(native: Any) -> dict[str, Any]:
    rotation = native.rope_parameters
    stated = {"base": rotation["rope_theta"], "type": "dynamic" if rotation["rope_type"] == "dynamic" else "origin"}
    stated |= {"scaling_factor": rotation["factor"]} if "factor" in rotation else {}
    heads = native.num_key_value_heads  # fewer of them in later revisions only
    plain = stated == {"base": 10000.0, "type": "origin"}  # as the first release, which does not say so
    return {
        "architectures": ["InternLMForCausalLM"],
        "model_type": "internlm",
        "bias": native.attention_bias,
        **original_llama_settings(native),
        **({} if heads == native.num_attention_heads else {"num_key_value_heads": heads}),
        **({} if plain else {"rotary": stated}),
    }


def _refusals(config: Config) -> Iterable[str]:
    yield from only_silu(config)
    for name in ("rotary", "rope_scaling"):
        kind = _kind_of(config.get(name) or {})
        if kind not in (None, "origin", "dynamic"):
            yield f"{name} type '{kind}', and known are 'origin' and 'dynamic'"


@cache
def _reader() -> Any:
    from transformers import LlamaForCausalLM

    from ift.models.families.reading import reading_class

    return reading_class(LlamaForCausalLM, "InternLMReaderForCausalLM", conversions=(), ignored=(r"rotary_emb\.",))


def _native() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM


INTERNLM = Family(
    "internlm",
    "InternLM-7B",
    recognises=lambda config: config.get("model_type") == "internlm",
    native_config=_native_config,
    reader=_reader,
    original_config=_original_config,
    native=_native,
    refusals=_refusals,
)
