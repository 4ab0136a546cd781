"""The callback by which `training.py` sees when each step of `ift fit` ended."""

from pathlib import Path
from typing import Any

import training_notes
from lightning.pytorch import Callback


class Probe(Callback):
    """Writes a line of JSON for every finished step.

    Args:
        path: of the file; begun anew.
    """

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the step."""
        training_notes.note(self._file, float(outputs["loss_sum"]) / batch.num_supervised, batch.num_supervised)
