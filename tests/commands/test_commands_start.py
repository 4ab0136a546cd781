"""`ift` itself: what it imports to answer, and what it says to a command that it does not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

import ift
from ift.cli import COMMANDS, main

LIGHT = [
    "ift",
    "ift.cli",
    "ift.deferred_imports",
    "ift.errors",
    "ift.interruptions",
    "ift.launch",
    "ift.library_messages",
    "ift.small_objects",
]
HEAVY = ("torch", "transformers", "lightning", "peft", "datasets", "numpy", "yaml", "jsonargparse", "pyarrow", "tqdm")
PROGRAM = """
import json, sys
before = set(sys.modules)
from ift.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-h"], ["help"], [], ["fitt"]])
def test_answers_without_heavy_libraries(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    code, modules = json.loads(result.stdout.splitlines()[-1])
    assert code == (2 if arguments == ["fitt"] else 0)
    assert not [name for name in modules if name.split(".")[0] in HEAVY]
    assert [name for name in modules if name.startswith("ift")] == LIGHT


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, help_line) in COMMANDS.items():
        assert f"  {name}" in text and help_line in text


def test_nothing_but_debug_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug"]) == 0
    assert "usage: ift COMMAND" in capsys.readouterr().out


def test_version_and_python_dash_m(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ift", "--version"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"ift {ift.__version__}\n", "")
    wrong = subprocess.run([*command[:-1], "fitt"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2
    known = "check, consolidate, convert, data, diff, fit, merge, plan, predict, validate"
    assert wrong.stderr == f"error: command: unknown name 'fitt'. Did you mean 'fit'? Known: {known}.\n"


def test_the_benchmark_measures_it() -> None:
    """At most six bare interpreter starts; the script says so itself, and exits with 1 beyond."""
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "startup.py"), "5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == [
        "python -c pass",
        "ift --version",
        "ift --help",
    ]


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ift.commands import trainer

    def interrupt(command: str, arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "run", interrupt)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
