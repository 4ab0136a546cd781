"""Makes up for a validation that was due when a run ended: a checkpoint of that step was written before it.

Lightning counts such a validation as made when it resumes, so that its point would be missing from the curves.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class PendingValidation(Callback):
    """Keeps in every checkpoint whether the validation of its step is still to be made, and makes it on resuming."""

    def __init__(self) -> None:
        self._trainer: Any = None
        self._is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come before Lightning's loop, which is over at once where no step is left to train."""
        if stage != "fit" or self._trainer is not None:
            return
        self._trainer = trainer
        loop: Any = trainer.fit_loop
        run = loop.run

        def validate_and_run() -> None:
            if self._is_due:
                self._is_due = False
                self._validate()
            run()

        loop.run = validate_and_run

    def state_dict(self) -> dict[str, Any]:
        """Return whether the validation of this step is due and not made."""
        return {"is_due": self._is_due_now()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was due when the checkpoint was written."""
        self._is_due = bool(state_dict["is_due"])

    def _is_due_now(self) -> bool:
        trainer = self._trainer
        if trainer is None or trainer.state.fn != "fit" or trainer.global_step == 0:
            return False
        result = trainer.lightning_module.validation_result
        if result is not None and result.step == trainer.global_step:
            return False
        return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))

    def _validate(self) -> None:
        """Validate as Lightning does behind a step, and leave its loop as it was loaded."""
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop.val_loop
        restarting = loop.restarting
        loop.restarting = False
        trainer.fit_loop.setup_data()
        trainer.validating = True
        try:
            loop.run()
        finally:
            trainer.training = True
        loop.restarting, loop._has_run = restarting, False
