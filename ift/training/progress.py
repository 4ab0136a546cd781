"""Progress bars: one for the whole training, one for each validation or prediction."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from ift.training.metrics import StepMetrics


class RunProgress(ProgressBar):
    """Shows steps, loss, rates, memory and time left; on a terminal as a bar, else as a line now and then.

    Args:
        metrics: where loss and rate come from; without, only counts are shown.
        line_every_seconds: how often a line is written where the output is no terminal.
    """

    def __init__(self, metrics: StepMetrics | None = None, line_every_seconds: float = 15.0) -> None:
        super().__init__()
        self._metrics, self._interval = metrics, line_every_seconds
        self._enabled = True
        self._bars: dict[str, Any] = {}

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def _open(self, name: str, total: float | None, *, initial: int = 0, leave: bool = True) -> None:
        terminal = sys.stderr.isatty()
        self._close(name)
        self._bars[name] = tqdm(
            total=None if total is None or total == float("inf") else int(total),
            desc=name,
            unit="step",
            initial=initial,
            leave=leave,
            disable=not self._enabled,
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else self._interval,
            maxinterval=10.0 if terminal else self._interval,
        )

    def _close(self, name: str) -> None:
        if name in self._bars:
            self._bars.pop(name).close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line of each bar, so that what is said next has one of its own."""
        for name in list(self._bars):
            self._close(name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of the whole run, at the step where it resumes."""
        self._open("Training", trainer.estimated_stepping_batches, initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one optimizer step."""
        bar = self._bars["Training"]
        if self._metrics is not None and self._metrics.last:
            last = self._metrics.last
            rate = last["train/supervised_tokens_per_second"]
            told = [f"loss {last['train/loss']:.3f}", f"{rate:,.0f} supervised tokens/s"]
            if "train/utilization" in last:
                told.append(f"{last['train/utilization']:.0%} of peak")
            bar.set_postfix_str(", ".join([*told, f"{last['train/peak_memory_gib']:.1f} GiB"]), refresh=False)
        bar.update(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close("Training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar that vanishes when the validation is over."""
        self._open("Validation", sum(trainer.num_val_batches), leave=False)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        self._bars["Validation"].update(1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar and write the result as a line."""
        self._close("Validation")
        result: Any = pl_module.validation_result
        if self._enabled and result is not None:
            line = f"step {result.step}: validation loss {result.loss:.4f}, perplexity {result.perplexity:.2f}"
            tqdm.write(line, file=sys.stderr)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of the prediction."""
        self._open("Predicting", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Advance by one batch."""
        self._bars["Predicting"].update(1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close("Predicting")
