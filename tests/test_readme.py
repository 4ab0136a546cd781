"""The README's commands are real: files exist, keys are known. The slow test of the quickstart runs them."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from tiny import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[list[str]]:
    """Return the commands of the README's bash blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


OTHERS = ("data", "merge", "convert", "consolidate", "check", "diff", "plan")
IFT = [command[1:] for command in readme_commands() if command[0] == "ift" and command[1] not in OTHERS]
MERGE = [command[2:] for command in readme_commands() if command[:2] == ["ift", "merge"]]
CONVERT = [command[2:] for command in readme_commands() if command[:2] == ["ift", "convert"]]
CONSOLIDATE = [command[2:] for command in readme_commands() if command[:2] == ["ift", "consolidate"]]
TOKENIZER = [command[3:] for command in readme_commands() if command[:3] == ["python", "-m", "tokenizer"]]
DATA = [command[1:] for command in readme_commands() if command[:2] == ["ift", "data"]]
DATA_README = (ROOT / "ift" / "data" / "README.md").read_text(encoding="utf-8")


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


def test_the_required_keys_are_marked(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is marked is asked for when it is missing, and with all of it nothing else is."""
    from ift.cli import main

    rows = re.findall(r"^\| (.*) \(required.*?\) \|", README, flags=re.MULTILINE)
    marked = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    short = {"micro_batch_tokens": "data.micro_batch_tokens", "max_length": "data.max_length"}
    given = {
        "run_dir": str(tmp_path / "run"),
        "model.base": str(base),
        "model.optimizer": "torch.optim.SGD",
        "data.sources": "",  # given as YAML below
        "data.global_batch_size": "8",
        "data.micro_batch_tokens": "512",
        "data.max_length": "256",
        "trainer.max_steps": "1",
    }
    assert {short.get(name, name) for name in marked} - {"trainer.max_epochs"} == given.keys()
    sources = ["--data.sources", '[{"path": "scripts/quickstart/data/train.json"}]']
    for missing in given:
        others = [f"--{name}={value}" for name, value in given.items() if name not in (missing, "data.sources")]
        optimizer = [] if missing == "model.optimizer" else ["--model.optimizer.lr=0.1"]
        assert main(["fit", *others, *optimizer, *([] if missing == "data.sources" else sources)]) == 2
        told = "trainer.max_epochs: required" if missing == "trainer.max_steps" else f"{missing}: required, and not"
        assert told in capsys.readouterr().err, missing
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", MERGE, ids=" ".join)
def test_every_merge_command_parses(arguments: list[str]) -> None:
    from ift.commands.merge import parser

    assert parser().parse(arguments).output.startswith("runs/")


@pytest.mark.parametrize("arguments", CONVERT, ids=" ".join)
def test_every_convert_command_parses(arguments: list[str]) -> None:
    from ift.commands.convert import parser

    assert parser().parse(arguments).output.startswith("runs/")


@pytest.mark.parametrize("arguments", CONSOLIDATE, ids=" ".join)
def test_every_consolidate_command_parses(arguments: list[str]) -> None:
    from ift.commands.consolidate import parser

    assert parser().parse(arguments).output.startswith("runs/")


@pytest.mark.parametrize("arguments", TOKENIZER, ids=" ".join)
def test_every_tokenizer_command_parses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from tokenizer.__main__ import make_parser

    assert str(make_parser().parse_args(arguments).output).startswith("runs/")


def test_the_support_matrix_is_the_one_that_is_enforced() -> None:
    sys.path.insert(0, str(ROOT / "scripts" / "support_matrix"))
    from table import in_readme

    from ift.models.support import support

    assert in_readme(README, support()) == README, "run python scripts/support_matrix"


@pytest.mark.parametrize("arguments", DATA, ids=" ".join)
def test_every_data_command_runs(
    arguments: list[str],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ift.cli import main

    monkeypatch.chdir(ROOT)
    stand_ins = [re.sub("^runs/", f"{tmp_path}/runs/", argument) for argument in arguments]  # not there before
    if "inspect" in stand_ins:  # the quickstart's base model is not there before it
        stand_ins += ["--model.base", str(base), "--data.cache_dir", str(tmp_path / "cache")]
    assert main(stand_ins) == 0
    assert capsys.readouterr().out
    for made in (argument for argument in stand_ins if argument.startswith(str(tmp_path))):
        assert Path(made).exists()


def test_the_data_readme_lists_every_layout_and_template() -> None:
    from ift.data.layouts import layout_table
    from ift.data.templates import TEMPLATES

    assert layout_table().strip() in DATA_README
    assert ", ".join(f"`{name}`" for name in TEMPLATES) in DATA_README


def test_the_data_readme_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sources and its template are ones, and its row function reads rows."""
    import yaml

    from ift.data.conversation import Conversation
    from ift.data.layouts import RowError, resolve_layout
    from ift.data.rows import Source
    from ift.data.templates import Template

    sources, template = (
        yaml.safe_load(text)["data"] for text in re.findall(r"```yaml\n(.*?)```", DATA_README, re.DOTALL)
    )
    assert len([Source(**source) for source in sources["sources"]]) == 5
    assert Template(**template["template"]).render(Conversation(()))
    (code,) = re.findall(r"```python\n(.*?)```", DATA_README, re.DOTALL)
    (tmp_path / "my_rows.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rows", raising=False)
    function = resolve_layout("layout", "my_rows.quiz")
    assert function({"q": "a", "a": "b"}).messages[1].text == "b"  # type: ignore[union-attr]
    with pytest.raises(RowError, match="no answer"):
        function({"q": "a", "a": ""})


def test_every_layout_of_the_catalogue_is_known() -> None:
    from ift.data.catalogue import load_catalogue
    from ift.data.layouts import LAYOUTS

    assert {one.layout for one in load_catalogue() if one.layout is not None} <= set(LAYOUTS)
    assert f"{len(load_catalogue())} collections" in README and f"{len(LAYOUTS)} layouts" in README


def test_there_are_commands_of_every_kind() -> None:
    programs = {" ".join(command[:3]) for command in readme_commands()}
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= programs
    assert {command[0] for command in IFT} == {"fit", "validate", "predict"}


def test_files_that_the_readme_names_exist() -> None:
    # What a run makes (runs/...) is not there before it.
    for name in re.findall(r"(?:configs|scripts|eval|tests|ift|tokenizer)/[\w./-]*\w", README):
        assert (ROOT / name).exists(), name


def test_the_readme_has_no_open_place() -> None:
    assert not re.search(r"^[A-Z]{4,}$", README + DATA_README, re.MULTILINE)
    assert "@" not in re.sub(r"\S+@\S+\.\S+", "", README)
