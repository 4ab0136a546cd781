"""ChatGLM-6B (the first, of March 2023): a model of our own that reads and writes the original's folders.

The original ("GLM: General Language Model Pretraining", Du et al. 2022; code of THUDM/chatglm-6b, Apache-2.0) is no
architecture of transformers: prompts are read in both directions, a token has two positions, and the residual stream
begins with the normalised state. Its code does not run on transformers 5 and is never executed. Parameters keep the
original's names and shapes, queries, keys and values of each head in one matrix among them; so there is no conversion,
and adapters have the original's target modules. In half precision, angles are computed in float32, where the original
rounds them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ift.models.families.chatglm_config import ChatGLMConfig, native_config, recognises, refusals
from ift.models.families.chatglm_layers import GLMBlock, SelfAttention, frequencies
from ift.models.families.chatglm_layout import Layout, LayoutIds, layout_of, settled_length

__all__ = ["ChatGLMConfig", "ChatGLMForCausalLM", "native_config", "recognises", "refusals", "register"]

_PROMPT, _ANSWER = 0, -1
"""Blocks of the attention mask: tokens of the first see one another, those of the second what is before them."""


def register() -> None:
    """Let transformers' Auto classes know config and model; does nothing twice."""
    AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)


class ChatGLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers asks about the architecture."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ("GLMBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq",)
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}  # noqa: RUF012


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The layers, without a head."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, number) for number in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        # Numbers, not a buffer, which loading would leave without values and a change of dtype would round.
        self._frequencies = frequencies(config.head_dim)
        self.post_init()

    @property
    def special(self) -> LayoutIds:
        """The tokens that prompts are found by."""
        return LayoutIds(self.config.bos_token_id, self.config.gmask_token_id, self.config.mask_token_id)

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        layout_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states; arguments as of `ChatGLMForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds")
        states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        text = input_ids if layout_ids is None else layout_ids
        layout = self._layout(text, attention_mask, past_key_values, length=states.shape[1], position_ids=position_ids)
        mask = self._mask(states, attention_mask, past_key_values, in_prompt=layout.in_prompt)
        angles = self._angles(layout.positions, states)
        for layer in self.layers:
            states = layer(states, attention_mask=mask, angles=angles, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None:
            past_key_values.last_positions = (past_key_values.get_seq_length(), layout.positions[:, :, -1:])
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(states), past_key_values=past_key_values if use_cache else None
        )

    def _layout(
        self,
        text: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past: Cache | None,
        *,
        length: int,
        position_ids: torch.Tensor | None,
    ) -> Layout:
        """Return the layout of the `length` newest tokens."""
        if position_ids is not None and position_ids.ndim != 3:
            raise ValueError("position_ids of ChatGLM-6B are (batch, 2, length); leave them out, they follow from ids")
        before = past.get_seq_length() if past is not None else 0
        known = getattr(past, "last_positions", None)
        if known is not None and before:
            if known[0] != before:
                raise ValueError(f"the cache holds {before} tokens, and {known[0]} when its positions were kept")
            steps = torch.arange(1, length + 1, device=known[1].device)
            behind = torch.stack((torch.zeros_like(steps), steps))
            positions = known[1] + behind if position_ids is None else position_ids
            return Layout(positions, torch.zeros_like(positions[:, 0], dtype=torch.bool))
        if text is None or not text.shape[1]:
            raise ValueError("positions and prompt of ChatGLM-6B follow from ids: give layout_ids with inputs_embeds")
        # What comes without ids before the text counts as its beginning; keys and values before it (a trained prefix)
        # have no positions.
        num_virtual = max(0, length - text.shape[1])
        real = _real(attention_mask, num_virtual + text.shape[1])
        layout = layout_of(text, real, special=self.special, num_virtual=num_virtual)
        positions = layout.positions[:, :, -length:] if position_ids is None else position_ids
        return Layout(positions, layout.in_prompt[:, -length:])

    def _mask(
        self,
        states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past: Cache | None,
        *,
        in_prompt: torch.Tensor,
    ) -> torch.Tensor | None:
        """Return the attention mask as the implementation takes it; a given 4-D one, true where hidden, as it is."""
        if attention_mask is not None and attention_mask.ndim == 4:
            if attention_mask.dtype != torch.bool:
                return attention_mask
            hidden = torch.zeros(attention_mask.shape, dtype=states.dtype, device=states.device)
            # No infinity: of rows that see nothing, which are padding, it would make no numbers.
            return hidden.masked_fill(attention_mask, torch.finfo(states.dtype).min)
        blocks = torch.where(in_prompt, _PROMPT, _ANSWER)
        before = past.get_seq_length() if past is not None else 0
        mask: torch.Tensor | None = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=past,
            block_sequence_ids=F.pad(blocks, (before, 0), value=_ANSWER),
        )
        return mask

    def _angles(self, positions: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of both positions, `(batch, 1, length, head_dim)`."""
        frequencies = torch.tensor(self._frequencies, device=states.device)
        angles = positions.to(states.device).transpose(1, 2)[..., None].float() * frequencies
        angles = torch.stack((angles, angles), dim=-2).flatten(-3)[:, None]
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def _real(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Return which of the last `length` tokens are no padding; of a 4-D mask, what the last of them sees."""
    if attention_mask is None:
        return None
    if attention_mask.ndim == 4:
        last = attention_mask[:, 0, -1]
        attention_mask = ~last if last.dtype == torch.bool else last >= 0
    return attention_mask[:, -length:].bool()


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """ChatGLM-6B with its head, which is the embedding's matrix."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012
    reads_prompts_both_ways = True
    """Whether the states of a prompt depend on all of it, and `forward` takes `layout_ids` beside embeddings."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        layout_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits and, with labels, the loss.

        Args:
            input_ids: int64, `(batch, length)`.
            attention_mask: `(batch, length)` with the past, 0 on padding; or the original's, bool `(batch, 1, length,
                length)`, true where hidden. None is needed for padding on the right.
            position_ids: `(batch, 2, length)`, both positions of each token; by default as `chatglm_layout` says.
            past_key_values: tokens before, which end behind the prompt; or a trained prefix, without positions.
            inputs_embeds: instead of ids, with `layout_ids`.
            layout_ids: ids of the whole text where `input_ids` are not: with embeddings, which may have trained ones
                before the text, or with a past whose positions are not known.
            labels: int64, `(batch, length)`, not shifted; -100 has no loss.
            use_cache: whether keys and values are kept.
            logits_to_keep: number of last positions, or which, as in transformers; 0 for all.
            **kwargs: what transformers' models take.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            layout_ids=layout_ids,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def settled_length(self, ids: Sequence[int]) -> int:
        """Return the number of first ids of a text that must be run together; behind them, it may be cut anywhere."""
        return settled_length(ids, self.transformer.special)

    def in_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return which tokens of some texts are read in both directions, bool `(batch, length)`."""
        return layout_of(input_ids, None, special=self.transformer.special).in_prompt

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers' models do; the original's 4-D mask and positions may be given.

        Both grow with the text and follow from ids and padding, so only the padding is taken from them.

        Raises:
            ValueError: positions that are not those of the ids.
        """
        mask, positions = kwargs.get("attention_mask"), kwargs.pop("position_ids", None)
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if mask is not None and mask.ndim == 4:
            kwargs["attention_mask"] = mask = _real(mask, mask.shape[-1]).long()  # type: ignore[union-attr]
        if positions is not None and ids is not None:
            own = layout_of(ids, None if mask is None else mask.bool(), special=self.transformer.special).positions
            if not torch.equal(own, positions):
                raise ValueError("position_ids are not those of the ids; leave them out")
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return the inputs of one step; the ids of the whole text go along, as PEFT may turn them into embeddings."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return {"layout_ids": input_ids, **inputs}

    def _prepare_position_ids_for_generation(self, *_: Any) -> None:
        """Keep transformers from counting positions, which follow from ids here."""

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Make embedding and head one; where a checkpoint has both and they differ, the embedding, as the original."""
        source, head = "transformer.word_embeddings.weight", "lm_head.weight"
        if missing_keys is not None and self.config.tie_word_embeddings and source not in missing_keys:
            missing_keys.add(head)
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)
