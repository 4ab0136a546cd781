"""What the support matrix is made of: methods with settings for tiny models, and the families they are tried on."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig
from transformers import AutoConfig

from ift.models.encoder_decoder import auto_class, is_encoder_decoder
from ift.models.families import register_own_classes
from ift.models.methods import METHODS, Method, as_method

VOCABULARY = 96
PHRASE = 7
"""The token at which aLoRA begins."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_NAMES = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
OWN_NAMES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": {**GPT2_NAMES, "n_ctx": 256, "rotary_dim": 8},
    "falcon": {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")},
    "gpt2": GPT2_NAMES,
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
    "opt": {
        **{key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")},
        "ffn_dim": 128,
        "word_embed_proj_dim": 64,
    },
}
FAMILIES = (
    *("llama", "qwen3", "mistral", "gemma2", "phi3", "glm"),
    *("gpt_neox", "codegen", "bloom", "falcon", "opt", "gpt2", "t5"),
)
"""Separate and fused attention, one key for several queries, sliding windows, rotary positions and ALiBi, norms with
and without biases, tied embeddings, an MLP that is no module, linear layers of a model's own class, and GPT-2's
transposed matrices; and an encoder beside the decoder (T5 1.1's kind, with a head of its own)."""

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.0},
    "qlora": {"r": 4, "lora_dropout": 0.0},
    "dora": {"r": 4, "lora_dropout": 0.0},
    "rslora": {"r": 4, "lora_dropout": 0.0},
    "lora_plus": {"lora_dropout": 0.0},
    "pissa": {"r": 4, "lora_alpha": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "prefix": {"num_virtual_tokens": 6},
    "p_tuning": {"num_virtual_tokens": 6, "encoder_hidden_size": 16},
    "prompt": {"num_virtual_tokens": 6},
    "sadapter_h": {"bottleneck_size": 8},
    "sadapter_p": {"bottleneck_size": 8},
    "p_adapter": {"bottleneck_size": 8},
    "freeze": {"num_layers": 1},
    "lisa": {"num_layers": 1, "period": 2},
}
"""Settings of the short names; all else as in the papers."""

VIRTUAL = {"num_virtual_tokens": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "total_step": 20, "tinit": 2, "tfinal": 6},
    "AdamssConfig": {"num_subspaces": 2, "subspace_rank": 1},
    "AdaptionPromptConfig": {"adapter_len": 4, "adapter_layers": 2},
    "BOFTConfig": {"boft_block_size": 4},
    "C3AConfig": {"block_size": 16},
    "CPTConfig": {
        "cpt_token_ids": [5, 6, 7, 8],
        "cpt_mask": [1, 1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 3, 4],
    },
    "CartridgeConfig": VIRTUAL,
    "FourierFTConfig": {"n_frequency": 40},
    "FrodConfig": {"sparse_rate": 0.05},
    "IA3Config": {},
    "MultitaskPromptTuningConfig": VIRTUAL,
    "OFTConfig": {"oft_block_size": 8},
    "PrefixTuningConfig": VIRTUAL,
    "PromptEncoderConfig": {**VIRTUAL, "encoder_hidden_size": 16},
    "PromptTuningConfig": VIRTUAL,
    "RandLoraConfig": {"r": 8},
    "RoadConfig": {"group_size": 16},
    "ShadowConfig": {"shadow_dropout": 0.0},
    "SupertuningConfig": {"sparsity": 0.9},
    "TrainableTokensConfig": {"token_indices": list(range(3, VOCABULARY, 2))},
    "UniLoraConfig": {"theta_d_length": 64},
    "VBLoRAConfig": {"num_vectors": 16, "vector_length": 16},
    "VeraConfig": {"r": 8},
    "WaveFTConfig": {"n_frequency": 64},
    "XLoraConfig": {"hidden_size": 64, "adapters": {"first": "", "second": ""}, "xlora_dropout_p": 0.0},
}
"""Settings of PEFT's configurations for matrices of 64 and 128; all else as PEFT has it."""

FIRST = [
    *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "gate_up_proj", "query_key_value", "qkv_proj", "c_attn"),
    *("dense_h_to_4h", "fc_in", "c_fc"),
    *("Attention.q", "Attention.k", "Attention.v", "wi_0", "wi_1"),
]
SECOND = [
    *("o_proj", "down_proj", "attention.dense", "self_attention.dense", "dense_4h_to_h", "out_proj", "fc_out"),
    *("c_proj", "Attention.o", "wo"),
]
"""The matrices into and out of a sub-layer."""

LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "all"},
    "alora": {"alora_invocation_tokens": [PHRASE]},
    "qalora": {"use_qalora": True, "qalora_group_size": 16},
    "trainable_token_indices": {"trainable_token_indices": list(range(3, VOCABULARY, 2))},
    "kasa": {"kasa_config": "KasaConfig"},
    "monteclora": {"monteclora_config": "MontecloraConfig"},
    "velora": {"velora_config": "VeloraConfig"},
    "bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=SECOND, target_modules_bd_b=FIRST, nblocks=2)},
}
"""Ways of LoRA that are settings of `LoraConfig`."""


def make_model(family: str) -> Any:
    """Return a tiny random model whose attention matters: at the usual start, weights are near zero."""
    register_own_classes()
    own = OWN_NAMES.get(family)
    known = AutoConfig.for_model(family)
    settings = own if own is not None else {key: value for key, value in SIZES.items() if hasattr(known, key)}
    ends = ("_pdrop", "dropout", "dropout_prob", "dropout_rate")
    still = {name: 0.0 for name in vars(known) if name.endswith(ends)}
    config = AutoConfig.for_model(family, **{**settings, **still, "vocab_size": VOCABULARY})
    torch.manual_seed(0)
    model = auto_class(config).from_config(config)
    if is_encoder_decoder(config):  # whatever the config says, transformers ties the two where they are equal
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def entries() -> dict[str, Callable[[], Method]]:
    """Return every entry of the matrix: short names, PEFT's configurations by class, and LoRA's variants."""
    found: dict[str, Callable[[], Method]] = {}
    for name, method in METHODS.items():
        found[name] = lambda name=name, method=method: method(**SMALL.get(name, {}))  # type: ignore[misc]
    own = [config for config in PEFT_TYPE_TO_CONFIG_MAPPING.values() if config.__module__.startswith("peft.")]
    for config in sorted(own, key=lambda one: one.__name__):
        found[config.__name__] = lambda config=config: as_method(_config(config))  # type: ignore[misc]
    for variant, settings in LORA_VARIANTS.items():
        found[f"LoraConfig {variant}"] = lambda settings=settings: as_method(_lora(settings))  # type: ignore[misc]
    return found


def _config(kind: Any) -> PeftConfig:
    config: PeftConfig = kind(**CONFIGS.get(kind.__name__, {}))
    if hasattr(config, "r") and kind.__name__ not in CONFIGS:
        config.r = 4
    return config


def _lora(settings: dict[str, Any]) -> LoraConfig:
    import peft.tuners.lora.config as classes

    made = {
        key: getattr(classes, value)() if isinstance(value, str) and value.endswith("Config") else value
        for key, value in settings.items()
    }
    return LoraConfig(r=4, lora_alpha=8, **made)
