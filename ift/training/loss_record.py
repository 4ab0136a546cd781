"""`RUN/losses.jsonl`: the exact loss of every optimizer step, by which two runs can be compared to the last bit."""

import json
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ift.artifacts import TEMPORARY, RunFolder
from ift.data.steps import Step


class LossRecord(Callback):
    """Writes one line per step: its number, its loss in nats per supervised token, and those tokens.

    What the steps summed up stays on the device until a step is logged or a checkpoint is written, and is then added
    up over all ranks at once: no step waits for the device that would not do so anyway.

    Args:
        run: the folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._sums: list[torch.Tensor] = []
        self._steps: list[tuple[int, int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what lies beyond the checkpoint that the run goes on from; another run's leaves nothing here."""
        if trainer.is_global_zero and self._run.losses.is_file():
            lines = self._run.losses.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= trainer.global_step]
            temporary = self._run.losses.with_name(self._run.losses.name + TEMPORARY)
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self._run.losses)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Keep the sum of a step, and write where a step is logged."""
        self._sums.append(outputs["loss_sum"])
        self._steps.append((trainer.global_step, batch.num_supervised))
        every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write up to the checkpoint, on every rank: a run resumed from it begins after it."""
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not self._steps:
            return
        totals: Any = trainer.strategy.reduce(torch.stack(self._sums), reduce_op="sum")
        if trainer.is_global_zero:
            self._run.check_present()
            with self._run.losses.open("a", encoding="utf-8") as file:
                for (step, tokens), total in zip(self._steps, totals.tolist(), strict=True):
                    loss = total / max(1, tokens)
                    kept = loss if math.isfinite(loss) else str(loss)  # JSON has no word for it
                    line = {"step": step, "loss": kept, "supervised_tokens": tokens}
                    file.write(json.dumps(line) + "\n")
        self._sums, self._steps = [], []
