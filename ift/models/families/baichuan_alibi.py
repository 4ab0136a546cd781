"""Baichuan-13B and Baichuan2-13B: Llama with ALiBi (Press et al. 2022, arXiv 2108.12409) in place of the rotation.

Attention, cache and generation are Llama's. The bias `slope[head] x (key - query)` joins the causal mask, which Llama
hands through. The original counts the bias from the first key instead; in exact arithmetic the softmax is the same, and
in bfloat16 the relative form is the exact one. Saved models are in the original layout, which engines know by name.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from ift.models.families.baichuan import packed_projections
from ift.models.families.normalized_head import NormalizedHead

_STATED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings",
)  # fmt: skip


class BaichuanAlibiConfig(LlamaConfig):  # type: ignore[misc]  # transformers is untyped
    """Llama's config for a model without rotation; written in the terms of the original."""

    model_type = "ift_baichuan_13b"

    def __init__(self, *, normalized_head: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.normalized_head = normalized_head

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **settings: Any) -> None:
        """Write `config.json` with the keys of the original."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **settings)
        path = Path(save_directory) / "config.json"
        path.write_text(json.dumps(self.original(), indent=2) + "\n", encoding="utf-8")

    def original(self) -> dict[str, Any]:
        """Return the original's `config.json`, with the family that its keys alone may not tell."""
        return {
            "architectures": ["BaichuanForCausalLM"],
            "ift_family": "baichuan2_13b" if self.normalized_head else "baichuan_13b",
            "model_max_length": self.max_position_embeddings,
            "model_type": "baichuan",
            "torch_dtype": str(self.dtype).removeprefix("torch.") if self.dtype is not None else None,
            **{name: getattr(self, name) for name in _STATED},
        }


def slopes(num_heads: int) -> torch.Tensor:
    """Return ALiBi's slopes, float32 `(heads,)`: a geometric series; between powers of 2, every other one of the next.

    The same as Bloom's.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    found = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    found += [2 ** (-4 * (2 * number + 1) / power) for number in range(num_heads - power)]
    return torch.tensor(found, dtype=torch.float32)


class NoRotation(nn.Module):
    """In the place of Llama's rotation: an angle of 0 everywhere."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, `(1, length, head_dim)`."""
        shape = (1, x.shape[1], self.head_dim)
        return x.new_ones(shape), x.new_zeros(shape)


class BaichuanAlibiModel(LlamaModel):  # type: ignore[misc]  # transformers is untyped
    """The decoder: Llama's, with the bias in its mask."""

    config_class = BaichuanAlibiConfig
    _supports_flash_attn = False  # takes no bias
    _supports_flex_attn = False

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super().__init__(config)
        self.rotary_emb = NoRotation(config.head_dim)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **settings: Any,
    ) -> Any:
        """Run the decoder as Llama's does."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=False,
        )
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return super().forward(
            attention_mask=self._biased(mask, inputs_embeds, past),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **settings,
        )

    def _biased(self, mask: torch.Tensor, states: torch.Tensor, past: Any) -> torch.Tensor:
        """Return the mask `(batch, heads, queries, keys)` with the bias where a query may look, else the minimum."""
        allowed = mask if mask.dtype == torch.bool else mask == 0
        queries = torch.arange(allowed.shape[-2], device=states.device) + past
        keys = torch.arange(allowed.shape[-1], device=states.device)
        distance = (keys[None] - queries[:, None]).float()
        bias = slopes(self.config.num_attention_heads).to(states.device)[:, None, None] * distance
        return torch.where(allowed, bias.to(states.dtype), torch.finfo(states.dtype).min)


class BaichuanAlibiForCausalLM(LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """The causal language model; its head is normalised in Baichuan2."""

    config_class = BaichuanAlibiConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq$",)

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super(LlamaPreTrainedModel, self).__init__(config)
        self.model = BaichuanAlibiModel(config)
        self.vocab_size = config.vocab_size
        head = NormalizedHead if config.normalized_head else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


@cache
def registered() -> type[BaichuanAlibiForCausalLM]:
    """Let transformers' auto classes and its reading of files know the class, once, and return it."""
    AutoConfig.register(BaichuanAlibiConfig.model_type, BaichuanAlibiConfig)
    AutoModelForCausalLM.register(BaichuanAlibiConfig, BaichuanAlibiForCausalLM)
    register_checkpoint_conversion_mapping(BaichuanAlibiForCausalLM.__name__, packed_projections())
    return BaichuanAlibiForCausalLM
