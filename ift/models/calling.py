"""How a model is called: logits where they count only, and what PEFT's prompt methods put before the text."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from torch.nn import functional as F

from ift.errors import UserError
from ift.models.encoder_decoder import Split, is_encoder_decoder
from ift.models.fused_head import FusedHead, fusable_head
from ift.models.last_layer import LastBlock, last_block
from ift.models.targets import peft_type

_KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")


class ReadsBothWays(Protocol):
    """A model that reads prompts in both directions, and finds them by their ids.

    Its class says so with `reads_prompts_both_ways = True`. Its `forward` takes `layout_ids`, the ids of the whole
    text, beside embeddings or behind keys and values of its first tokens.
    """

    def settled_length(self, ids: Sequence[int]) -> int:
        """Return the number of first ids of a text that must be run together; behind them, it may be cut anywhere."""
        ...

    def in_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return which tokens of some texts are read in both directions, bool `(batch, length)`."""
        ...


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
    both_ways: ReadsBothWays | None = None
    """The base model, where it reads prompts in both directions."""
    head: FusedHead | None = None
    """Its head, where that gives the loss at once; the result is the same without, but slower and larger."""
    block: LastBlock | None = None
    """Of such a model, what is computed only where the loss is; the result is the same without, but slower."""

    def loss_sum(
        self, model: Any, inputs: dict[str, Any], keep: torch.Tensor, *, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the summed cross-entropy at the kept positions, a float32 scalar in nats.

        Args:
            model: a language model of transformers, wrapped by PEFT or not.
            inputs: for the forward of a causal one, `input_ids` among them.
            keep: positions of the text, bool `(batch, length)`, as for `logits`.
            targets: int64, `(kept,)`.
        """
        if self.head is None:
            logits = self.logits(model, inputs, keep)
            return F.cross_entropy(logits.float(), targets, reduction="sum")
        with self.head.giving_loss(targets), self.reading(F.pad(keep, (self.num_virtual_tokens, 0))):
            return self.head.loss(self._output(model, inputs, keep))

    def reading(self, keep: torch.Tensor) -> AbstractContextManager[None]:
        """Let the last layer's feed-forward block compute what is read of it only, where it can.

        Args:
            keep: bool, `(batch, length)`, of all positions that the layers see.
        """
        return self.block.only_at(keep.flatten().nonzero().flatten()) if self.block is not None else nullcontext()

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Return logits `(kept, vocabulary)`.

        Args:
            model: a language model of transformers, wrapped by PEFT or not.
            inputs: for the forward of a causal one, `input_ids` among them.
            keep: positions of the text, bool `(batch, length)`; of an encoder-decoder model, the first of a row is the
                last token of its prompt.
        """
        kept = self._output(model, inputs, keep)
        return kept.view(-1, kept.shape[-1])

    def _output(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Return what the head makes of the kept positions."""
        if self.split is not None:
            inputs, keep = self.split.apply(inputs, keep)
        inputs = {**inputs, **self.task(len(keep), keep.device)}
        if self.both_ways is not None:
            inputs.setdefault("layout_ids", inputs["input_ids"])  # which PEFT may turn into embeddings
        if self.keep_only:
            kept = model(**inputs, logits_to_keep=F.pad(keep, (self.num_virtual_tokens, 0))).logits
        else:
            kept = model(**inputs).logits[:, self.num_virtual_tokens :][keep]
        return cast(torch.Tensor, kept)

    def settled_length(self, ids: Sequence[int]) -> int:
        """Return the number of first ids of a text that must be run together; 0 where each reads what is before it."""
        return self.both_ways.settled_length(ids) if self.both_ways is not None else 0

    def check_unseen(self, input_ids: torch.Tensor, keep: torch.Tensor) -> None:
        """Refuse to learn tokens that the model sees when it predicts them.

        Args:
            input_ids: int64, `(batch, length)`.
            keep: bool, `(batch, length)`: where the next token is learned.

        Raises:
            UserError: such a token stands in a prompt that is read in both directions.
        """
        if self.both_ways is None:
            return
        seen = keep & F.pad(self.both_ways.in_prompt(input_ids)[:, 1:], (0, 1))
        if number := int(seen.sum()):
            raise UserError(
                f"data.template: {number} of the {int(keep.sum())} supervised tokens of a micro-batch stand before the "
                "<sop> of their text. The model reads all of that in both directions, so it would copy them and learn "
                "nothing. Set last_output_only of the template to true, or take 'chatglm'."
            )

    def task(self, rows: int, device: Any) -> dict[str, torch.Tensor]:
        """Return what names the task of each row, where the adapter asks for it."""
        return {"task_ids": torch.zeros(rows, dtype=torch.int64, device=device)} if self.names_task else {}


def calling_of(model: Any) -> Calling:
    """Return how to call a language model of transformers, wrapped by PEFT or not."""
    adapted = isinstance(model, PeftModel)
    base = model.get_base_model() if adapted else model
    keep_only = "logits_to_keep" in inspect.signature(base.forward).parameters
    split = Split(base.config.decoder_start_token_id) if is_encoder_decoder(base.config) else None
    both_ways = base if getattr(base, "reads_prompts_both_ways", False) else None
    if not adapted:
        return Calling(keep_only, split=split, both_ways=both_ways)
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
        both_ways=both_ways,
    )


def with_fused_head(calling: Calling, model: Any, *, compiled: bool = False) -> Calling:
    """Return how to call a loaded model for its loss: through a fused head, where that is seen to give the same.

    Args:
        calling: of `calling_of(model)`.
        model: of transformers, wrapped by PEFT or not; without its weights (on the meta device), it is believed.
        compiled: whether its blocks are, or are about to be.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = fusable_head(base) if calling.keep_only and calling.split is None and calling.both_ways is None else None
    if head is None:
        return calling
    # Compiled blocks would be compiled anew with every change, tasks are told row by row, and X-LoRA chooses its
    # adapters by the hidden states of all positions.
    reads_all = isinstance(model, PeftModel) and peft_type(model.active_peft_config) == "XLORA"
    block = last_block(base) if not (compiled or calling.names_task or reads_all) else None
    fused = replace(calling, head=head, block=block)
    module = model.get_input_embeddings()
    embedding = getattr(module, "original_module", module).weight  # PEFT's trainable tokens make theirs by asking
    if any(parameter.is_meta for parameter in model.parameters()) or _same_loss(model, embedding, calling, fused):
        return fused
    return calling


@torch.no_grad()
def _same_loss(model: Any, embedding: torch.Tensor, calling: Calling, fused: Calling) -> bool:
    """Whether two ways of calling a model give the same loss, in a trial."""
    ids = torch.linspace(0, len(embedding) - 1, 20, device=embedding.device).long()[None]
    keep = torch.arange(20, device=ids.device)[None] % 3 > 0
    training = model.training
    model.eval()
    try:
        one, other = (
            way.loss_sum(model, {"input_ids": ids, "use_cache": False}, keep, targets=ids.flip(1)[keep])
            for way in (calling, fused)
        )
    finally:
        model.train(training)
    return bool((one - other).abs() <= max(1e-5, torch.finfo(embedding.dtype).eps) * one.abs())
