"""Who may import whom, and what starts without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import ROOT

LAYERS = {
    "data": {"data"},
    "models": {"data", "models"},
    "inference": {"data", "models", "inference"},
    "training": {"data", "models", "inference", "training"},
    "checks": {"data", "models", "inference", "training", "checks"},
    "commands": {"data", "models", "inference", "training", "checks", "commands"},
}
"""Package of `ift` to those it may import; beside them, all may import the single modules below all layers."""
BELOW = {
    "library_messages",
    "small_objects",
    "deferred_imports",
    "errors",
    "records",
    "artifacts",
    "hub",
    "seeds",
    "interruptions",
    "launch",
}
"""Single modules that import nothing above themselves."""


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_modules(path: Path) -> set[str]:
    """Return the second names of what a file imports from `ift`: packages and single modules."""
    names = {path.stem if path.is_file() else path.name for path in (ROOT / "ift").iterdir()}
    parts = [name.split(".") for name in imported(path)]
    return {part[1] for part in parts if part[0] == "ift" and len(part) > 1 and part[1] in names}


@pytest.mark.parametrize("path", python_files("ift"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_downward_only(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"eval", "tokenizer", "scripts", "tests"}
    place = path.relative_to(ROOT / "ift").parts
    found = own_modules(path)
    if len(place) > 1:
        assert found <= LAYERS[place[0]] | BELOW
    elif path.stem in BELOW:
        assert found <= BELOW
    else:
        assert path.stem in ("__init__", "__main__", "cli")
        # Commands are named, and imported when they are called.
        light = {"deferred_imports", "errors", "interruptions", "library_messages", "small_objects"}
        assert found <= {"cli", "__init__"} | light


def test_training_takes_generation_only_from_inference() -> None:
    for path in python_files("ift/training"):
        own = {name for name in imported(path) if name.startswith("ift.inference.")}
        assert all(name.startswith("ift.inference.generation") for name in own), path


DURING_TRAINING = ROOT / "eval" / "during_training"
"""A callback inside training: it answers with the model that is trained, and knows its prompts and its run folder."""


FOR_TOKENIZERS = ("sentencepiece_models", "sentencepiece_ties", "files", "conversation", "row_conversations", "rows")
"""Modules of `ift.data` for the programs around vocabularies: reading SentencePiece models, and rows of text."""


@pytest.mark.parametrize("folder", ["eval", "tokenizer"])
def test_programs_import_the_library_for_records_and_errors_only(folder: str) -> None:
    for path in python_files(folder):
        more = {"artifacts", "data", "inference", "models"} if path.parent == DURING_TRAINING else set()
        if folder == "tokenizer":
            assert {name.split(".")[2] for name in imported(path) if name.startswith("ift.data.")} <= set(
                FOR_TOKENIZERS
            )
            more = {"data"}
        assert own_modules(path) <= {"records", "errors"} | more, path
        others = {"eval", "tokenizer", "scripts", "tests"} - {folder}
        assert not {name.split(".")[0] for name in imported(path)} & others, path


def test_nothing_in_eval_needs_what_is_for_training() -> None:
    for path in python_files("eval"):
        if path.parent != DURING_TRAINING:
            assert not {name for name in imported(path) if name.startswith("eval.during_training")}, path


def test_no_module_has_the_name_of_a_grab_bag_or_an_installed_package() -> None:
    names = {path.stem for folder in ("ift", "eval", "tokenizer") for path in python_files(folder)}
    assert not names & {"utils", "helpers", "common", "misc", "peft", "datasets", "transformers", "torch", "yaml"}


HEAVY = {"torch", "transformers", "lightning", "peft", "datasets"}
LIGHT = [
    "ift.errors",
    "ift.records",
    "ift.artifacts",
    "ift.hub",
    "ift.seeds",
    "ift.data.conversation",
    "ift.data.layouts",
    "ift.data.rows",
    "ift.data.templates",
    "ift.data.chat_templates",
    "ift.data.encoding",
    "ift.data.sentencepiece_models",
    "tokenizer.comparison",
    "ift.data.preparation",
    "ift.data.audit",
    "ift.commands.data_inspect",
    "ift.commands.token_view",
    "ift.commands.audit_numbers",
    "ift.data.text_windows",
    "ift.data.duplicates",
    "ift.data.benchmark_index",
    "ift.data.contamination",
    "ift.data.contamination_report",
    "ift.commands.data_deduplicate",
    "ift.commands.data_contamination",
    "ift.commands.merge",
    "ift.commands.convert",
    "ift.commands.consolidate",
    "ift.commands.plan",
    "ift.commands.stage_config",
    "ift.commands.forgetting",
    "ift.commands.diff",
    "ift.commands.check",
    "ift.checks.findings",
    "ift.checks.run_difference",
    "eval.__main__",
    "tokenizer.__main__",
]


@pytest.mark.parametrize("module", LIGHT)
def test_starts_without_torch(module: str) -> None:
    program = f"import sys, {module}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & HEAVY


def test_rows_and_prompts_are_made_without_torch(tmp_path: Path) -> None:
    """Not only the import: local rows are read, checked and rendered."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    program = f"""
import sys
from ift.data.layouts import alpaca, check_turns
from ift.data.rows import Source, check_source, content_hash, read_rows
from ift.data.templates import TEMPLATES
source = Source({str(tmp_path / "rows.jsonl")!r}, "alpaca")
check_source("data", source)
content_hash(source)
(row,) = read_rows(source)
conversation = alpaca(row.value)
check_turns(conversation, needs_response=True)
assert "### Response:" in TEMPLATES["alpaca"].render(conversation)[1].text
print(*sorted({{name.split('.')[0] for name in sys.modules}}))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & HEAVY


def test_averages_are_found_without_torch() -> None:
    """`compare` looks through the benchmarks, and not through what needs a model."""
    program = """
import sys
from eval.comparison.averages import find_average
from eval.aggregation import Cell
cells = [Cell("a", "g", 3, 1.0), Cell("b", "h", 3, 2.0)]
print(find_average("mmcu_readme", [(cells, 0.4991)]))
print(*sorted({name.split('.')[0] for name in sys.modules}))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.splitlines()[-1].split()) & HEAVY
