"""`RunCheckpoint`: Lightning's ModelCheckpoint, which after a kill keeps the same files as a run without one."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ift.errors import UserError
from ift.training.pending_validation import is_due

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for steps as they are here, and for runs that are killed.

    What it adds: with a checkpoint, the callback remembers what it has written, so that a file which a killed process
    could no longer remove goes when the run resumes; a checkpoint that a run resumed from is removed when its time has
    come, like any other; a run folder may be moved; and times between checkpoints are kept although the module
    optimizes by itself.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder."""
        super().setup(trainer, pl_module, stage)
        self._written: set[str] = set()
        self._goes_on = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Settle whether it is the run's own checkpoint that is loaded."""
        start = trainer.ckpt_path
        self._goes_on = start is not None and Path(start).resolve().parent == Path(str(self.dirpath)).resolve()

    def on_session_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed process had no time to remove."""
        stale = self._written - {*self.best_k_models, *(getattr(self, name) for name in _PATHS)}
        if self.save_top_k == -1 or not self._goes_on:
            return
        for path in sorted(stale):
            self._written.discard(path)
            if trainer.is_global_zero and os.path.lexists(path):
                self._remove_checkpoint(trainer, path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, or after the validation that follows and gives the monitored metric."""
        # What Lightning does for modules that optimize by themselves looks for weights of before the step, and ignores
        # train_time_interval.
        if not self._is_due(trainer):
            self._save_end(trainer, validates=is_due(trainer, pl_module))
            return
        metrics = self._monitor_candidates(trainer)
        if self.monitor is not None and (self.monitor not in metrics or is_due(trainer, pl_module)):
            self._defer_save_until_validation = True
        elif not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, metrics)
            self._save_last_checkpoint(trainer, metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due, or where the validation ends the run."""
        super().on_validation_end(trainer, pl_module)
        self._save_end(trainer, validates=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due, or where a callback has ended the run with this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_end(trainer, validates=False)

    def _save_end(self, trainer: Trainer, *, validates: bool) -> None:
        """Save the last step of a run, whatever the interval: it can be gone on from, validated and consolidated.

        Args:
            trainer: of the run.
            validates: whether a validation follows, which gives the monitored metric.
        """
        saves = self._every_n_train_steps > 0 or self._every_n_epochs > 0 or self._train_time_interval is not None
        if not saves or not _is_last_step(trainer) or self._should_skip_saving_checkpoint(trainer):
            return
        metrics = self._monitor_candidates(trainer)
        if self.monitor is None:
            self._save_topk_checkpoint(trainer, metrics)
        elif validates:
            self._defer_save_until_validation = True
            return
        self._save_last_checkpoint(trainer, metrics)  # a metric of an earlier step judges no other

    def _is_due(self, trainer: Trainer) -> bool:
        if self._train_time_interval is None:
            return self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        now = time.monotonic()
        waited = now - (self._last_time_checked or now)
        # Clocks differ, and all ranks must save alike.
        due = bool(trainer.strategy.broadcast(waited >= self._train_time_interval.total_seconds()))
        self._last_time_checked = now if due else self._last_time_checked
        return due

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        return not self._defer_save_until_validation and super()._should_save_on_train_epoch_end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where that is asked for and the weights are those between two steps."""
        module: Any = pl_module
        if module.between_steps and not isinstance(exception, UserError | OSError):
            super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next decisions depend on."""
        own = {
            "written": sorted(os.path.basename(path) for path in self._written),
            "last_global_step_saved": self._last_global_step_saved,
            "last_checkpoint_saved": self._last_checkpoint_saved,
            "defer_save_until_validation": self._defer_save_until_validation,
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on deciding where the checkpoint was written; another run's decisions are none of this one."""
        if not self._goes_on:
            return
        own = dict(state_dict)
        self._written = {self._here(name) for name in own.pop("written")}
        self._last_global_step_saved = int(own.pop("last_global_step_saved"))
        self._last_checkpoint_saved = self._here(own.pop("last_checkpoint_saved"))
        self._defer_save_until_validation = bool(own.pop("defer_save_until_validation"))
        best: dict[str, torch.Tensor] = own["best_k_models"]
        own |= {name: self._here(own[name]) for name in _PATHS}
        own |= {"best_k_models": {self._here(name): one for name, one in best.items()}, "dirpath": self.dirpath}
        super().load_state_dict(own)
        # The first checkpoint of a run tells nothing of the copy that is written after it.
        last = self._here(self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION)
        if self.save_last and not self.last_model_path and os.path.lexists(last):
            self.last_model_path = last

    def _here(self, path: str) -> str:
        """Return where a file of this callback lies now, as the run folder may have been moved."""
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else ""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._written.add(filepath)
        # Before saving, because it is part of the state.
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        self._defer_save_until_validation = False  # this is what was put off; a resumed run must not save it again
        super()._save_checkpoint(trainer, filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        self._written.discard(filepath)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # Lightning's own keeps the file that the run resumed from: one more with every kill.
        return previous != current and Path(str(self.dirpath)).absolute() in Path(previous).absolute().parents


def _is_last_step(trainer: Trainer) -> bool:
    """Whether no step follows the one that is just done."""
    loop = trainer.fit_loop
    if 0 < trainer.max_steps <= trainer.global_step or (trainer.should_stop and loop._can_stop_early):
        return True
    epochs = trainer.max_epochs or -1
    return loop.epoch_loop._is_training_done and 0 < epochs <= trainer.current_epoch + 1
