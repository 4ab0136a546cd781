"""The README's commands are real: files exist, keys are known. The slow test of the quickstart runs them."""

import re
import shlex
from pathlib import Path

import pytest
from tiny import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[list[str]]:
    """Return the commands of the README's bash blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


IFT = [command[1:] for command in readme_commands() if command[0] == "ift"]


@pytest.mark.parametrize("arguments", IFT, ids=" ".join)
def test_every_ift_command_parses(
    arguments: list[str], base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ift.cli import main

    monkeypatch.chdir(ROOT)
    # The base model and the run come out of the quickstart; here only the keys count.
    stand_ins = [value for value in arguments if value != "--print_config"]
    if "--run" in stand_ins:
        position = stand_ins.index("--run")
        stand_ins[position : position + 2] = ["--model.base", str(base)]
    with pytest.raises(SystemExit) as stop:
        main([*stand_ins, "--print_config"])
    assert stop.value.code == 0
    assert "base:" in capsys.readouterr().out


def test_there_are_commands_of_every_kind() -> None:
    programs = {" ".join(command[:3]) for command in readme_commands()}
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= programs
    assert {command[0] for command in IFT} == {"fit", "validate", "predict"}


def test_files_that_the_readme_names_exist() -> None:
    # What a run makes (runs/...) is not there before it.
    for name in re.findall(r"(?:configs|scripts|eval|tests|ift|tokenizer)/[\w./-]*\w", README):
        assert (ROOT / name).exists(), name


def test_the_readme_has_no_open_place() -> None:
    assert "@" not in re.sub(r"\S+@\S+\.\S+", "", README)
