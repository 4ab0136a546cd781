import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenizer import training
from tokenizer.training import TrainingSettings, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_input_and_seed_give_the_same_files(
    run_tokenizer: Run, corpus: list[Path], tmp_path: Path, model_type: str
) -> None:
    sample = ["--max-sentences", 24, "--vocab-size", 565, "--model-type", model_type]
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        output = tmp_path / name
        result = run_tokenizer("train", "--input", *corpus, "--output", output, *sample, "--seed", seed)
        assert result.returncode == 0, result.stderr
        assert re.fullmatch(
            rf"{output}: 565 pieces from 24 of 27 sentences \(\d+ bytes\) in \d+\.\d s\n", result.stdout
        )
    assert list(contents(tmp_path / "first")) == NAMES
    assert contents(tmp_path / "first") == contents(tmp_path / "second") != contents(tmp_path / "other")


def test_an_existing_folder_is_refused(run_tokenizer: Run, corpus: list[Path], tmp_path: Path) -> None:
    result = run_tokenizer("train", "--input", *corpus, "--output", tmp_path, "--vocab-size", 700)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: --output: {tmp_path} exists and nothing is overwritten. " + (
        "Give another folder, or remove it.\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab-size", 9000], r"--vocab-size: 9000 is too large: the text yields at most \d+ pieces .* bpe"),
        (["--vocab-size", 9000, "--model-type", "unigram"], r"9000 is too large: .* --model-type unigram"),
        (["--vocab-size", 300], r"--vocab-size: 300 is too small: .* need \d+ pieces"),
        (["--vocab-size", 260], r"--vocab-size: 260 leaves no room: 260 pieces are special tokens and bytes"),
        (["--vocab-size", 700, "--character-coverage", 0.5], r"--character-coverage: 0.5 is out of range"),
        (["--vocab-size", 700, "--max-sentences", 0], r"--max-sentences: 0 is out of range"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run_tokenizer: Run, corpus: list[Path], tmp_path: Path, options: list[object], message: str
) -> None:
    arguments = ["train", "--input", *corpus, "--output", tmp_path / "new", *options]
    result = run_tokenizer(*arguments)
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", result.stderr), result.stderr
    assert "Traceback" in run_tokenizer(*arguments, "--debug").stderr
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_that_the_messages_recommend_work(run_tokenizer: Run, corpus: list[Path], tmp_path: Path) -> None:
    for size, pattern in ((9000, r"at most (\d+)"), (300, r"need (\d+)")):
        arguments = ["train", "--input", *corpus, "--output", tmp_path / str(size), "--vocab-size"]
        recommended = re.search(pattern, run_tokenizer(*arguments, size).stderr)
        assert recommended
        assert run_tokenizer(*arguments, recommended[1]).returncode == 0


def test_an_interrupted_write_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, corpus: list[Path], tmp_path: Path
) -> None:
    def full_disk(folder: Path, *_: object) -> None:
        (folder / "tokenizer.model").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(training, "write_tokenizer", full_disk)
    with pytest.raises(OSError, match="no space left"):
        train_tokenizer(corpus, tmp_path / "new", TrainingSettings(vocab_size=700))
    assert list(tmp_path.iterdir()) == []


def test_split_lines_and_missing_bytes_are_reported(run_tokenizer: Run, corpus: list[Path], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("字 " * 6000 + "\n", encoding="utf-8")
    arguments = ["--input", *corpus, tmp_path / "long.txt", "--output", tmp_path / "new", "--vocab-size", 450]
    result = run_tokenizer("train", *arguments, "--no-byte-fallback")
    assert result.returncode == 0, result.stderr
    assert "\n1 lines were split: over 10000 characters long, or with U+2585 in them\n" in result.stdout
    assert result.stdout.endswith("without byte fallback: newlines and characters without a piece become <unk>\n")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_starts_without_heavy_packages(arguments: list[str]) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['tokenizer', *{arguments!r}]\n"
        "try: runpy.run_module('tokenizer', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('heavy:', {'torch', 'transformers', 'lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("heavy: set()\n")
