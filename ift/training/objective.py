"""The loss: cross-entropy summed over supervised positions, computed at those positions only."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ift.data.encoding import IGNORE_INDEX
from ift.data.micro_batches import MicroBatch
from ift.data.steps import Step
from ift.models.calling import Calling
from ift.training.engines import Engine


def shifted_targets(labels: torch.Tensor) -> torch.Tensor:
    """Return for each position the label of the next one, `(batch, length)`; the last has none."""
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]


def validation_sums(model: Any, step: Step, *, calling: Calling, engine: Engine) -> torch.Tensor:
    """Return the summed cross-entropy of a step and the number of its supervised tokens, float64, on this rank."""
    sums = torch.zeros(2, dtype=torch.float64, device=step.micro_batches[0].input_ids.device)
    for batch in step.micro_batches:
        count = (shifted_targets(batch.labels) != IGNORE_INDEX).sum()
        loss = engine.forward(partial(loss_sum, model, batch, calling=calling))
        sums += torch.stack((loss.double(), count.double()))
    return sums


def loss_sum(model: Any, batch: MicroBatch, *, calling: Calling) -> torch.Tensor:
    """Return the summed cross-entropy of a micro-batch's supervised tokens, a float32 scalar in nats.

    Examples are padded on the right, and a response is read from left to right by every model, a prompt by most; so no
    real position ever attends to padding and no attention mask is needed. Where rows hold several examples, positions
    that begin anew tell the model so; which models understand that, `ift.models.packing` knows.

    Args:
        model: a causal language model of transformers, wrapped by PEFT or not.
        batch: of this rank.
        calling: of `calling_of(model)`.

    Raises:
        UserError: the model sees what it should learn to predict.
    """
    targets = shifted_targets(batch.labels)
    keep = targets != IGNORE_INDEX
    calling.check_unseen(batch.input_ids, keep)
    # transformers takes restarting positions for packed examples only without a cache and without an attention mask.
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    return calling.loss_sum(model, inputs, keep, targets=targets[keep])
