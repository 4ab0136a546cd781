"""A validation that was due when a checkpoint was written, and that a kill prevented, is made up for on resume."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ift.training.checkpoints import read_checkpoint

KEY = "ift_validation"
METRICS = ("validation/loss", "validation/perplexity")


class PendingValidation(Callback):
    """Validates on resume where the checkpoint lies between a step and the validation after it.

    Lightning takes such a validation for done. It also forgets the metrics of the last one, which a checkpoint between
    two validations is judged by (`checkpoint.monitor`).
    """

    def __init__(self) -> None:
        self._due = False
        self._metrics: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say whether a validation follows, and what the last one gave."""
        known = trainer.callback_metrics
        metrics = {name: float(known[name]) for name in METRICS if name in known}
        checkpoint[KEY] = {"due": is_due(trainer, pl_module), "metrics": metrics}
        _count_begun_epochs(checkpoint["loops"]["fit_loop"], trainer.num_training_batches)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint says."""
        state = checkpoint.get(KEY, {"due": False, "metrics": {}})
        self._due, self._metrics = state["due"], state["metrics"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the metrics back, and validate where that is still to be done."""
        trainer.callback_metrics.update({name: torch.tensor(one) for name, one in self._metrics.items()})
        self._validate(trainer)

    def on_session_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate where no step was left, so that training has not started."""
        self._validate(trainer)

    def _validate(self, trainer: Trainer) -> None:
        if not self._due:
            return
        self._due = False
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False  # from its beginning, whatever the progress of the one before
        trainer.validating = True
        loop.run()
        trainer.training = True


def _count_begun_epochs(loop: dict[str, Any], num_steps: float) -> None:
    """Count the epoch that a checkpoint lies in among those that have begun.

    A run that Lightning has resumed at the end of an epoch counts one too few from then on, and resumed again it leaves
    out a validation.
    """
    if math.isinf(num_steps) or not num_steps:
        return
    begun = -(-loop["epoch_loop.batch_progress"]["total"]["processed"] // int(num_steps))
    for kind in ("total", "current"):
        progress = loop["epoch_progress"][kind]
        progress |= {name: max(progress[name], begun) for name in ("ready", "started")}


def was_due(checkpoint: Path | None) -> bool:
    """Whether a checkpoint lies between a step and the validation after it."""
    if checkpoint is None:
        return False
    state = read_checkpoint("--ckpt_path", checkpoint).get(KEY)
    return state is not None and bool(state["due"])


def is_due(trainer: Trainer, pl_module: Any) -> bool:
    """Whether the step that is just done is followed by a validation that is not."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    progress: Any = loop.batch_progress.current
    if fetcher is None or not progress.ready or progress.ready != progress.processed:
        return False
    if not trainer.enable_validation or not sum(trainer.num_val_batches) or not loop._should_check_val_fx(fetcher):
        return False
    result = pl_module.validation_result
    return result is None or result.step != trainer.global_step
