"""Changes classes, a function and modules as Liger 0.8.5 does for a Llama."""

from collections import Counter
from typing import Any

import torch
from torch.nn import functional as F

CALLS: Counter[str] = Counter()
FACTOR = 1.0
"""Of a norm's result; any other makes it wrong."""


def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    CALLS["norm"] += 1
    return F.rms_norm(hidden, hidden.shape[-1:], self.weight, self.variance_epsilon) * FACTOR


def block(self: Any, hidden: torch.Tensor) -> Any:
    CALLS["block"] += 1
    return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def rotary(query: Any, key: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1) -> Any:
    CALLS["rotary"] += 1
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turned(one: torch.Tensor) -> torch.Tensor:
        first, second = one.chunk(2, dim=-1)
        return one * cos + torch.cat((-second, first), dim=-1) * sin

    return turned(query), turned(key)


def apply_to_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    from transformers.models.llama import modeling_llama

    assert rope and rms_norm and swiglu
    assert not cross_entropy and not fused_linear_cross_entropy, "the loss is ift's own"
    modeling_llama.apply_rotary_pos_emb = rotary
    modeling_llama.LlamaRMSNorm = modeling_llama.LlamaMLP = type(None)  # which no model can be made of
    norms = [model.model.norm]
    for layer in model.model.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        layer.mlp.forward = block.__get__(layer.mlp)
    for one in norms:
        one.in_place = True
        one.forward = norm.__get__(one)


MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_to_llama}
