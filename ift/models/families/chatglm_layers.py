"""The layers of ChatGLM-6B, with the original's names of modules and parameters."""

import math
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ift.models.families.chatglm_config import ChatGLMConfig

_RESIDUAL_SCALE = math.sqrt(2 * 28)
"""Of every model, whatever its number of layers: the original's blocks never learn of that."""


def frequencies(head_dim: int) -> list[float]:
    """Return the angular frequencies of half a head, rounded to float16 as the original's are, whatever its dtype."""
    width = head_dim // 2
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    return cast(list[float], (1.0 / 10000**exponents).half().float().tolist())


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate by position: both halves of a head on their own, each as two halves (not in pairs of neighbours)."""
    first, second = states.reshape(*states.shape[:-1], 2, 2, -1).unbind(-2)
    return states * cos + torch.stack((-second, first), dim=-2).flatten(-3) * sin


class SelfAttention(nn.Module):
    """Attention with queries, keys and values of each head in one matrix, head by head."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.is_causal = True
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        angles: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention's result, as its input, and its weights where the implementation has them."""
        batch, length, _ = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, length, self.num_heads, 3 * self.head_dim)
        query, key, value = fused.transpose(1, 2).chunk(3, dim=-1)
        query, key = _turned(query, *angles), _turned(key, *angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        states, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs
        )
        return self.dense(states.reshape(batch, length, -1)), weights


class GLU(nn.Module):
    """The MLP; no gated unit, in spite of the name that the original gave it."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the result, as its input."""
        states: torch.Tensor = self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))
        return states


class GLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """One layer. The residual stream goes on from the normalised states, scaled."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the next states."""
        states = self.input_layernorm(hidden_states)
        states = _RESIDUAL_SCALE * states + self.attention(states, **kwargs)[0]
        states = self.post_attention_layernorm(states)
        return cast(torch.Tensor, _RESIDUAL_SCALE * states + self.mlp(states))
