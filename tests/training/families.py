"""Tiny random models of many families, made from their configs."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ift.models.families import register_own_classes

VOCABULARY = 90
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_NAMES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
ROTARY = {**GPT2_NAMES, "rotary_dim": 4}
WINDOW = {**SIZES, "sliding_window": 7}  # shorter than the examples
LATENT = {
    **{name: size for name, size in SIZES.items() if name != "head_dim"},
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,  # the second layer has experts
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
OWN_NAMES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**ROTARY, "n_ctx": 256},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "falcon": {key: value for key, value in SIZES.items() if key != "head_dim"},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "gpt2": GPT2_NAMES,
    "gpt_bigcode": GPT2_NAMES,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 7,
    },
    "gptj": ROTARY,
    "ift_chatglm": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "inner_hidden_size": 48,
        "bos_token_id": 87,
        "gmask_token_id": 88,
        "mask_token_id": 89,
    },
    "mistral": WINDOW,
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "starcoder2": WINDOW,
}


def make_model(
    model_type: str, *, attention: str | None = None, spread: float = 0.2, vocabulary: int = VOCABULARY
) -> Any:
    """Return a model in evaluation mode whose attention matters: at the usual start, weights are near zero.

    Args:
        model_type: of the config.
        attention: transformers' name of an implementation; by default transformers' choice.
        spread: standard deviation of the weight matrices.
        vocabulary: number of tokens.
    """
    register_own_classes()
    settings = OWN_NAMES.get(model_type, SIZES)
    known = AutoConfig.for_model(model_type)
    settings = {key: value for key, value in settings.items() if hasattr(known, key) or key not in SIZES}
    config = AutoConfig.for_model(model_type, **{**settings, "vocab_size": vocabulary})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread)
    return model.eval()
