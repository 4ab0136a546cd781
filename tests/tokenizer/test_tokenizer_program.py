import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from ift.errors import UserError
from tokenizer import training
from tokenizer.__main__ import main
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


def test_without_a_number_a_sample_is_learned_from_that_fits_memory(
    monkeypatch: pytest.MonkeyPatch, corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "DEFAULT_SAMPLE_BYTES", 1500)
    arguments = ["train", "--input", *map(str, corpus), "--output", str(tmp_path / "new"), "--vocab-size", "500"]
    assert main(arguments) == 0
    found = re.search(r"from (\d+) of 27 sentences \((\d+) bytes\).*\na random sample of ", capsys.readouterr().out)
    assert found and abs(int(found[1]) / 27 - 1500 / int(found[2])) < 1 / 27


def test_normalisation_is_a_choice(run_tokenizer: Run, corpus: list[Path], tmp_path: Path) -> None:
    ids = {}
    for name in ("identity", "nmt_nfkc", "nfkc"):
        size = ["--vocab-size", 700, "--normalization", name]
        result = run_tokenizer("train", "--input", *corpus, "--output", tmp_path / name, *size)
        assert result.returncode == 0, result.stderr
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name / "tokenizer.model"))
        ids[name] = tokenizer("Ａ，１", add_special_tokens=False).input_ids
        assert ids[name] == reference.encode("Ａ，１")
    assert ids["identity"] != ids["nmt_nfkc"]
    assert tokenizer.decode(ids["nfkc"]) == "A,1"


def test_long_training_gives_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(*_: object) -> bytes:
        time.sleep(0.3)
        raise UserError("ended")

    monkeypatch.setattr(training, "_SECONDS_BETWEEN_SIGNS", 0.05)
    monkeypatch.setattr(training, "train_model", slow)
    with pytest.raises(UserError, match="ended"):
        train_tokenizer(corpus, tmp_path / "new", TrainingSettings(vocab_size=700))
    assert capsys.readouterr().err.count("training: 0 s so far\n") >= 2


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["merge", "--help"], ["compare", "--help"]])
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
