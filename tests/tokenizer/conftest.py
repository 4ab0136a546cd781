import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from vocabulary_models import LINES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `tokenizer` is a folder of programs and not installed


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bilingual text, half of it as lines and half as documents with newlines."""
    folder = tmp_path_factory.mktemp("corpus")
    text, documents = folder / "lines.txt", folder / "documents.jsonl"
    lines = LINES.splitlines(keepends=True)
    text.write_text("".join(lines[::2]), encoding="utf-8")
    rows = [{"text": "".join(lines[start : start + 6 : 2])} for start in range(1, len(lines), 6)]
    documents.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [text, documents]


@pytest.fixture(scope="session")
def run_tokenizer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m tokenizer …` as a user does, from the repository root."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tokenizer", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def call_tokenizer(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Like `run_tokenizer`, within this process: much faster."""
    from tokenizer.__main__ import main

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call
