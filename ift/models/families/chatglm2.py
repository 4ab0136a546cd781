"""ChatGLM2-6B and ChatGLM3-6B (Zeng et al. 2023), and what shares their code: transformers' Glm under other names."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from ift.models.families.family import Config, Family
from ift.models.families.llama_settings import stated_dtype

_MUST_BE = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "original_rope": True,
}
"""Settings of which transformers' Glm knows one value."""


def _native_config(config: Config) -> Any:
    from transformers import GlmConfig

    heads = config["num_attention_heads"]
    groups = config["multi_query_group_num"] if config.get("multi_query_attention") else heads
    rotation = {
        "rope_type": "default",
        "rope_theta": 10000.0 * config.get("rope_ratio", 1),
        "partial_rotary_factor": 0.5,
    }
    same = ("hidden_size", "num_attention_heads", "use_cache", "attention_dropout", "initializer_range")
    # A special token that is not stated is none: Glm's own defaults are those of GLM-4.
    settings = {"pad_token_id": None, "eos_token_id": 2, "bos_token_id": None}
    settings |= {name: config[name] for name in (*same, *settings) if name in config}
    return GlmConfig(
        **settings,
        **stated_dtype(config),
        vocab_size=config.get("padded_vocab_size", config.get("vocab_size")),
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        head_dim=config.get("kv_channels", config["hidden_size"] // heads),
        num_key_value_heads=groups,
        rms_norm_eps=config.get("layernorm_epsilon", 1e-5),
        max_position_embeddings=config.get("seq_length", 2048),
        attention_bias=bool(config.get("add_qkv_bias", False)),
        hidden_act="silu",
        tie_word_embeddings=False,
        rope_parameters=rotation,
    )


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "chatglm" and bool(
        {"padded_vocab_size", "multi_query_attention"} & config.keys()
    )


def _refusals(config: Config) -> Iterable[str]:
    for name, value in _MUST_BE.items():
        if name in config and config[name] is not value:
            yield f"{name} {str(config[name]).lower()}, and transformers' Glm has it {str(value).lower()}"
    if config.get("hidden_dropout"):
        yield f"hidden_dropout {config['hidden_dropout']}, and transformers' Glm has none"
    if config.get("pre_seq_len"):
        yield f"pre_seq_len {config['pre_seq_len']}: trained prefixes (p-tuning v2) that are no part of the base model"
    if config.get("tie_word_embeddings"):
        yield "tie_word_embeddings true, and its head is a matrix of its own"


@cache
def _reader() -> Any:
    from transformers import GlmForCausalLM
    from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

    from ift.models.families.reading import reading_class

    parts = ("q_proj", "k_proj", "v_proj")
    names = (
        (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
        (r"^transformer\.output_layer\.", "lm_head."),
        (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
        (r"^transformer\.encoder\.layers\.", "model.layers."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
        (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
        (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
    )
    fused = [
        WeightConverter(
            f".self_attention.query_key_value.{kind}",
            [f".self_attn.{part}.{kind}" for part in parts],
            operations=[Split(dim=0)],
        )
        for kind in ("weight", "bias")
    ]
    conversions = [*(WeightRenaming(source, target) for source, target in names), *fused]
    return reading_class(
        GlmForCausalLM, "ChatGLM2ReaderForCausalLM", conversions=conversions, ignored=(r"rotary_pos_emb\.inv_freq$",)
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
    native=_native,
    refusals=_refusals,
)
