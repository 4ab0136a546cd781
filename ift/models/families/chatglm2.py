"""ChatGLM2-6B and ChatGLM3-6B (Zeng et al. 2023), and what shares their code: transformers' Glm under other names."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from ift.models.families.family import Config, Family
from ift.models.families.llama_settings import original_dtype, stated_dtype
from ift.models.families.naming import Naming, Renamed

_MUST_BE = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "original_rope": True,
}
"""Settings of which transformers' Glm knows one value."""
_SECOND_LONG = "THUDM/chatglm2-6b-32k"


def _native_config(config: Config) -> Any:
    from transformers import GlmConfig

    same = ("hidden_size", "num_attention_heads", "use_cache", "attention_dropout", "initializer_range")
    # A special token that is not stated is none: Glm's own defaults are those of GLM-4.
    settings = {"pad_token_id": None, "eos_token_id": 2, "bos_token_id": None}
    settings |= {name: config[name] for name in (*same, *settings) if name in config}
    return GlmConfig(
        **settings,
        **stated_dtype(config),
        vocab_size=config.get("padded_vocab_size", config.get("vocab_size", 65024)),
        intermediate_size=config.get("ffn_hidden_size", 13696),
        num_hidden_layers=config.get("num_layers", 28),
        head_dim=_head_size(config),
        num_key_value_heads=config.get("multi_query_group_num", 1),
        rms_norm_eps=config.get("layernorm_epsilon", 1e-5),
        max_position_embeddings=config.get("seq_length", 2048),
        attention_bias=bool(config.get("add_qkv_bias", False)),
        hidden_act="silu",
        tie_word_embeddings=False,
        rope_parameters=_rotation(config),
    )


def _head_size(config: Config) -> int:
    """Return the width of a head; where it is not stated, the original's code has 128, or what stands there as null."""
    size = config.get("kv_channels", 128)
    return int(config.get("hidden_size", 4096) // config.get("num_attention_heads", 32) if size is None else size)


def _rotation(config: Config) -> dict[str, Any]:
    """Return the rotation, stretched by `rope_ratio`.

    ChatGLM2-6B-32k divides positions by it, the code of all later ones multiplies the base. Only the name tells which.
    """
    ratio = config.get("rope_ratio") or 1
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if ratio != 1 and _divides_positions(config):
        return rotation | {"rope_type": "linear", "factor": float(ratio)}
    return rotation | {"rope_theta": 10000.0 * ratio}


def _divides_positions(config: Config) -> bool:
    name = str(config.get("_name_or_path", "")).lower()
    return "chatglm2" in name and "32k" in name


def _doubts(config: Config) -> Iterable[str]:
    if (config.get("rope_ratio") or 1) != 1 and not _divides_positions(config) and _may_be_second(config):
        yield (
            f"rope_ratio {config['rope_ratio']} is taken for a factor of the rotation's base, as in ChatGLM3-6B-32k. "
            f'ChatGLM2-6B-32k divides positions by it: if it is that, state "_name_or_path": "{_SECOND_LONG}".'
        )


def _may_be_second(config: Config) -> bool:
    """Return whether the tokens are those of ChatGLM2; GLM-4 has more, and ChatGLM3 says its name."""
    tokens = config.get("padded_vocab_size", config.get("vocab_size", 65024))
    return bool(tokens <= 65024) and "chatglm3" not in str(config.get("_name_or_path", "")).lower()


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "chatglm" and bool(
        {"padded_vocab_size", "multi_query_attention"} & config.keys()
    )


def _refusals(config: Config) -> Iterable[str]:
    for name, value in _MUST_BE.items():
        if name in config and config[name] is not value:
            yield f"{name} {str(config[name]).lower()}, and transformers' Glm has it {str(value).lower()}"
    if not config.get("multi_query_attention", False):
        yield "multi_query_attention false: queries, keys and values head by head in one matrix, as no released one has"
    if config.get("hidden_dropout"):
        yield f"hidden_dropout {config['hidden_dropout']}, and transformers' Glm has none"
    if config.get("pre_seq_len"):
        yield f"pre_seq_len {config['pre_seq_len']}: trained prefixes (p-tuning v2) that are no part of the base model"
    if config.get("tie_word_embeddings"):
        yield "tie_word_embeddings true, and its head is a matrix of its own"


NAMING = Naming(
    beginnings={
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.output_layer": "lm_head",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.encoder.layers": "model.layers",
    },
    modules=(
        Renamed("self_attention.dense", ("self_attn.o_proj",)),
        Renamed("mlp.dense_h_to_4h", ("mlp.gate_up_proj",)),
        Renamed("mlp.dense_4h_to_h", ("mlp.down_proj",)),
        Renamed("self_attention.query_key_value", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ),
)


def _original_config(native: Any) -> dict[str, Any]:
    rotation = native.rope_parameters
    same = ("hidden_size", "num_attention_heads", "use_cache", "attention_dropout", "initializer_range")
    tokens = {name: getattr(native, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    ratio = rotation.get("factor", 1.0) * rotation["rope_theta"] / 10000
    name = {"_name_or_path": _SECOND_LONG} if rotation["rope_type"] == "linear" else {}
    return {
        **name,
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        **_MUST_BE,
        **{name: getattr(native, name) for name in same},
        **{name: token for name, token in tokens.items() if token is not None},
        **original_dtype(native),
        **({"rope_ratio": ratio} if ratio != 1 else {}),
        "add_qkv_bias": native.attention_bias,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": native.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "kv_channels": native.head_dim,
        "layernorm_epsilon": native.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": native.num_key_value_heads,
        "num_layers": native.num_hidden_layers,
        "padded_vocab_size": native.vocab_size,
        "seq_length": native.max_position_embeddings,
        "tie_word_embeddings": False,
    }


@cache
def _reader() -> Any:
    from transformers import GlmForCausalLM

    from ift.models.families.reading import reading_class

    return reading_class(
        GlmForCausalLM,
        "ChatGLM2ReaderForCausalLM",
        conversions=NAMING.conversions(),
        ignored=(r"rotary_pos_emb\.inv_freq$",),
    )


def _native() -> Any:
    from transformers import GlmForCausalLM

    return GlmForCausalLM


CHATGLM2 = Family(
    "chatglm2",
    "ChatGLM2-6B or ChatGLM3-6B",
    recognises=_recognises,
    native_config=_native_config,
    reader=_reader,
    original_config=_original_config,
    native=_native,
    naming=NAMING,
    refusals=_refusals,
    doubts=_doubts,
)
