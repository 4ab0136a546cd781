import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 (its log handler keeps the stderr of its import, which must outlive one test)
import pytest
from tiny import ROOT

from ift.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Ift = Callable[..., Outcome]


@pytest.fixture
def ift(capsys: pytest.CaptureFixture[str]) -> Ift:
    """Runs a command in this process, as the console script does."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(ift: Ift) -> Callable[..., str]:
    """Runs a command that must fail with a clear message of one screen, and returns the message."""

    def run(*arguments: object) -> str:
        outcome = ift(*arguments)
        assert outcome.code == 2, outcome
        message = outcome.err[outcome.err.index("error: ") :]
        assert "Traceback" not in outcome.err
        assert len(message.splitlines()) <= 12 and len(message) <= 2000
        return message

    return run


@pytest.fixture
def base_without_weights(base: Path, tmp_path: Path) -> Path:
    """A base model whose weights cannot be loaded: whatever is refused with it was refused before."""
    folder = tmp_path / "no_weights"
    folder.mkdir()
    for path in base.iterdir():
        content = b"not weights" if path.suffix == ".safetensors" else path.read_bytes()
        (folder / path.name).write_bytes(content)
    return folder


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the repository."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
