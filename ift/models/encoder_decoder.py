"""Encoder-decoder models (T5): which are known here, and how a text is split between encoder and decoder.

Data and steps know nothing of the two halves: an example is one sequence, prompt then response. When the model is
called, each row is cut where the response begins: the encoder reads what is before, the decoder predicts the rest from
what it wrote so far, beginning with the model's own start token. The prompt's end-of-text, which such encoders have
always seen, is part of the prompt already (`ift.data.templates.Template.for_encoder_decoder`).
"""

from dataclasses import dataclass
from typing import Any

import torch

from ift.errors import UserError

FAMILIES = frozenset({"mt5", "t5"})
"""Model types (`model_type` of their config) that were tried; T5 1.1 and Flan-T5 are `t5`. Texts of their encoder end
with end-of-text, and their decoder begins with one token of its own. BART, mBART, Pegasus and others begin a response
with more tokens (`forced_bos_token_id`, languages). Of umT5, transformers (5.23) scales the logits as if embedding and
head were one matrix, which they are in no published one."""
TRIED = "t5"
"""The one of them that the support matrix knows; the others are made of the same modules."""


def settle_head(model: Any) -> None:
    """Let the config say that embedding and head are two matrices, where they came from the files as two.

    transformers (5.x) sets `tie_word_embeddings` for every T5 and looks at the files for the truth, but ties the two
    when the vocabulary is resized, and writes a config by which older versions would tie them.

    Args:
        model: as loaded.
    """
    head = model.get_output_embeddings()
    if is_encoder_decoder(model.config) and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def tried_family(model_type: str) -> str:
    """Return the family under which the support matrix has a model type."""
    return TRIED if model_type in FAMILIES else model_type


def is_encoder_decoder(config: Any) -> bool:
    """Return whether a model reads prompts with an encoder.

    Args:
        config: of transformers, or `None`.
    """
    return bool(getattr(config, "is_encoder_decoder", False))


def auto_class(config: Any) -> Any:
    """Return transformers' class that makes or loads a model of this config."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def check_encoder_decoder(key: str, base: str, *, config: Any, dtype: str, dtype_key: str = "model.dtype") -> None:
    """Refuse an encoder-decoder model that is not known here, or that the dtype would break.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id.
        config: transformers' config of it, or `None` where it cannot be read.
        dtype: of its weights.
        dtype_key: what the user sets that with.

    Raises:
        UserError: with the reason.
    """
    if not is_encoder_decoder(config):
        return
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{key}: '{base}' is an encoder-decoder model of type '{config.model_type}', and what its decoder begins "
            f"with and its encoder's texts end with is known of {', '.join(sorted(FAMILIES))} only. Take one of these "
            "(Flan-T5 is t5), or a decoder-only model."
        )
    if config.decoder_start_token_id is None:
        raise UserError(
            f"{key}: config.json of '{base}' names no decoder_start_token_id, so what a response begins with is not "
            "known. Add it; of T5 and mT5 it is 0."
        )
    if dtype == "float16":
        raise UserError(
            f"{dtype_key}: float16 is too small for '{config.model_type}' models, whose activations exceed it. Take "
            "bfloat16, in which they were trained, or float32."
        )


@dataclass(frozen=True)
class Split:
    """How rows of prompt and response go to an encoder and a decoder."""

    start_token_id: int
    """What the decoder begins with."""

    def apply(self, inputs: dict[str, Any], keep: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the inputs of an encoder-decoder model, and at which of its logits the same tokens are predicted.

        Args:
            inputs: of a causal model, `input_ids` of `(batch, length)` among them, padded on the right; without
                positions.
            keep: bool `(batch, length)`: where the next token is asked about; the first of a row is the last token of
                its prompt. A row without any is computed for nothing.

        Returns:
            `input_ids` and `attention_mask` of the encoder, `decoder_input_ids`, and all else; and positions of the
            decoder, bool, in the order of those kept.
        """
        ids = inputs["input_ids"]
        place = torch.arange(ids.shape[1], device=ids.device)
        num_prompt = keep.int().argmax(1, keepdim=True) + 1  # tokens of each prompt
        # Each row moves to the left until its prompt's last token, at which the response is asked about, is the first.
        moved = place + num_prompt - 1
        inside = moved < ids.shape[1]
        moved = moved.clamp(max=ids.shape[1] - 1)
        kept = keep.gather(1, moved) & inside
        width = int((kept.any(0) * (place + 1)).max().clamp(min=1))
        decoder_ids = ids.gather(1, moved)[:, :width].clone()
        decoder_ids[:, 0] = self.start_token_id
        longest = int(num_prompt.max())
        halves = {
            "input_ids": ids[:, :longest],
            "attention_mask": (place < num_prompt)[:, :longest].to(ids.dtype),
            # What stands after a response is read by nothing that counts, as the decoder is causal.
            "decoder_input_ids": decoder_ids,
        }
        return {**inputs, **halves}, kept[:, :width]

    def cache(self) -> dict[str, Any]:
        """Return an empty cache for generation; transformers' own has as many layers as the encoder."""
        from transformers import DynamicCache, EncoderDecoderCache

        return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def set_task_type(key: str, config: Any, *, model: Any, named: bool) -> None:
    """Tell an adapter's configuration of PEFT which kind of model it goes on.

    Args:
        key: the configuration key of the adapter, for errors.
        config: a `peft.PeftConfig`, changed in place.
        model: the base model, with or without its weights.
        named: whether it is of a method by its short name, which knows no model.

    Raises:
        UserError: it names another kind of model.
    """
    from peft import TaskType

    if not is_encoder_decoder(model.config):
        config.task_type = config.task_type or TaskType.CAUSAL_LM
        return
    usual = (None, type(config).__dataclass_fields__["task_type"].default, TaskType.SEQ_2_SEQ_LM)
    if config.task_type not in usual and not named:
        raise UserError(
            f"{key}.task_type: {config.task_type}, and '{model.config.model_type}' is an encoder-decoder model, whose "
            f"task is {TaskType.SEQ_2_SEQ_LM.value}. Leave it out."
        )
    config.task_type = TaskType.SEQ_2_SEQ_LM


def fill_prompts(config: Any, sizes: Any) -> None:
    """Set what PEFT would get wrong of trained tokens, keys and values beside these models.

    Trained tokens stand before the encoder's text; PEFT would make as many for the decoder and never use them. Trained
    keys and values stand before the decoder's, whose heads together may be narrower than the model, and whose layers
    may be more than the encoder's.

    Args:
        config: a `peft.PromptLearningConfig`, changed in place.
        sizes: transformers' config of the model.
    """
    if config.peft_type.value in ("PREFIX_TUNING", "CARTRIDGE"):
        config.num_layers = config.num_layers or sizes.num_decoder_layers
        config.num_attention_heads = config.num_attention_heads or sizes.num_heads
        config.token_dim = config.token_dim or sizes.num_heads * sizes.d_kv
    else:
        config.num_transformer_submodules = config.num_transformer_submodules or 1
