import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.extract_command import RULES

Run = Callable[..., subprocess.CompletedProcess[str]]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rule", "reply", "count", "value"),
    [
        ("letters", "所以答案是 C。", 1, "C"),
        ("multi", "正确选项是 A 和 D", 1, "AD"),
        ("mmcu_first_match", "A、C", 1, "AC"),
        ("answers", "（1）B（2）D", 2, ["B", "D"]),
        ("number", "so the answer is 1,250", 1, 1250),
        ("strict_match", "thus\n#### 42", 1, "42"),
        ("flexible_extract", "it is 7 or 8", 1, "8"),
        ("score", "得分：80%", 1, 0.8),
        ("rating", "good. Rating: [[7]]", 1, 7.0),
        ("systems", "System1: 8\nSystem2: 6.5", 2, [8.0, 6.5]),
        ("verdict", "Both are fine. [[C]]", 1, "tie"),
        ("order", "Assistant 2 > Assistant 1 = Assistant 3", 3, [2, 1, 2]),
    ],
)
def test_every_kind_of_reply_is_read(rule: str, reply: str, count: int, value: object) -> None:
    found = RULES[rule](reply, count, "ABCD")
    assert (found.value, found.status) == (value, "read")


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_reads_anything_out_of_nothing(rule: str) -> None:
    found = RULES[rule]("", 2, "ABCD")
    assert found.status != "read"
    assert found.value is None or set(found.value) == {None}  # type: ignore[call-overload]


def test_agreement_is_counted_and_what_differs_is_shown(run_eval: Run, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"reply": "选B", "right": "B"},
        {"reply": "答案是AC", "right": ["AC"]},
        {"reply": "不知道", "right": "D"},
    ]
    file, output = write(tmp_path / "replies.json", rows), tmp_path / "read.jsonl"
    done = run_eval("extract", "letters", file, "--field", "reply", "--expected", "right", "--output", output)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert "3 replies: read 2" in first and second == "as expected: 2 of 3 (66.7 %)" and "[2]: read None" in third
    assert [json.loads(line)["read"] for line in output.read_text(encoding="utf-8").splitlines()] == ["B", "AC", None]
    again = run_eval("extract", "letters", file, "--field", "reply", "--output", output)
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr


def test_records_may_stand_inside_an_object(run_eval: Run, tmp_path: Path) -> None:
    file = tmp_path / "exam.json"
    file.write_text(json.dumps({"example": [{"out": "1. A\n2. D", "want": ["A", "D"]}]}), encoding="utf-8")
    done = run_eval("extract", "answers", file, "--records", "example", "--field", "out", "--expected", "want")
    assert "as expected: 1 of 1" in done.stdout, done.stdout + done.stderr
    for arguments, message in (
        (["letters", file], "not valid JSON|needs 'response'"),
        (["letter", file], "unknown name 'letter'"),
        (["answers", file, "--records", "examples"], "no object with a list"),
    ):
        refused = run_eval("extract", *arguments)
        assert refused.returncode == 2 and any(part in refused.stderr for part in message.split("|"))


def test_letters_beyond_d_are_read_where_they_are_named(run_eval: Run, tmp_path: Path) -> None:
    replies = ["1. G\n2. A\n3. E\n4. C\n5. F", "【答案】GAECF", "1-5 GAECF", "1) G 2) A 3) E 4) C 5) F"]
    file = write(tmp_path / "gaps.json", [{"response": reply, "right": list("GAECF")} for reply in replies])
    for letters in ("A-G", "ABCDEFG"):
        done = run_eval("extract", "answers", file, "--letters", letters, "--expected", "right")
        assert "as expected: 4 of 4" in done.stdout, done.stdout + done.stderr
    assert "as expected: 0 of 4" in run_eval("extract", "answers", file, "--expected", "right").stdout
    for rule, letters, message in (
        ("answers", "A-Z", "neither a range"),
        ("answers", "B-D", "neither a range"),
        ("answers", "", "neither a range"),
        ("number", "A-G", "has letters of its own"),
    ):
        refused = run_eval("extract", rule, file, "--letters", letters)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_numbers_of_any_length_are_read_or_left(run_eval: Run, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"response": "9" * 6000, "right": 10**400},
        {"response": "It is 1e999999", "right": "1e999999"},
        {"response": "5", "right": 5},
    ]
    done = run_eval("extract", "number", write(tmp_path / "long.json", rows), "--expected", "right")
    assert "read 1" in done.stdout and "as expected: 1 of 3" in done.stdout, done.stdout + done.stderr
