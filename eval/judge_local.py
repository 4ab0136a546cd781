"""A local model as the judge: the same prompts through `ift predict`, and the same folder shape as an endpoint's.

`python -m ift predict` runs as a program of its own, so that nothing here needs torch; it streams and continues its own
folder, DIR/predict, from which the replies are taken.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.judge_folder import JudgeFolder
from eval.output import prompts_hash
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, read_predictions


@dataclass(frozen=True)
class LocalJudge:
    """Which model judges, and how `ift predict` is called."""

    run: str | None
    """A run folder, or `None` where `base` is given."""
    base: str | None
    """A base model's folder or hub id."""
    more: tuple[str, ...] = ()
    """Further arguments of `ift predict`."""

    def arguments(self, prompts: Path, output: Path) -> list[str]:
        """Return the command line."""
        model = ["--run", self.run] if self.run is not None else ["--model.base", str(self.base)]
        data = ["--data.path", str(prompts), "--output_dir", str(output)]
        return [sys.executable, "-m", "ift", "predict", *model, *data, *self.more]

    def identity(self, prompts: Sequence[PromptRecord]) -> dict[str, Any]:
        """Return what decides the replies; `ift predict` writes down the rest itself."""
        return {
            "judge": "local",
            "run": self.run,
            "base": self.base,
            "predict_arguments": list(self.more),
            "prompts": len(prompts),
            "prompts_sha256": prompts_hash(prompts),
        }


def ask_local_judge(prompts: Sequence[PromptRecord], output: Path, *, judge: LocalJudge) -> list[Prediction]:
    """Let a local model answer, and return one reply per prompt, in their order.

    Raises:
        UserError: the folder belongs to another task, or `ift predict` fails; the same command continues.
    """
    folder, identity = JudgeFolder(output), judge.identity(prompts)
    done = folder.answered(identity)
    if folder.is_finished():
        return folder.replies()
    with folder.open(identity, prompts):
        predicted = output / "predict"
        if not _is_finished(predicted):
            command = judge.arguments(folder.prompts, predicted)
            print(" ".join(command[1:]), file=sys.stderr)
            code = subprocess.run(command, env=dict(os.environ), check=False).returncode
            if code != 0:
                if not predicted.exists():  # nothing is answered: other settings may be tried in the same folder
                    folder.discard()
                raise UserError(f"ift predict ended with code {code}. The same command begins or continues.")
        about = {"key": None, "attempts": 1, "cached": False, "prompt_tokens": None, "completion_tokens": None}
        replies = [
            replace(one, meta={**one.meta, "judge": about}) for one in read_predictions(predicted / "predictions.jsonl")
        ]
        folder.add([reply for reply in replies if reply.id not in done])
        order = [prompt.id for prompt in prompts]
        folder.finish(order, {"prompts": len(order), "answered": len(replies), "failed": 0})
    return folder.replies()


def _is_finished(predicted: Path) -> bool:
    about = predicted / "predict.json"
    return about.is_file() and '"finished"' in about.read_text(encoding="utf-8")
