"""Extended byte-level tokenizers against the ones that they come from."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from vocabulary_models import LINES, mixed_texts, train_model, write_byte_level

Run = Callable[..., subprocess.CompletedProcess[str]]
ALL_LINES = LINES.splitlines()
CHINESE, ENGLISH = ALL_LINES[:14], ALL_LINES[14:]
TEXTS = [*ALL_LINES, *mixed_texts(ALL_LINES, 300), "<|end|> is a token", "é e\u0301 😀 \u4e00\u3007", "", " ", "\n\n"]


@pytest.fixture(scope="module", params=[False, True], ids=["merges", "ignore_merges"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level(tmp_path_factory.mktemp("bytes") / "base", ENGLISH, ignore_merges=request.param)


def check_properties(base: Path, output: Path) -> tuple[Tokenizer, Tokenizer]:
    """Check what every extension has to keep, and return both tokenizers."""
    old, new = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (base, output))
    report = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    size = old.get_vocab_size()
    assert {token: new.token_to_id(token) for token in old.get_vocab()} == old.get_vocab()
    assert report["first_new_id"] == size and report["size"] == new.get_vocab_size()
    assert sorted(new.get_vocab().values()) == list(range(new.get_vocab_size()))
    for text in TEXTS:
        before, after = old.encode(text).ids, new.encode(text).ids
        assert new.decode(after, skip_special_tokens=False) == old.decode(before, skip_special_tokens=False)
        assert len(after) <= len(before), text
        assert after == before or max(after) >= size, text
    return old, new


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_pieces_of_a_sentencepiece_model_become_tokens(
    call_tokenizer: Run, base: Path, tmp_path: Path, model_type: str
) -> None:
    (tmp_path / "new.model").write_bytes(
        train_model(ALL_LINES, model_type=model_type, vocab_size=700, byte_fallback=False)
    )
    added = ["--add", tmp_path / "new.model", "--output", tmp_path / "out"]
    result = call_tokenizer("merge", "--base", base, *added)
    assert result.returncode == 0, result.stderr
    _, new = check_properties(base, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    assert report["unreachable"] == []
    assert report["num_pieces"] + report["num_links"] == report["num_new_pieces"]
    whole = [text for text in report["new_pieces"] if len(new.encode(text).ids) == 1]
    assert len(whole) >= report["num_pieces"] > 100
    for text in CHINESE:
        assert len(new.encode(text).ids) < len(text) * 1.2


def test_tokens_of_another_byte_level_tokenizer_are_added(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    other = write_byte_level(tmp_path / "other", CHINESE, ignore_merges=False)
    result = call_tokenizer("merge", "--base", base, "--add", other, "--output", tmp_path / "out", "--pad-token")
    assert result.returncode == 0, result.stderr
    assert "in base" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|end|>", "{{ messages }}")
    assert tokenizer("<|end|>").input_ids == [AutoTokenizer.from_pretrained(base).eos_token_id]
    assert tokenizer.decode(tokenizer("床前明月光").input_ids) == "床前明月光"


def test_continued_training_adds_just_so_many_tokens(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(ALL_LINES), encoding="utf-8")
    arguments = ["--base", base, "--input", tmp_path / "text.txt", "--add-pieces", 120]
    for name in ("out", "again"):
        result = call_tokenizer("extend", *arguments, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    old, new = check_properties(base, tmp_path / "out")
    assert new.get_vocab_size() == old.get_vocab_size() + 120
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "again" / "tokenizer.json").read_bytes()
    model = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    size = old.get_vocab_size()
    made = ["".join(merge) for merge in model["merges"]]
    for token, index in model["vocab"].items():
        if index >= size:
            assert token in made  # no token that nothing makes
    counts = [sum(len(one.encode(line).ids) for line in ALL_LINES) for one in (old, new)]
    assert counts[1] < 0.8 * counts[0]


def test_continued_training_finds_the_most_frequent_pairs(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    """The first new tokens, against counting by hand."""
    (tmp_path / "text.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    arguments = ["--base", base, "--input", tmp_path / "text.txt", "--add-pieces", 1, "--output", tmp_path / "out"]
    assert call_tokenizer("extend", *arguments).returncode == 0
    old = Tokenizer.from_file(str(base / "tokenizer.json"))
    pairs: dict[tuple[str, str], int] = {}
    for line in CHINESE:
        encoding = old.encode(line)
        tokens = list(zip(encoding.tokens, encoding.word_ids, strict=True))
        for (left, word), (right, next_word) in pairwise(tokens):
            if word == next_word:
                pairs[left, right] = pairs.get((left, right), 0) + 1
    model = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert pairs[tuple(model["merges"][-1])] == max(pairs.values())


def test_mistakes_are_named(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab\n", encoding="utf-8")
    (tmp_path / "new.model").write_bytes(train_model(CHINESE, vocab_size=560))
    text = ["--input", tmp_path / "text.txt", "--output", tmp_path / "out"]
    model = tmp_path / "new.model"
    merge = ["merge", "--base", base, "--add", model, "--output", tmp_path / "out"]
    for arguments, message in (
        (["extend", "--base", base, *text, "--add-pieces", 500], "--add-pieces: 500 is too many: the text yields 0"),
        (["extend", "--base", base, *text, "--add-pieces", 0], "--add-pieces: 0 is out of range"),
        (["extend", "--base", model, *text, "--add-pieces", 5], "is a SentencePiece model: train a vocabulary"),
        ([*merge, "--scores", "zero"], "a byte-level base has merges and no scores"),
        ([*merge, "--pad-token", "<|end|>"], "--pad-token: '<|end|>' is a token already"),
    ):
        result = call_tokenizer(*arguments)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert not (tmp_path / "out").exists()
