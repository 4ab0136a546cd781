"""Where predictions go: streamed, in order, and continued after a kill without repeating or losing one.

DIR/predict.json          what was asked of which model; a folder is continued only by exactly the same
DIR/predictions.jsonl     one `Prediction` per line, in the order of the prompts
DIR/predictions.rankN.jsonl   the lines of further ranks while they run; joined at the end
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from ift.artifacts import write_json
from ift.errors import UserError
from ift.records import Prediction


class PredictionFolder:
    """The output folder of `ift predict`.

    Args:
        root: the folder.
        model: where the model lies, by what each path is of. It is told to readers and decides nothing: a model that
            has moved continues a folder all the same.
    """

    def __init__(self, root: str | Path, model: dict[str, str | None] | None = None) -> None:
        self.root = Path(root).expanduser()
        self._told = {"model": model} if model is not None else {}
        self.about = self.root / "predict.json"
        self.predictions = self.root / "predictions.jsonl"

    def part(self, rank: int) -> Path:
        """Return the file that a rank appends to."""
        return self.predictions if rank == 0 else self.root / f"predictions.rank{rank}.jsonl"

    def answered(self, identity: dict[str, Any], *, mend: bool) -> set[str]:
        """Return the ids that an interrupted run of the same task has answered.

        Args:
            identity: all that decides the predictions.
            mend: cut off a last line torn by a kill; only one process may.

        Raises:
            UserError: the folder holds something else, another task, or a finished one.
        """
        if self.root.exists() and not self.about.is_file() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(f"output_dir: '{self.root}' exists and holds no predictions of ift. Give another folder.")
        if self.about.is_file():
            self._check_same(json.loads(self.about.read_text(encoding="utf-8")), identity)
        return {line["id"] for path in self._parts() for line in _whole_lines(path, mend=mend)}

    def begin(self, identity: dict[str, Any]) -> None:
        """Make the folder and write down the task, unless they are there already."""
        if not self.about.is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.about, {"status": "running", "identity": identity, **self._told})

    def finish(self, order: Iterable[str]) -> int:
        """Join the ranks' lines in the order of the prompts, mark the folder finished, return how many there are."""
        lines = {line["id"]: line for path in self._parts() for line in _whole_lines(path, mend=False)}
        ordered = [lines[name] for name in order]
        temporary = self.predictions.with_name(self.predictions.name + ".tmp")
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered)
        os.replace(temporary, self.predictions)
        for path in self._parts():
            if path != self.predictions:
                path.unlink()
        about = json.loads(self.about.read_text(encoding="utf-8"))
        write_json(self.about, {**about, "status": "finished", **self._told, "predictions": len(ordered)})
        return len(ordered)

    def _parts(self) -> list[Path]:
        return sorted(self.root.glob("predictions*.jsonl"))

    def _check_same(self, about: dict[str, Any], identity: dict[str, Any]) -> None:
        if about["identity"] != identity:
            names = dict.fromkeys([*identity, *about["identity"]])
            differing = [name for name in names if about["identity"].get(name) != identity.get(name)]
            raise UserError(
                f"output_dir: '{self.root}' holds predictions of another task (differing: {', '.join(differing)}), and "
                "nothing is overwritten. Give another folder."
            )
        if about["status"] == "finished":
            raise UserError(
                f"output_dir: '{self.root}' already holds all {about['predictions']} predictions of this task; nothing "
                "is overwritten. Give another folder to predict again."
            )


def _whole_lines(path: Path, *, mend: bool) -> list[dict[str, Any]]:
    """Return the complete lines of a file; a last line torn by a kill is left out, and cut off where `mend`."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if mend and end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    return [json.loads(line) for line in content[:end].splitlines()]


class PredictionWriter(Callback):
    """Appends each batch's predictions to this rank's file.

    Args:
        folder: where.
        identity: all that decides the predictions.
        done: ids that are there already.
    """

    def __init__(self, folder: PredictionFolder, identity: dict[str, Any], done: set[str]) -> None:
        self._folder, self._identity, self._done = folder, identity, done
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's file, in a folder made now that the model is there: a failure before leaves nothing."""
        if trainer.is_global_zero:
            self._folder.begin(self._identity)
        trainer.strategy.barrier("prediction folder made")
        part = self._folder.part(trainer.global_rank)
        self._file = part.open("a", encoding="utf-8", errors="backslashreplace")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the new ones and hand them to the operating system."""
        predictions: list[Prediction] = outputs
        assert self._file is not None
        for prediction in predictions:
            if prediction.id not in self._done:
                self._file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file; when all ranks have, the first joins them."""
        assert self._file is not None
        self._file.close()
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._folder.finish([prompt.id for prompt in datamodule.prompts])
