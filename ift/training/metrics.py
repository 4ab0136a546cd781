"""What is measured of every step, and where it is told: the logger and the progress bar."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ift.data.steps import Step


class StepMetrics(Callback):
    """Logs loss, perplexity, gradient norm, learning rate, tokens per second and padding, at optimizer steps.

    The loss of a step is exact: summed over all ranks and divided by the supervised tokens of the whole step. Rates are
    over the time inside the steps since the last entry: fetching data, validation and checkpoints are not counted. The
    x axis is the number of optimizer steps done; the last step is always logged.
    """

    def __init__(self) -> None:
        self._restart()
        self.last: dict[str, float] = {}
        self.last_step = 0
        self.training_seconds = 0.0
        self.supervised_tokens = self.tokens = self.padded = 0

    def _restart(self) -> None:
        self._seconds, self._supervised, self._tokens, self._padded = 0.0, 0, 0, 0
        self._pending: tuple[dict[str, Any], Step] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Step, batch_idx: int) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Count, and log where it is due."""
        seconds = time.monotonic() - self._started
        self._seconds, self.training_seconds = self._seconds + seconds, self.training_seconds + seconds
        self._supervised += batch.num_supervised
        self.supervised_tokens += batch.num_supervised
        self._tokens += batch.num_tokens
        self._padded += batch.num_padded
        self._pending = (outputs, batch)
        every = self._every(trainer)
        if every and (trainer.global_step % every == 0 or trainer.global_step == 1):
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last step, whatever its number."""
        if self._pending is not None:
            self._log(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring to disk what was logged: a run resumed from here must not miss it."""
        experiment: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(experiment, "flush"):
            experiment.flush()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation's result, at the step it was made."""
        result: Any = pl_module.validation_result
        if result is not None and trainer.logger is not None:
            values = {"validation/loss": result.loss, "validation/perplexity": result.perplexity}
            trainer.logger.log_metrics(values, step=result.step)

    @staticmethod
    def _every(trainer: Any) -> int:
        return int(trainer.log_every_n_steps)

    def _log(self, trainer: Trainer, pl_module: Any) -> None:
        assert self._pending is not None
        outputs, step = self._pending
        # A copy, as it is reduced in place, and others read what this rank summed up.
        total: Any = trainer.strategy.reduce(outputs["loss_sum"].clone(), reduce_op="sum")
        padded: Any = trainer.strategy.reduce(
            torch.tensor(self._padded, dtype=torch.int64, device=pl_module.device), reduce_op="sum"
        )
        self.tokens, self.padded = self.tokens + self._tokens, self.padded + int(padded)
        loss = float(total) / max(1, step.num_supervised)
        pl_module.check_finite()
        self.last = {
            "train/loss": loss,
            "train/perplexity": float(torch.tensor(loss).exp()),
            "train/gradient_norm": float(outputs["gradient_norm"]),
            "train/learning_rate": outputs["learning_rate"],
            "train/supervised_tokens_per_second": self._supervised / max(self._seconds, 1e-9),
            "train/tokens_per_second": self._tokens / max(self._seconds, 1e-9),
            "train/padding_share": int(padded) / (int(padded) + self._tokens),
        }
        self.last_step = trainer.global_step
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.last, step=trainer.global_step)
        self._restart()
