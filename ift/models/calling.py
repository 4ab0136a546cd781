"""How a model is called: logits where they count only, and what PEFT's prompt methods put before the text."""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn import functional as F

from ift.models.encoder_decoder import Split, is_encoder_decoder
from ift.models.targets import peft_type

_KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")


@dataclass(frozen=True)
class Calling:
    """How a model is called for its logits at chosen positions of the text."""

    keep_only: bool
    """Whether it takes `logits_to_keep`, so that the head is applied at supervised positions only; the result is the
    same without, only slower."""
    num_virtual_tokens: int = 0
    """Positions that a prompt method puts before the text, and that have logits, too."""
    reads_prompts: bool = False
    """Whether trained positions or keys stand before the text, so that padding on the left would lie between the two;
    PEFT and models with a sliding window then count positions wrongly."""
    names_task: bool = False
    """Whether the adapter is one of several tasks; here there is one."""
    split: Split | None = None
    """Of an encoder-decoder model: how a text is split between the two."""

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Return logits `(kept, vocabulary)`.

        Args:
            model: a language model of transformers, wrapped by PEFT or not.
            inputs: for the forward of a causal one, `input_ids` among them.
            keep: positions of the text, bool `(batch, length)`; of an encoder-decoder model, the first of a row is the
                last token of its prompt.
        """
        if self.split is not None:
            inputs, keep = self.split.apply(inputs, keep)
        inputs = {**inputs, **self.task(len(keep), keep.device)}
        if self.keep_only:
            kept = model(**inputs, logits_to_keep=F.pad(keep, (self.num_virtual_tokens, 0))).logits
        else:
            kept = model(**inputs).logits[:, self.num_virtual_tokens :][keep]
        return cast(torch.Tensor, kept.view(-1, kept.shape[-1]))

    def task(self, rows: int, device: Any) -> dict[str, torch.Tensor]:
        """Return what names the task of each row, where the adapter asks for it."""
        return {"task_ids": torch.zeros(rows, dtype=torch.int64, device=device)} if self.names_task else {}


def calling_of(model: Any) -> Calling:
    """Return how to call a language model of transformers, wrapped by PEFT or not."""
    adapted = isinstance(model, PeftModel)
    base = model.get_base_model() if adapted else model
    keep_only = "logits_to_keep" in inspect.signature(base.forward).parameters
    split = Split(base.config.decoder_start_token_id) if is_encoder_decoder(base.config) else None
    if not adapted:
        return Calling(keep_only, split=split)
    config: Any = model.active_peft_config
    kind = peft_type(config)
    # Prefixes of keys and values have no positions of their own among the logits.
    before = config.num_virtual_tokens if config.is_prompt_learning and kind not in _KEYS_AND_VALUES else 0
    if split is not None:  # what stands before the prompt is the encoder's, and has no logits
        return Calling(keep_only, names_task=kind == "POLY", split=split)
    return Calling(
        keep_only,
        before,
        reads_prompts=config.is_prompt_learning,
        names_task=kind in ("POLY", "MULTITASK_PROMPT_TUNING"),
    )
