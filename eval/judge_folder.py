"""Where a judge's replies go: each on disk as soon as it is there, and continued after a kill without paying twice.

DIR/judge.json          what is asked of which judge, `running` or `finished`, and the counts
DIR/prompts.jsonl       the judge's prompts, as `ift predict` would read them
DIR/predictions.jsonl   one `Prediction` per reply: `response` verbatim, `meta` of the prompt and `judge` (attempts, …)
DIR/failures.jsonl      the prompts without a reply, with the reason; written anew by each run
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ift.errors import UserError
from ift.records import Prediction, PromptRecord, read_predictions, write_jsonl


@dataclass(frozen=True)
class Failure:
    """A prompt that got no reply."""

    id: str
    reason: str
    attempts: int


class JudgeFolder:
    """The output folder of `python -m eval judge`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.about = root / "judge.json"
        self.prompts = root / "prompts.jsonl"
        self.predictions = root / "predictions.jsonl"
        self.failures = root / "failures.jsonl"

    def is_finished(self) -> bool:
        """Return whether all replies are there."""
        return self.about.is_file() and self._about()["status"] == "finished"

    def answered(self, identity: Mapping[str, Any]) -> set[str]:
        """Return the ids that an interrupted run of the same task has answered; changes nothing.

        Raises:
            UserError: the folder holds something else, or the replies of another task.
        """
        if not self.about.is_file():
            if self.root.exists() and (not self.root.is_dir() or any(self._others())):
                raise UserError(f"--output: '{self.root}' exists and holds no judge's replies. Give another folder.")
            return set()
        known = self._about()["identity"]
        if known != identity:
            differing = [name for name in {**identity, **known} if known.get(name) != identity.get(name)]
            raise UserError(
                f"--output: '{self.root}' holds replies to another task (differing: {', '.join(differing)}), and "
                "nothing is overwritten. Give another folder."
            )
        return {line["id"] for line in _whole_lines(self.predictions)}

    @contextmanager
    def open(self, identity: Mapping[str, Any], prompts: Sequence[PromptRecord]) -> Iterator[None]:
        """Make the folder or mend a torn last line, and keep other processes out meanwhile.

        Raises:
            UserError: another process is writing here.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"--output: another process is asking for '{self.root}'. Wait for it.") from None
        try:
            if not self.about.is_file():
                self._write_about({"status": "running", "identity": dict(identity)})
            if not self.prompts.is_file():
                write_jsonl(self.prompts, prompts)
            _mend(self.predictions)
            self.failures.write_text("", encoding="utf-8")
            yield
        finally:
            lock.release()
            (self.root / ".lock").unlink(missing_ok=True)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append replies; they are on disk when this returns."""
        _append(self.predictions, [asdict(prediction) for prediction in predictions])

    def fail(self, failures: Sequence[Failure]) -> None:
        """Append prompts without a reply."""
        _append(self.failures, [asdict(failure) for failure in failures])

    def finish(self, order: Sequence[str], counts: Mapping[str, Any]) -> None:
        """Put the replies into the order of the prompts and mark the folder finished."""
        replies = {prediction.id: prediction for prediction in read_predictions(self.predictions)}
        sorted_file = self.root / "predictions.sorted.jsonl"
        sorted_file.unlink(missing_ok=True)
        write_jsonl(sorted_file, [replies[name] for name in order])
        _synchronize(sorted_file)
        os.replace(sorted_file, self.predictions)
        self.note_counts(counts, status="finished")

    def discard(self) -> None:
        """Remove what `open` wrote, where no reply is there yet."""
        if not self.replies():
            for path in (self.about, self.prompts, self.predictions, self.failures):
                path.unlink(missing_ok=True)

    def note_counts(self, counts: Mapping[str, Any], *, status: str) -> None:
        """Write down the counts so far."""
        self._write_about({**self._about(), "status": status, "counts": dict(counts)})

    def replies(self) -> list[Prediction]:
        """Return the replies that are there."""
        return read_predictions(self.predictions) if self.predictions.is_file() else []

    def _about(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.about.read_text(encoding="utf-8"))
        return value

    def _write_about(self, value: Mapping[str, Any]) -> None:
        temporary = self.about.with_name("judge.json.tmp")
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        _synchronize(temporary)
        os.replace(temporary, self.about)

    def _others(self) -> list[Path]:
        """Return what lies in the folder and is not the trace of a run killed before it wrote judge.json."""
        return [path for path in self.root.iterdir() if path.name not in (".lock", "judge.json.tmp")]


def _append(path: Path, objects: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects))
        file.flush()
        os.fsync(file.fileno())


def _synchronize(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes() if path.is_file() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _mend(path: Path) -> None:
    """Cut off a last line torn by a kill; its reply is in the cache or is asked for again."""
    content = path.read_bytes() if path.is_file() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
