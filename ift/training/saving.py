"""`RunTrainer`: Lightning's Trainer, with a begin and an end of a session, and checkpoints that all ranks agree on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ift.errors import LocalError, UserError
from ift.training.schedule import settle_learning_rates


class RunTrainer(Trainer):
    """Lightning's Trainer with two more hooks of callbacks, and checkpoints that are written on all ranks or on none.

    `on_session_start(trainer, pl_module)` comes once a checkpoint is loaded, `on_session_end` while the model is still
    on its device; both also where a resumed run has no step left, for which Lightning calls no hook of training.
    """

    def _run_stage(self) -> Any:
        schedulers: list[Any] = [one.scheduler for one in self.lr_scheduler_configs]  # none but in `fit`
        settle_learning_rates(schedulers)
        self._call("on_session_start")
        results = super()._run_stage()
        self._call("on_session_end")
        return results

    def _call(self, hook: str) -> None:
        callbacks: list[Any] = self.callbacks if self.state.fn == "fit" else []  # type: ignore[attr-defined]
        for callback in callbacks:
            if (method := getattr(callback, hook, None)) is not None:
                method(self, self.lightning_module)

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; all ranks call it.

        Raises:
            UserError: it could not be written, on any rank.
        """
        checkpoint = self._checkpoint_connector.dump_checkpoint(weights_only)
        failure: Exception | None = None
        try:
            self.strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        except Exception as error:  # whatever it is, the other ranks must hear of it before this one ends
            failure = error
        if not self.strategy.reduce_boolean_decision(failure is not None, all=False):
            return  # every rank has answered, which is the barrier that Lightning puts here
        if failure is not None and not isinstance(failure, OSError):
            raise failure
        raise _error(Path(filepath), failure) from failure


def _error(path: Path, failure: OSError | None) -> UserError:
    if failure is None:
        return UserError(f"checkpoint: another rank could not write '{path}'; its own message says why.")
    reason = failure.strerror or str(failure)
    whole = [other for other in path.parent.glob("*.ckpt") if other.exists()]
    last = max(whole, key=lambda other: other.stat().st_mtime).name if whole else None
    kept = f"The last whole checkpoint is '{last}'; mend" if last else "There is no earlier one in its folder; mend"
    return LocalError(
        f"checkpoint: '{path}' could not be written: {reason}. {kept} that and go on with --ckpt_path last."
    )
