"""What is measured of every step, and where it is told: the logger and the progress bar."""

import time
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ift.data.steps import Step
from ift.training.matmul_peak import MatmulPeak, matmul_peak
from ift.training.session_start import run_start
from ift.training.throughput import FirstStep, Work, compute_dtype, peak_memory, work_of

KEY = "ift_metrics"


class StepMetrics(Callback):
    """Logs loss, perplexity, gradient norm, learning rate, rates, utilisation, memory and padding, at optimizer steps.

    The loss of a step is exact: summed over all ranks and divided by the supervised tokens of the whole step. Rates are
    over the time inside the steps since the last entry: fetching data, validation and checkpoints are not counted. The
    x axis is the number of optimizer steps done; the last step is always logged.

    Rates are of all ranks together: `supervised_tokens_per_second`; `tokens_per_second`, real ones;
    `padded_tokens_per_second`, with the padding; `model_flops_per_second` and `hardware_flops_per_second`, as
    `ift.models.flops` counts them; `utilization`, model operations over the fastest matrix products that the devices
    do (`matmul_peak`). `peak_memory_gib` is the largest of all ranks: resident memory on a CPU, what torch allocated on
    a GPU, where `reserved_memory_gib` is what it holds.
    """

    def __init__(self) -> None:
        self._began = run_start()
        self._first = FirstStep()
        self.last: dict[str, float] = {}
        self.last_step = 0
        self.seconds_to_first_step: float | None = None
        self.peak: MatmulPeak | None = None
        self.total = Work()
        self._restart()

    def _restart(self) -> None:
        self._span = Work()
        self._pending: tuple[dict[str, Any], Step] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Step, batch_idx: int) -> None:
        """Start the clock."""
        if self.seconds_to_first_step is None:
            self._first.begin(pl_module)
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Count, and log where it is due."""
        if self.seconds_to_first_step is None:
            self._end_first(trainer, pl_module, batch)
        else:
            self._seconds = time.monotonic() - self._started
        self._span.add(work_of(batch, self._first.model, self._seconds))
        self._pending = (outputs, batch)
        every = self._every(trainer)
        # The last step as well: killed after its checkpoint, a run has none left in which it could be logged.
        last = trainer.global_step >= trainer.estimated_stepping_batches
        if every and (trainer.global_step % every == 0 or trainer.global_step == 1 or last):
            self._log(trainer, pl_module)

    def _end_first(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        """Take the time of the first step of the session, and what steps cost; then measure what is possible."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds = time.monotonic() - self._started
        self.seconds_to_first_step = time.time() - self._began
        self._first.end(pl_module, step)
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            dtype = compute_dtype(pl_module, str(trainer.precision))
            try:
                self.peak = matmul_peak(pl_module.device, dtype, folder=data.cache_dir)
            except torch.OutOfMemoryError:  # the model leaves no room for the matrices: nothing is said of utilisation
                torch.cuda.empty_cache()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last step, whatever its number."""
        if self._pending is not None:
            self._log(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring to disk what was logged, and keep what is to be: a run resumed from here must not miss it."""
        span = asdict(self._summed(trainer, pl_module))
        checkpoint[KEY] = {"span": span, "last": self.last, "last_step": self.last_step}
        experiment: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(experiment, "flush"):
            experiment.flush()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on counting towards the next entry; what was summed over all ranks is the first one's now."""
        if trainer.state.fn == "fit" and (state := checkpoint.get(KEY)) is not None:
            span = Work(**state["span"])
            if not trainer.is_global_zero:
                span.padded, span.pairs = 0, dict.fromkeys(span.pairs, 0)
            self._span, self.last, self.last_step = span, state["last"], state["last_step"]
            self.total = Work(**state["span"]).taken_back()  # by an earlier session; the next entry adds it

    def end_early(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what was done since the last entry, after the session's last checkpoint; all ranks must call it."""
        self.total.add(self._summed(trainer, pl_module))

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
        span = self._summed(trainer, pl_module)
        self.total.add(span)
        loss = float(total) / max(1, step.num_supervised)
        pl_module.bad_steps.check_finite(pl_module)
        rates = span.rates(self._first.model, self.peak, world_size=trainer.world_size)
        self.last = {
            "train/loss": loss,
            "train/perplexity": float(torch.tensor(loss).exp()),
            "train/gradient_norm": float(outputs["gradient_norm"]),
            "train/learning_rate": outputs["learning_rate"],
            **{f"train/{name}": value for name, value in rates.items()},
            "train/padding_share": span.padded / (span.padded + span.tokens),
            **{f"train/{name}": value for name, value in self._memory(trainer, pl_module).items()},
        }
        self.last_step = trainer.global_step
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.last, step=trainer.global_step)
        self._restart()

    def _summed(self, trainer: Trainer, pl_module: Any) -> Work:
        """Return the span since the last entry with what only ranks know summed over them."""
        span, windows = self._span, list(self._span.pairs)
        own = torch.tensor([span.padded, *span.pairs.values()], dtype=torch.int64, device=pl_module.device)
        summed: Any = trainer.strategy.reduce(own, reduce_op="sum")
        padded, *pairs = summed.tolist()
        return Work(span.seconds, span.supervised, span.tokens, padded, dict(zip(windows, pairs, strict=True)))

    @staticmethod
    def _memory(trainer: Trainer, pl_module: Any) -> dict[str, float]:
        found = peak_memory(pl_module.device)
        own = torch.tensor(list(found.values()), dtype=torch.float64, device=pl_module.device)
        largest: Any = trainer.strategy.reduce(own, reduce_op="max") if trainer.world_size > 1 else own
        return dict(zip(found, largest.tolist(), strict=True))

    def describe(self, world_size: int) -> dict[str, Any]:
        """Return what the manifest says of a finished session.

        Args:
            world_size: number of devices.
        """
        rates = self.total.rates(self._first.model, self.peak, world_size=world_size)
        memory = {name: self.last.get(f"train/{name}") for name in ("peak_memory_gib", "reserved_memory_gib")}
        flops = self.total.flops(self._first.model) if self._first.model is not None else None
        return {
            "training_seconds": round(self.total.seconds, 3),
            "seconds_to_first_step": round(self.seconds_to_first_step or 0.0, 3),
            "supervised_tokens": self.total.supervised,
            "tokens": self.total.tokens,
            "padding_share": round(self.total.padded / max(1, self.total.padded + self.total.tokens), 6),
            **{name: round(value, 4 if name == "utilization" else 1) for name, value in rates.items()},
            "flops": asdict(flops) if flops is not None else None,
            "matmul_peak": asdict(self.peak) if self.peak is not None else None,
            **{name: round(value, 3) for name, value in memory.items() if value is not None},
        }
