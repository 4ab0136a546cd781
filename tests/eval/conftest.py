import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `eval` is a folder of programs and not installed

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_eval() -> Run:
    """Runs `python -m eval …` as a user does, from the repository root."""

    def run(*arguments: object, cwd: Path = ROOT, environment: dict[str, str] | None = None):
        command = [sys.executable, "-m", "eval", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def quiz_file(tmp_path: Path) -> Path:
    """Two categories; one question with two answers, and one with an answer that is no option."""
    options = "A:一\nB:二\nC:三\nD:四"
    rows = [
        {"类别": "医疗", "题目": "问一", "选项": options, "答案": "A"},
        {"类别": "医疗", "题目": "问二", "选项": options, "答案": "Ｂ"},
        {"类别": "法律", "题目": "问三", "选项": "A:是\nB:否", "答案": "B\n"},
        {"类别": "法律", "题目": "问四", "选项": options, "答案": "AC"},
        {"类别": "法律", "题目": "问五", "选项": "A：甲\nB：乙", "答案": "D"},
    ]
    path = tmp_path / "quiz.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def alpaca_file(tmp_path: Path) -> Path:
    rows = [
        {"instruction": "Say yes", "input": "", "output": "Yes", "category": "short"},
        {"id": "own-7", "instruction": "翻译", "input": "猫", "output": "the  cat\n", "category": "short"},
        {"instruction": "Nothing", "output": " "},
        {"instruction": "数", "input": "一", "output": "１２"},
    ]
    path = tmp_path / "alpaca.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    return path
