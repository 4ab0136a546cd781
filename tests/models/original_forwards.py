"""What the 2023 models compute, written down in plain torch from original parameter names: one sequence, no cache.

Nothing here is read from `ift` or transformers, so that both can be wrong.
"""

import math
from typing import Any

import torch
from original_checkpoints import Checkpoint, Tensors
from torch.nn import functional as F


def forward(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Return logits, `(length, vocabulary)`, of ids `(length,)`; of families whose prompts are read from the left."""
    if checkpoint.family == "moss":
        return _moss(checkpoint.config, checkpoint.tensors, ids)
    if checkpoint.family == "chatglm2":
        return _chatglm2(checkpoint.config, checkpoint.tensors, ids)
    return _llama_like(checkpoint, ids)


def _rms(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Causal attention of `(heads, length, size)`, heads side by side in the result."""
    length = q.shape[1]
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    hidden = torch.ones(length, length).triu(1).bool()
    mixed = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return mixed.transpose(0, 1).reshape(length, -1)


def _heads(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.view(x.shape[0], number, -1).transpose(0, 1)


def _angles(length: int, size: int, base: float = 10000.0, divisor: float = 1.0) -> torch.Tensor:
    """`(length, size / 2)`."""
    return torch.outer(torch.arange(length) / divisor, 1.0 / base ** (torch.arange(0, size, 2).float() / size))


def _rotate_halves(x: torch.Tensor) -> torch.Tensor:
    """Number i of a head turns with number i + size / 2."""
    angles = _angles(x.shape[1], x.shape[2])
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _rotate_pairs(x: torch.Tensor, size: int, **stretched: float) -> torch.Tensor:
    """Of the first `size` numbers of a head, each even one turns with the next; the rest stays."""
    angles = _angles(x.shape[1], size, **stretched)
    even, odd = x[..., :size:2], x[..., 1:size:2]
    turned = torch.stack([even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], -1)
    return torch.cat([turned.flatten(-2), x[..., size:]], -1)


def _alibi(heads: int, length: int) -> torch.Tensor:
    """Slopes of the paper's own code: a power of two of heads, and every other slope of the next power for the rest."""

    def of_power(number: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(number) - 3)))
        return [start * start**i for i in range(number)]

    power = 2 ** math.floor(math.log2(heads))
    slopes = of_power(power) + of_power(2 * power)[0::2][: heads - power]
    return torch.tensor(slopes)[:, None, None] * torch.arange(length).float()


def _llama_like(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    config, weights, family = checkpoint.config, checkpoint.tensors, checkpoint.family
    heads, epsilon = config["num_attention_heads"], config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    bias = _alibi(heads, len(ids)) if "13b" in family else 0.0
    for number in range(config["num_hidden_layers"]):
        layer = {name.partition(f"layers.{number}.")[2]: one for name, one in weights.items()}
        normed = _rms(x, layer["input_layernorm.weight"], epsilon)
        if "self_attn.W_pack.weight" in layer:
            q, k, v = (normed @ layer["self_attn.W_pack.weight"].T).chunk(3, dim=-1)
        else:
            q, k, v = (
                F.linear(normed, layer[f"self_attn.{one}_proj.weight"], layer.get(f"self_attn.{one}_proj.bias"))
                for one in "qkv"
            )
        q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
        if "13b" not in family:
            q, k = _rotate_halves(q), _rotate_halves(k)
        mixed = _attend(q, k, v, bias)
        x = x + F.linear(mixed, layer["self_attn.o_proj.weight"], layer.get("self_attn.o_proj.bias"))
        normed = _rms(x, layer["post_attention_layernorm.weight"], epsilon)
        gated = F.silu(normed @ layer["mlp.gate_proj.weight"].T) * (normed @ layer["mlp.up_proj.weight"].T)
        x = x + gated @ layer["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if "baichuan2" in family:
        head = head / head.norm(dim=1, keepdim=True)
    return _rms(x, weights["model.norm.weight"], epsilon) @ head.T


def _chatglm2(config: dict[str, Any], weights: Tensors, ids: torch.Tensor) -> torch.Tensor:
    heads, groups, size = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    epsilon = config["layernorm_epsilon"]
    ratio = config.get("rope_ratio", 1)
    # Both codes of 32k checkpoints: that of ChatGLM2 and that of ChatGLM3.
    stretched = {"divisor": ratio} if config["_name_or_path"] == "THUDM/chatglm2-6b-32k" else {"base": 10000.0 * ratio}
    x = weights["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(config["num_layers"]):
        layer = {name.partition(f"layers.{number}.")[2]: one for name, one in weights.items()}
        normed = _rms(x, layer["input_layernorm.weight"], epsilon)
        fused = F.linear(
            normed, layer["self_attention.query_key_value.weight"], layer["self_attention.query_key_value.bias"]
        )
        q, k, v = fused.split([heads * size, groups * size, groups * size], dim=-1)
        q, k, v = _heads(q, heads), _heads(k, groups), _heads(v, groups)
        q, k = _rotate_pairs(q, size // 2, **stretched), _rotate_pairs(k, size // 2, **stretched)
        k, v = (one.repeat_interleave(heads // groups, dim=0) for one in (k, v))
        x = x + _attend(q, k, v) @ layer["self_attention.dense.weight"].T
        normed = _rms(x, layer["post_attention_layernorm.weight"], epsilon)
        gate, up = (normed @ layer["mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ layer["mlp.dense_4h_to_h.weight"].T
    final = _rms(x, weights["transformer.encoder.final_layernorm.weight"], epsilon)
    return final @ weights["transformer.output_layer.weight"].T


def _moss(config: dict[str, Any], weights: Tensors, ids: torch.Tensor) -> torch.Tensor:
    heads, width, epsilon = config["n_head"], config["n_embd"], config["layer_norm_epsilon"]
    x = weights["transformer.wte.weight"][ids]
    for number in range(config["n_layer"]):
        layer = {name.partition(f"h.{number}.")[2]: one for name, one in weights.items()}
        normed = F.layer_norm(x, (width,), layer["ln_1.weight"], layer["ln_1.bias"], epsilon)
        # Four groups of heads; in each, queries, then values, then keys.
        groups = (normed @ layer["attn.qkv_proj.weight"].T).view(len(ids), 4, 3, width // 4)
        q, v, k = (_heads(groups[:, :, part].reshape(len(ids), width), heads) for part in range(3))
        q, k = _rotate_pairs(q, config["rotary_dim"]), _rotate_pairs(k, config["rotary_dim"])
        attended = _attend(q, k, v) @ layer["attn.out_proj.weight"].T
        inner = F.gelu(F.linear(normed, layer["mlp.fc_in.weight"], layer["mlp.fc_in.bias"]), approximate="tanh")
        x = x + attended + F.linear(inner, layer["mlp.fc_out.weight"], layer["mlp.fc_out.bias"])
    final = F.layer_norm(x, (width,), weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"], epsilon)
    return F.linear(final, weights["lm_head.weight"], weights["lm_head.bias"])
