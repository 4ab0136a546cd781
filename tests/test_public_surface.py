"""The public commands and configuration keys, frozen in `tests/golden/`.

A change to them is a change for every user: rename nothing lightly, and say so in CHANGELOG.md. When a change is meant,
`IFT_UPDATE_GOLDEN=1 pytest tests/test_public_surface.py` writes the lists anew; the commit then shows what changed.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from ift.cli import COMMANDS
from ift.commands.config import ConfigParser
from ift.commands.data import SUBCOMMANDS
from ift.commands.predict import PredictCLI
from ift.commands.trainer import TrainingCLI
from ift.data.layouts import LAYOUTS
from ift.data.rows import Source
from ift.data.templates import TEMPLATES, TOKENIZER_TEMPLATE, Template
from ift.records import Prediction, PromptRecord

GOLDEN = Path(__file__).parent / "golden"


class Parsed(Exception):  # noqa: N818 (no error)
    """Carries the parser out, once all its keys are there."""


def keys_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def stop(parser: ConfigParser, *_: Any, **__: Any) -> None:
        raise Parsed(parser.keys())

    monkeypatch.setattr(ConfigParser, "parse_args", stop)
    with pytest.raises(Parsed) as caught:
        PredictCLI([]) if command == "predict" else TrainingCLI(command, [])
    keys: list[str] = caught.value.args[0]
    # Lightning's own Trainer settings change with its versions; which of them are refused has a test of its own.
    return [key for key in keys if not key.startswith("trainer.")]


def compare(name: str, found: list[str]) -> None:
    path = GOLDEN / f"{name}.txt"
    text = "".join(f"{line}\n" for line in found)
    if os.environ.get("IFT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8").splitlines()
    gone, new = [one for one in expected if one not in found], [one for one in found if one not in expected]
    assert expected == found, f"tests/golden/{name}.txt: gone {gone}, new {new}. If that is meant: {__doc__}"


def test_commands() -> None:
    compare("commands", sorted(COMMANDS))


def test_data_subcommands() -> None:
    compare("data_subcommands", sorted(SUBCOMMANDS))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"check", "data", "diff", "merge", "plan"}))
def test_keys(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(f"keys_{command}", keys_of(command, monkeypatch))


@pytest.mark.parametrize("kind", [Source, Template, PromptRecord, Prediction], ids=lambda kind: kind.__name__)
def test_fields(kind: Any) -> None:
    compare(f"fields_{kind.__name__}", [field.name for field in dataclasses.fields(kind)])


def test_names() -> None:
    compare("layouts", sorted(LAYOUTS))
    compare("templates", sorted([*TEMPLATES, TOKENIZER_TEMPLATE]))


def test_commands_of_eval() -> None:
    from eval.__main__ import make_parser
    from eval.benchmark import find_benchmarks

    (subparsers,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = [
        " ".join([name, *action.option_strings] if action.option_strings else [name, action.dest])
        for name, parser in sorted(subparsers.choices.items())
        for action in parser._actions
        if "--help" not in action.option_strings
    ]
    compare("eval_commands", found)
    compare(
        "eval_benchmarks",
        [f"{name} {protocol}" for name, one in find_benchmarks().items() for protocol in one.all_protocols()],
    )
