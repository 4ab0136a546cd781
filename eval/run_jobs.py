"""One benchmark asked of one model, in a folder of its own that is gone on with after a kill.

DIR/run.json       what is asked of which model
DIR/prompts.jsonl  as `prepare` writes them
DIR/predictions/   of `ift predict`
DIR/report.json, report.md, items.jsonl
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmark import Asked, Benchmark
from ift.errors import UserError

_SECONDS_TO_END = 15.0
"""How long an interrupted `ift predict` may take to end."""


@dataclass(frozen=True)
class System:
    """A model to ask."""

    name: str
    """Of its folder; empty where there is one system only."""
    arguments: tuple[str, ...]
    """For `ift predict`."""


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    benchmark: Benchmark
    data: Path
    asked: Asked


@dataclass(frozen=True)
class Job:
    """One benchmark asked of one system, in a folder of its own."""

    task: Task
    system: System
    folder: Path

    @property
    def predictions(self) -> Path:
        """The folder of `ift predict`."""
        return self.folder / "predictions"

    @property
    def label(self) -> str:
        """The system's name in lists of several."""
        return self.system.name or Path(self.system.arguments[1]).resolve().name

    @property
    def in_turns(self) -> bool:
        """Whether conversations were asked, of which one pass answers the first turn only."""
        with (self.folder / "prompts.jsonl").open(encoding="utf-8") as file:
            return any("turns" in json.loads(line)["meta"] for line in file)

    @property
    def answers(self) -> Path:
        """The file with all answers."""
        return self.folder / "answers.jsonl" if self.in_turns else self.predictions / "predictions.jsonl"

    @property
    def named_answers(self) -> str:
        """The file as `--predictions` takes it; behind a name, a path may hold an equals sign."""
        return f"{self.label}={self.answers}"

    @property
    def has_answers(self) -> bool:
        """Whether anything was answered or scored; before that, as after a refusal, nothing in the folder is lost."""
        answered = self.predictions.is_dir() and any(self.predictions.iterdir())
        return answered or self.is_scored

    @property
    def is_scored(self) -> bool:
        """Whether the report is there."""
        return (self.folder / "report.json").is_file()


def check_folder(job: Job, about: dict[str, Any], prompts: Path) -> None:
    """Refuse a folder that holds anything but the beginning of this job, or of one that nothing was answered in.

    Args:
        job: that is to be done.
        about: what `run.json` holds.
        prompts: the file that `prompts.jsonl` is a copy of.

    Raises:
        UserError: there is something else.
    """
    known, own = job.folder / "run.json", job.folder / "prompts.jsonl"
    if not known.is_file():
        if job.folder.exists() and (not job.folder.is_dir() or any(job.folder.iterdir())):
            raise UserError(f"--output: '{job.folder}' exists and holds no run of a benchmark. Give another folder.")
        return
    found = json.loads(known.read_text(encoding="utf-8"))
    differing = [name for name in {**about, **found} if about.get(name) != found.get(name)]
    if own.is_file() and own.read_bytes() != prompts.read_bytes():
        differing.append("prompts")
    if differing and job.has_answers:
        raise UserError(
            f"--output: '{job.folder}' holds another run of a benchmark (differing: {', '.join(differing)}), and "
            "nothing is overwritten. Give another folder, or the same arguments and data as before."
        )


def begin(job: Job, about: dict[str, Any], prompts: Path) -> None:
    """Write what is asked, unless it is there and answered; arguments as of `check_folder`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    known, own = job.folder / "run.json", job.folder / "prompts.jsonl"
    if not known.is_file() or not job.has_answers:
        temporary = known.with_name("run.json.tmp")
        temporary.write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, known)
    if not own.is_file() or not job.has_answers:
        temporary = own.with_name("prompts.jsonl.tmp")
        shutil.copyfile(prompts, temporary)
        os.replace(temporary, own)


def predict(job: Job, further: Sequence[str]) -> None:
    """Have `ift predict` answer what is not answered yet.

    Args:
        job: that has begun.
        further: more arguments of `ift predict`.

    Raises:
        SystemExit: it failed, with its exit code; it has said why.
    """
    about = job.predictions / "predict.json"
    if about.is_file() and json.loads(about.read_text(encoding="utf-8"))["status"] == "finished":
        print(f"{job.predictions}: predicted already")
        return
    places = ["--data.path", str(job.folder / "prompts.jsonl"), "--output_dir", str(job.predictions)]
    sys.stdout.flush()
    code = _call([sys.executable, "-m", "ift", "predict", *job.system.arguments, *further, *places])
    if code not in (0, 2, 130):  # after 2 and 130 it has said in one line what there is to say
        print(f"error: `ift predict` ended with code {code}, and nothing was scored.", file=sys.stderr)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def _call(command: Sequence[str]) -> int:
    """Run a program to its end, which comes with ours at the latest, and return its exit code."""
    process = subprocess.Popen(command)

    def stop(*_: object) -> None:
        process.send_signal(signal.SIGINT)  # Lightning lets SIGTERM pass in prediction
        raise SystemExit(128 + signal.SIGTERM)

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait()
    except BaseException:  # an interruption from the keyboard goes to both
        try:
            process.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
