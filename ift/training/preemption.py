"""Ends a run between two steps when a signal asks for it: saved, noted in the manifest, and requeued under SLURM.

All ranks decide together, over a group of their own that needs no device: a signal may have reached one of them only,
and at another moment than the others. The same exchange is what notices a rank that is gone or stands still.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from ift import interruptions
from ift.artifacts import RunFolder
from ift.errors import UserError
from ift.interruptions import SIGNALS, Interrupted
from ift.training.run_folder import RunFolderWriter

CHECKPOINT_NAME = "preempted-step-{step:08d}.ckpt"
"""In the run's checkpoint folder; a newer checkpoint makes it superfluous."""


class Preemption(Callback):
    """Looks for signals after every step and every batch of a validation. The last of all callbacks.

    Args:
        run: the run folder.
        timeout: of the exchange between ranks.
    """

    def __init__(self, run: RunFolder, timeout: timedelta) -> None:
        self._folder = run.checkpoints
        self._timeout = timeout
        self._group: Any = None
        self._resumed_at = 0
        self._watches = False

    def on_session_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare where ranks begin, before anything is done together."""
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=self._timeout)
            self._check_same_place(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait for the end of a step from now on."""
        self._resumed_at = trainer.global_step
        interruptions.defer(True)
        self._watches = True  # on all ranks, whatever one of them has received

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave where a signal asks for it; else forget a checkpoint that has become superfluous."""
        if signum := self._asked():
            self._leave(trainer, signum)
        if trainer.is_global_zero and self._resumed_at < self._last_saved(trainer):
            self._resumed_at = trainer.global_step
            for path in self._folder.glob("preempted-step-*.ckpt"):
                trainer.strategy.remove_checkpoint(path)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Leave a validation: it is made again, from its beginning, before the next step."""
        if not self._watches:
            return
        if signum := self._asked():
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress
            # As after the step itself, where nothing of the validation has begun.
            for counts in (progress.total, progress.current):
                counts.completed = min(counts.completed, counts.processed - 1)
            self._leave(trainer, signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end the export at once: it is made again."""
        interruptions.defer(False)
        self._watches = False

    def _asked(self) -> int:
        """Return the signal that asks most of all ranks, or 0."""
        level = interruptions.received()
        if self._group is not None:
            asked = torch.tensor([level])
            distributed.all_reduce(asked, op=distributed.ReduceOp.MAX, group=self._group)
            level = int(asked)
        return int(SIGNALS[level - 1]) if level else 0

    def _leave(self, trainer: Trainer, signum: int) -> None:
        step = trainer.global_step
        if self._last_saved(trainer) == step:
            told = interruptions.way_back(self._folder, step)
        else:
            path = self._folder / CHECKPOINT_NAME.format(step=step)
            trainer.save_checkpoint(path)
            told = interruptions.way_back(path, step)
        _note_in_manifest(trainer, signum)
        if trainer.is_global_zero:
            told = f"{told} {interruptions.requeue(signum)}".strip()
        if self._group is not None:
            # srun ends the job with the first process that fails: none may before the first one has asked SLURM.
            distributed.all_reduce(torch.zeros(1), group=self._group)
        raise Interrupted(signum, told, requeued=True)

    def _last_saved(self, trainer: Any) -> int:
        """Return the step of the newest checkpoint in the run's folder that this session has saved to resume from."""
        steps = [
            one._last_global_step_saved
            for one in trainer.callbacks
            if isinstance(one, ModelCheckpoint)
            and not one.save_weights_only
            and Path(str(one.dirpath)).resolve() == self._folder.resolve()
        ]
        return max(steps, default=0)

    def _check_same_place(self, trainer: Trainer) -> None:
        """Refuse ranks that begin at different steps, as where a node does not see the run folder of the others."""
        places = [torch.zeros(1, dtype=torch.int64) for _ in range(trainer.world_size)]
        distributed.all_gather(places, torch.tensor([trainer.global_step]), group=self._group)
        steps = [int(place) for place in places]
        if len(set(steps)) > 1:
            raise UserError(
                f"run_dir: the processes would go on at different steps ({', '.join(map(str, steps))} by rank), so "
                f"they do not see the same '{self._folder}'. Put run_dir on a file system that all nodes "
                "share."
            )


def _note_in_manifest(trainer: Any, signum: int) -> None:
    for callback in trainer.callbacks:
        if isinstance(callback, RunFolderWriter):
            status = "interrupted" if signum == SIGNALS[0] else "preempted"
            callback.interrupt(trainer, trainer.lightning_module, status=status)


def take_signals_from_lightning(trainer: Any) -> None:
    """Keep Lightning from putting its own handlers in the place of ours, and from asking all ranks about them.

    Its handlers save and broadcast inside the handler, where ranks are at different collectives: they wait for each
    other until the time-out. And its question in every step waits for the device, and takes a lost rank for a no.
    """
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    assert callable(connector.register_signal_handlers) and callable(loop._broadcast_sigterm_tensor)
    connector.register_signal_handlers = _do_nothing
    loop._broadcast_sigterm_tensor = _do_nothing


def _do_nothing() -> None:
    return None
