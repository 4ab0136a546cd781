"""What ift/training/README.md says can be done: commands and keys are known, links lead somewhere, YAML is a config."""

import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from tiny import ROOT

from ift.cli import COMMANDS, main

PLACE = ROOT / "ift" / "training" / "README.md"
README = PLACE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
LINES = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language != "yaml"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
RUN = "configs/quickstart/lora.yaml"


def arguments_of(program: str) -> list[list[str]]:
    """Return what follows a program in each of its commands."""
    words = program.split()
    return [line[len(words) :] for line in LINES if line[: len(words)] == words]


def table_under(header: str) -> list[str]:
    """Return the first cells of a table's rows."""
    _, _, behind = README.partition(header)
    assert behind, header
    lines = [line for line in behind.split("\n\n")[0].splitlines() if line.startswith("| ")]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_command_is_of_a_program_that_is_checked_here() -> None:
    programs = {"ift consolidate", "ift plan", "ift check", "ift diff", "python", "sbatch", "torchrun"}
    assert programs == {" ".join(line[: 2 if line[0] == "ift" else 1]) for line in LINES}
    assert set(re.findall(r"`(?:srun )?ift (\w+)", PROSE)) <= COMMANDS.keys()


def test_commands_that_look_at_runs_parse() -> None:
    from ift.commands import check, consolidate, diff

    for module in (check, consolidate, diff):
        found = arguments_of(f"ift {module.__name__.rpartition('.')[2]}")
        assert found
        for arguments in found:
            module.parser().parse(arguments)


def checked_config(arguments: list[str], base: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the configuration that `ift fit` makes of arguments; the quickstart's base model is not there."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--model.base", str(base), "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_commands_that_take_the_keys_of_fit_parse(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ift.commands.cards import card_of
    from ift.commands.plan import make_parser, split_arguments

    monkeypatch.chdir(ROOT)
    for arguments in arguments_of("ift plan"):
        own, others = split_arguments(arguments)
        options = make_parser().parse(own)
        assert options.card is None or card_of(options.card)
        checked_config([one for one in others if one not in ("--trainer.accelerator", "gpu")], base, capsys)
    for arguments in arguments_of("torchrun"):
        position = arguments.index("-m")
        assert arguments[position : position + 3] == ["-m", "ift", "fit"]
        rest = [RUN if one == "my_run.yaml" else one for one in arguments[position + 3 :]]
        checked_config(rest, base, capsys)


def test_scripts_exist_and_know_their_options() -> None:
    for script, *arguments in [*arguments_of("python"), *arguments_of("sbatch")]:
        text = (ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{one}"' in text for one in arguments if one.startswith("--")), script


def test_yaml_is_a_configuration(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    blocks = [block for language, block in BLOCKS if language == "yaml"]
    assert blocks
    for number, block in enumerate(blocks):
        overlay = tmp_path / f"{number}.yaml"
        overlay.write_text(block, encoding="utf-8")
        found = checked_config(["--config", RUN, "--config", str(overlay)], base, capsys)
        for section, values in yaml.safe_load(block).items():
            # They stand there as the defaults.
            assert {key: found[section][key] for key in values} == values


def test_every_key_is_known() -> None:
    known = {*(ROOT / "tests/golden/keys_fit.txt").read_text(encoding="utf-8").split()}
    known |= {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
    named = set(re.findall(r"`(?:--)?((?:trainer|model|data|checkpoint|samples)\.[a-z_.]*\w)[`:]", README))
    named |= set(re.findall(r"(?:^|[` ])--((?:trainer|model|data|checkpoint|samples)\.[a-z_.]*\w)", README))
    assert len(named) > 25
    assert named - known == {"samples.py"}


def test_links_and_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (PLACE.parent / target).exists(), target
    names = {
        path.name for folder in ("ift", "scripts", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()
    }
    for name in re.findall(r"`([\w/.*-]+\.(?:py|sbatch))`", README):
        assert any(ROOT.glob(name)) if "/" in name else name in names, name


def test_every_module_of_the_folder_has_a_place() -> None:
    modules = {path.name for path in PLACE.parent.glob("*.py")} - {"__init__.py"}
    assert set(table_under("| module | |\n")) == modules


def test_strategies_and_cards_are_those_that_there_are() -> None:
    from ift.commands.cards import CARDS
    from ift.training.strategies import _REFUSED, STRATEGIES

    named = set(table_under("| `trainer.strategy` | shared out among ranks |")) - {"..._offload"}
    assert named == {one for one in STRATEGIES if not one.endswith(("_offload", "Strategy"))}
    for name in _REFUSED:
        assert f"`{name}`" in README
    (cards,) = re.findall(r"`--card` is a name \(([^)]*)\)", README)
    assert sorted(re.findall(r"`([^`]+)`", cards)) == sorted(CARDS)


def test_what_a_run_writes_is_what_is_told(config: Callable[..., Path], fit: Callable[..., Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(config(trainer={"max_epochs": 1}))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert set(table_under("| `manifest.json` | |\n")) == manifest.keys()
    assert set(table_under("| `fingerprints` in the manifest |")) == manifest["fingerprints"].keys()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = {name for name in events.Tags()["scalars"] if not name.startswith("samples/")}
    only_elsewhere = {"train/reserved_memory_gib", "train/skipped_steps", "samples/N"}
    assert set(table_under("| curve | |\n")) - only_elsewhere == logged
    (session,) = manifest["sessions"]
    _, _, told = README.partition("A session has ")
    told = told.split("\n\n")[0]
    missing = {name for name in session if f"`{name}`" not in told}
    assert missing <= {name for name in session if name.endswith("_per_second") or name == "utilization"}  # "the rates"


def test_lines_have_their_length() -> None:
    assert not [line for line in README.splitlines() if len(line) > 120]
    assert not re.search(r"^[A-Z]{4,}$", README, re.MULTILINE)
