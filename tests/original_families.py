"""Tiny random models of 2023 as their authors named and stated them, of plain tensors: `original_checkpoints` writes.

Nothing here is read from `ift`: names, shapes and `config.json` fields are those of the folders on the hub.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large a tiny model is; defaults are such that a mixed-up part has another shape or another value."""

    vocabulary: int = 96
    hidden: int = 32
    heads: int = 4
    groups: int = 2
    """Heads of keys and values (ChatGLM2)."""
    layers: int = 2
    mlp: int = 44
    positions: int = 128


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    family: str
    config: dict[str, Any]
    tensors: Tensors
    """Parameters by their original names."""
    buffers: Tensors
    """What the original files hold beside them, and no model needs."""
    module: str
    """`modeling_NAME.py` is the file of its code."""

    def in_dtype(self, dtype: torch.dtype) -> "Checkpoint":
        """Return the same in another dtype; buffers keep theirs."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.tensors.items()}
        config = {**self.config, "torch_dtype": str(dtype).removeprefix("torch.")}
        return replace(self, tensors=tensors, config=config)


class _Draw:
    """Weights of a size at which every one of them moves the logits."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator) / math.sqrt(shape[-1])

    def vector(self, size: int) -> torch.Tensor:
        return 0.2 * torch.randn((size,), generator=self._generator)

    def norm(self, size: int) -> torch.Tensor:
        return 1 + self.vector(size)


def _inverse_frequencies(size: int) -> torch.Tensor:
    return 1.0 / 10000 ** (torch.arange(0, size, 2).float() / size)


def _auto_map(module: str, config: str, model: str, *, kinds: tuple[str, ...]) -> dict[str, str]:
    return {"AutoConfig": f"configuration_{module}.{config}", **dict.fromkeys(kinds, f"modeling_{module}.{model}")}


def _llama_like(sizes: Sizes) -> dict[str, Any]:
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": sizes.vocabulary,
    }


def _ends(draw: _Draw, sizes: Sizes) -> Tensors:
    return {
        "model.embed_tokens.weight": draw.matrix(sizes.vocabulary, sizes.hidden),
        "model.norm.weight": draw.norm(sizes.hidden),
        "lm_head.weight": draw.matrix(sizes.vocabulary, sizes.hidden),
    }


def _llama_mlp(draw: _Draw, sizes: Sizes, layer: str) -> Tensors:
    return {
        f"{layer}.mlp.gate_proj.weight": draw.matrix(sizes.mlp, sizes.hidden),
        f"{layer}.mlp.up_proj.weight": draw.matrix(sizes.mlp, sizes.hidden),
        f"{layer}.mlp.down_proj.weight": draw.matrix(sizes.hidden, sizes.mlp),
        f"{layer}.input_layernorm.weight": draw.norm(sizes.hidden),
        f"{layer}.post_attention_layernorm.weight": draw.norm(sizes.hidden),
    }


def _baichuan(draw: _Draw, sizes: Sizes) -> Tensors:
    tensors = _ends(draw, sizes)
    for number in range(sizes.layers):
        layer = f"model.layers.{number}"
        tensors[f"{layer}.self_attn.W_pack.weight"] = draw.matrix(3 * sizes.hidden, sizes.hidden)
        tensors[f"{layer}.self_attn.o_proj.weight"] = draw.matrix(sizes.hidden, sizes.hidden)
        tensors |= _llama_mlp(draw, sizes, layer)
    return tensors


def _stored_rotations(sizes: Sizes) -> Tensors:
    frequencies = _inverse_frequencies(sizes.hidden // sizes.heads)
    return {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": frequencies.clone() for n in range(sizes.layers)}


def baichuan_7b(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a Baichuan-7B: rotation, capital C in its class."""
    sizes = sizes or Sizes()
    config = {
        "architectures": ["BaiChuanForCausalLM"],
        "auto_map": _auto_map("baichuan", "BaiChuanConfig", "BaiChuanForCausalLM", kinds=("AutoModelForCausalLM",)),
        **_llama_like(sizes),
        "max_position_embeddings": sizes.positions,
        "model_type": "baichuan",
    }
    return Checkpoint("baichuan_7b", config, _baichuan(_Draw(seed), sizes), _stored_rotations(sizes), "baichuan")


def _later_baichuan(family: str, seed: int, sizes: Sizes, **stated: Any) -> Checkpoint:
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": _auto_map("baichuan", "BaichuanConfig", "BaichuanForCausalLM", kinds=("AutoModelForCausalLM",)),
        **_llama_like(sizes),
        "model_max_length": sizes.positions,
        "model_type": "baichuan",
        "_from_model_config": True,
        **stated,
    }
    return Checkpoint(family, config, _baichuan(_Draw(seed), sizes), {}, "baichuan")


def baichuan2_7b(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a Baichuan2-7B: rotation, normalised head."""
    sizes = sizes or Sizes()
    stated = {"tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0, "max_position_embeddings": sizes.positions}
    return _later_baichuan("baichuan2_7b", seed, sizes, **stated)


def baichuan_13b(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a Baichuan-13B: ALiBi; six heads, no power of 2."""
    return _later_baichuan("baichuan_13b", seed, sizes or Sizes(hidden=48, heads=6))


def baichuan2_13b(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a Baichuan2-13B: ALiBi, normalised head."""
    stated = {"tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0}
    return _later_baichuan("baichuan2_13b", seed, sizes or Sizes(hidden=48, heads=6), **stated)


def internlm(seed: int = 0, sizes: Sizes | None = None, *, bias: bool = True) -> Checkpoint:
    """Return an InternLM-7B; the 20B has no biases."""
    sizes, draw = sizes or Sizes(), _Draw(seed)
    kinds = ("AutoModel", "AutoModelForCausalLM")
    config = {
        "architectures": ["InternLMForCausalLM"],
        "auto_map": _auto_map("internlm", "InternLMConfig", "InternLMForCausalLM", kinds=kinds),
        "bias": bias,
        **_llama_like(sizes),
        "max_position_embeddings": sizes.positions,
        "model_type": "internlm",
    }
    tensors = _ends(draw, sizes)
    for number in range(sizes.layers):
        layer = f"model.layers.{number}"
        for part in "qkvo":
            tensors[f"{layer}.self_attn.{part}_proj.weight"] = draw.matrix(sizes.hidden, sizes.hidden)
            if bias:
                tensors[f"{layer}.self_attn.{part}_proj.bias"] = draw.vector(sizes.hidden)
        tensors |= _llama_mlp(draw, sizes, layer)
    return Checkpoint("internlm", config, tensors, _stored_rotations(sizes), "internlm")


def chatglm2(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a ChatGLM2-6B or ChatGLM3-6B; queries are more than keys and values."""
    sizes, draw = sizes or Sizes(), _Draw(seed)
    head = sizes.hidden // sizes.heads
    fused = (sizes.heads + 2 * sizes.groups) * head
    kinds = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    config = {
        "_name_or_path": "THUDM/chatglm2-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": _auto_map("chatglm", "ChatGLMConfig", "ChatGLMForConditionalGeneration", kinds=kinds),
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": sizes.mlp,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": sizes.hidden,
        "kv_channels": head,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": sizes.groups,
        "num_attention_heads": sizes.heads,
        "num_layers": sizes.layers,
        "original_rope": True,
        "padded_vocab_size": sizes.vocabulary,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": sizes.positions,
        "use_cache": True,
        "torch_dtype": "float32",
        "transformers_version": "4.27.1",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    tensors = {"transformer.embedding.word_embeddings.weight": draw.matrix(sizes.vocabulary, sizes.hidden)}
    for number in range(sizes.layers):
        layer = f"transformer.encoder.layers.{number}"
        tensors |= {
            f"{layer}.input_layernorm.weight": draw.norm(sizes.hidden),
            f"{layer}.self_attention.query_key_value.weight": draw.matrix(fused, sizes.hidden),
            f"{layer}.self_attention.query_key_value.bias": draw.vector(fused),
            f"{layer}.self_attention.dense.weight": draw.matrix(sizes.hidden, sizes.heads * head),
            f"{layer}.post_attention_layernorm.weight": draw.norm(sizes.hidden),
            f"{layer}.mlp.dense_h_to_4h.weight": draw.matrix(2 * sizes.mlp, sizes.hidden),
            f"{layer}.mlp.dense_4h_to_h.weight": draw.matrix(sizes.hidden, sizes.mlp),
        }
    tensors["transformer.encoder.final_layernorm.weight"] = draw.norm(sizes.hidden)
    tensors["transformer.output_layer.weight"] = draw.matrix(sizes.vocabulary, sizes.hidden)
    buffers = {"transformer.rotary_pos_emb.inv_freq": _inverse_frequencies(head // 2)}
    return Checkpoint("chatglm2", config, tensors, buffers, "chatglm")


def moss(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a MOSS (moss-moon-003), with the masks that its files hold."""
    sizes, draw = sizes or Sizes(positions=64), _Draw(seed)
    width, inner = sizes.hidden, 4 * sizes.hidden
    config = {
        "activation_function": "gelu_new",
        "architectures": ["MossForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_moss.MossConfig",
            "AutoModel": "modeling_moss.MossModel",
            "AutoModelForCausalLM": "modeling_moss.MossForCausalLM",
        },
        "attn_pdrop": 0.0,
        "bos_token_id": sizes.vocabulary - 6,
        "embd_pdrop": 0.0,
        "eos_token_id": sizes.vocabulary - 4,
        "gradient_checkpointing": False,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "moss",
        "n_ctx": sizes.positions,
        "n_embd": width,
        "n_head": sizes.heads,
        "n_inner": None,
        "n_layer": sizes.layers,
        "n_positions": sizes.positions,
        "resid_pdrop": 0.0,
        "rotary_dim": 4,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
        "tie_word_embeddings": False,
        "tokenizer_class": "GPT2Tokenizer",
        "torch_dtype": "float32",
        "transformers_version": "4.25.1",
        "use_cache": True,
        "vocab_size": sizes.vocabulary,
    }
    tensors = {"transformer.wte.weight": draw.matrix(sizes.vocabulary, width)}
    for number in range(sizes.layers):
        layer = f"transformer.h.{number}"
        tensors |= {
            f"{layer}.ln_1.weight": draw.norm(width),
            f"{layer}.ln_1.bias": draw.vector(width),
            f"{layer}.attn.qkv_proj.weight": draw.matrix(3 * width, width),
            f"{layer}.attn.out_proj.weight": draw.matrix(width, width),
            f"{layer}.mlp.fc_in.weight": draw.matrix(inner, width),
            f"{layer}.mlp.fc_in.bias": draw.vector(inner),
            f"{layer}.mlp.fc_out.weight": draw.matrix(width, inner),
            f"{layer}.mlp.fc_out.bias": draw.vector(width),
        }
    tensors |= {
        "transformer.ln_f.weight": draw.norm(width),
        "transformer.ln_f.bias": draw.vector(width),
        "lm_head.weight": draw.matrix(sizes.vocabulary, width),
        "lm_head.bias": draw.vector(sizes.vocabulary),
    }
    mask = torch.ones(sizes.positions, sizes.positions).tril().bool()[None, None]
    buffers = {f"transformer.h.{number}.attn.causal_mask": mask.clone() for number in range(sizes.layers)}
    return Checkpoint("moss", config, tensors, buffers, "moss")


def chatglm(seed: int = 0, sizes: Sizes | None = None) -> Checkpoint:
    """Return a ChatGLM-6B (the first): biases, layer norms, head stored although it is the embedding."""
    sizes, draw = sizes or Sizes(vocabulary=160, hidden=48, heads=3, mlp=96), _Draw(seed)
    width = sizes.hidden
    config = {
        "_name_or_path": "THUDM/chatglm-6b",
        "architectures": ["ChatGLMModel"],
        "auto_map": _auto_map(
            "chatglm",
            "ChatGLMConfig",
            "ChatGLMForConditionalGeneration",
            kinds=("AutoModel", "AutoModelForSeq2SeqLM"),
        ),
        "bos_token_id": sizes.vocabulary - 24,
        "eos_token_id": sizes.vocabulary - 23,
        "mask_token_id": sizes.vocabulary - 28,
        "gmask_token_id": sizes.vocabulary - 27,
        "pad_token_id": 3,
        "hidden_size": width,
        "inner_hidden_size": sizes.mlp,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": sizes.positions,
        "model_type": "chatglm",
        "num_attention_heads": sizes.heads,
        "num_layers": sizes.layers,
        "position_encoding_2d": True,
        "torch_dtype": "float32",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": sizes.vocabulary,
    }
    embedding = draw.matrix(sizes.vocabulary, width)
    tensors = {"transformer.word_embeddings.weight": embedding, "lm_head.weight": embedding.clone()}
    for number in range(sizes.layers):
        layer = f"transformer.layers.{number}"
        shapes = {
            "attention.query_key_value": (3 * width, width),
            "attention.dense": (width, width),
            "mlp.dense_h_to_4h": (sizes.mlp, width),
            "mlp.dense_4h_to_h": (width, sizes.mlp),
        }
        for name, shape in shapes.items():
            tensors[f"{layer}.{name}.weight"] = draw.matrix(*shape)
            tensors[f"{layer}.{name}.bias"] = draw.vector(shape[0])
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = draw.norm(width)
            tensors[f"{layer}.{name}.bias"] = draw.vector(width)
    tensors["transformer.final_layernorm.weight"] = draw.norm(width)
    tensors["transformer.final_layernorm.bias"] = draw.vector(width)
    frequencies = _inverse_frequencies(width // sizes.heads // 2)
    buffers = {
        f"transformer.layers.{number}.attention.rotary_emb.inv_freq": frequencies.clone()
        for number in range(sizes.layers)
    }
    return Checkpoint("chatglm", config, tensors, buffers, "chatglm")


CHECKPOINTS: dict[str, Callable[..., Checkpoint]] = {
    "baichuan_7b": baichuan_7b,
    "baichuan2_7b": baichuan2_7b,
    "baichuan_13b": baichuan_13b,
    "baichuan2_13b": baichuan2_13b,
    "internlm": internlm,
    "chatglm2": chatglm2,
    "moss": moss,
    "chatglm": chatglm,
}
"""By the name of the family: `(seed, sizes)` to a checkpoint."""
