"""Merged SentencePiece models, against the two models that they are made of and SentencePiece itself."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer
from vocabulary_models import LINES, mixed_texts, parse, train_model

Run = Callable[..., subprocess.CompletedProcess[str]]
ALL_LINES = LINES.splitlines()
CHINESE, ENGLISH = ALL_LINES[:14], ALL_LINES[14:]
NEW: dict[str, dict[str, Any]] = {
    "bpe": {"vocab_size": 560},
    "unigram": {"vocab_size": 420, "model_type": "unigram", "byte_fallback": False},
    "normalised": {"vocab_size": 460, "normalization_rule_name": "nmt_nfkc", "byte_fallback": False},
    "symbols": {"vocab_size": 560, "user_defined_symbols": ["<问>", "<答>"]},
    "mixed, and larger than the base": {"vocab_size": 900},
}


def new_lines(name: str) -> list[str]:
    return ALL_LINES if name.startswith("mixed") else CHINESE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tokenizer.model"
    path.write_bytes(train_model([*ENGLISH, *CHINESE[:2]], vocab_size=600))
    return path


def added_file(folder: Path, name: str) -> Path:
    path = folder / "new.model"
    path.write_bytes(train_model(new_lines(name), **NEW[name]))
    return path


def rows(message: Any) -> list[tuple[str, float, int]]:
    return [(piece.piece, piece.score, piece.type) for piece in message.pieces]


@pytest.mark.parametrize("name", NEW)
def test_missing_pieces_follow_in_their_order_and_the_base_stays(
    call_tokenizer: Run, base: Path, tmp_path: Path, name: str
) -> None:
    added = added_file(tmp_path, name)
    result = call_tokenizer("merge", "--base", base, "--add", added, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    old, new = parse(base.read_bytes()), parse(added.read_bytes())
    merged = parse((tmp_path / "out" / "tokenizer.model").read_bytes())
    size, known = len(old.pieces), {piece.piece for piece in old.pieces}
    assert rows(merged)[:size] == rows(old)
    expected = [(p.piece, 0.0, p.type) for p in new.pieces if p.type in (1, 4) and p.piece not in known]
    assert rows(merged)[size:] == expected
    assert (merged.normalizer_spec, merged.trainer_spec) == (old.normalizer_spec, old.trainer_spec)
    report = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    assert report["new_pieces"] == [piece for piece, _, _ in expected]
    assert (report["size"], report["first_new_id"], report["num_new_pieces"]) == (
        len(merged.pieces),
        size,
        len(expected),
    )
    left_out = sum(report["added"]["left_out"].values())
    assert len(expected) + report["added"]["in_base"] + left_out == len(new.pieces)
    assert f": {len(merged.pieces)} pieces: {size} + {len(expected)} new\n" in result.stdout


@pytest.mark.parametrize("scores", ["zero", "ranked"])
@pytest.mark.parametrize("name", NEW)
def test_ids_are_those_of_sentencepiece(
    call_tokenizer: Run, base: Path, tmp_path: Path, name: str, scores: str
) -> None:
    arguments = ["--base", base, "--add", added_file(tmp_path, name), "--scores", scores, "--output", tmp_path / "out"]
    result = call_tokenizer("merge", *arguments)
    assert result.returncode == 0, result.stderr
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == reference.get_piece_size()
    texts = [*ALL_LINES, *mixed_texts(ALL_LINES, 300), "<问>你好<答>好", ""]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert [tokenizer.decode(one) for one in ids] == texts
    different = [text for text, one in zip(texts, ids, strict=True) if one != reference.encode(text)]
    if "in rare places" in result.stdout:  # said, and so rare
        assert scores == "zero" and name.startswith("mixed") and len(different) < 6
    else:
        assert not different


def test_ranked_pieces_score_above_all_others_in_their_order(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    added = added_file(tmp_path, "bpe")
    call_tokenizer("merge", "--base", base, "--add", added, "--scores", "ranked", "--output", tmp_path / "out")
    merged = parse((tmp_path / "out" / "tokenizer.model").read_bytes())
    size = len(parse(base.read_bytes()).pieces)
    scores = [piece.score for piece in merged.pieces[size:]]
    assert scores == sorted(set(scores), reverse=True) and min(scores) > max(p.score for p in merged.pieces[:size])


@pytest.mark.parametrize(("option", "token"), [(["--pad-token"], "<pad>"), (["--pad-token", "[PAD]"], "[PAD]")])
def test_a_padding_token_is_the_last(
    call_tokenizer: Run, base: Path, tmp_path: Path, option: list[str], token: str
) -> None:
    arguments = ["--base", base, "--add", added_file(tmp_path, "bpe"), "--output", tmp_path / "out", *option]
    assert call_tokenizer("merge", *arguments).returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    assert tokenizer.pad_token == token
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == reference.get_piece_size() - 1 == reference.pad_id()
    assert tokenizer("hello").input_ids[0] == tokenizer.bos_token_id == 1
    again = call_tokenizer("merge", *arguments[:1], tmp_path / "out", *arguments[2:5], tmp_path / "more", *option)
    assert again.returncode == 2 and f"--pad-token: '{token}' is a piece already" in again.stderr


def test_duplicates_within_the_new_model_are_counted(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    message = parse(train_model(CHINESE, vocab_size=560))
    for number in (-1, -2):
        message.pieces.add(piece=message.pieces[number].piece, score=-1.0)
    (tmp_path / "new.model").write_bytes(message.SerializeToString())
    result = call_tokenizer("merge", "--base", base, "--add", tmp_path / "new.model", "--output", tmp_path / "out")
    assert " 2 duplicates, 256 byte, 2 control, 1 unknown\n" in result.stdout, result.stderr
    pieces = [piece.piece for piece in parse((tmp_path / "out" / "tokenizer.model").read_bytes()).pieces]
    assert len(set(pieces)) == len(pieces)


def test_settings_of_a_base_folder_stay(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(base.read_bytes())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    config: dict[str, Any] = {"eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": False}
    config |= {"add_eos_token": True, "model_max_length": 77, "tokenizer_class": "LlamaTokenizer", "auto_map": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    arguments = ["--base", folder, "--add", added_file(tmp_path, "bpe"), "--output"]
    assert call_tokenizer("merge", *arguments, tmp_path / "out").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("hello").input_ids
    assert ids[-1] == 2 and 1 not in ids and tokenizer.model_max_length == 77
    assert tokenizer.chat_template == "{{ messages }}"
    (folder / "added_tokens.json").write_text('{"<image>": 600}')
    result = call_tokenizer("merge", *arguments, tmp_path / "other")
    assert (
        result.returncode == 2 and "adds tokens behind the 600 pieces of its model ('<image>' (600))" in result.stderr
    )


def test_mistakes_are_named_and_leave_nothing(call_tokenizer: Run, base: Path, tmp_path: Path) -> None:
    unigram, text, empty = tmp_path / "unigram.model", tmp_path / "text.model", tmp_path / "empty"
    unigram.write_bytes(train_model(CHINESE, model_type="unigram", vocab_size=600))
    text.write_text("no model")
    (tmp_path / "word.model").write_bytes(train_model(ENGLISH, model_type="word", vocab_size=60, byte_fallback=False))
    (tmp_path / "some.json").write_text("{}")
    empty.mkdir()
    before = sorted(tmp_path.iterdir())
    out = ["--output", tmp_path / "out"]
    for arguments, message in (
        (
            ["--base", unigram, "--add", base, *out],
            "--base: .*unigram.model: is a unigram model, and pieces are merged",
        ),
        (["--base", text, "--add", base, *out], "text.model: is no SentencePiece model"),
        (["--base", base, "--add", text, *out], "text.model: is no SentencePiece model"),
        (["--base", base, "--add", tmp_path / "word.model", *out], "word.model: is a word model"),
        (["--base", tmp_path / "none", "--add", base, *out], "--base: .*none: no such file or folder"),
        (["--base", base, "--add", empty, *out], "--add: .*empty: holds neither"),
        (["--base", base, "--add", tmp_path / "some.json", *out], "--add: .*the base is a SentencePiece model"),
        (["--base", tmp_path / "some.json", "--add", base, *out], "some.json: cannot be read as a tokenizer.json"),
        (["--base", base, "--add", unigram, "--output", empty], "--output: .*empty exists"),
    ):
        result = call_tokenizer("merge", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.search(message, result.stderr), result.stderr
        assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = {
    "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。": (35, 16),
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。": (37, 21),
    "The primary use of LLaMA is research on large language models.": (14, 14),
}
"""Tokens before and after: evaluation notes of the two model files; the English one was counted with LLaMA's own."""


@pytest.mark.real_data
@pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason="the models are not part of this repository")
def test_chinese_llama(call_tokenizer: Run, tmp_path: Path) -> None:
    base, added = (SHARED / "tokenizers" / f"{name}.model" for name in ("llama_tokenizer", "chinese_sp"))
    for name, size, option in (("llama", 49_953, []), ("alpaca", 49_954, ["--pad-token"])):
        result = call_tokenizer("merge", "--base", base, "--add", added, "--output", tmp_path / name, *option)
        assert result.returncode == 0, result.stderr
        assert "rare places" not in result.stdout
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == size
    old = sentencepiece.SentencePieceProcessor(model_file=str(base))
    new = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "llama" / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    for text, lengths in SENTENCES.items():
        assert (len(old.encode(text)), len(new.encode(text))) == lengths
    lines = [
        line for file in sorted((SHARED / "zh_corpus").glob("*.txt")) for line in file.read_text("utf-8").split("\n")
    ]
    ids = tokenizer(lines, add_special_tokens=False).input_ids
    assert ids == new.encode(lines)
    assert tokenizer.batch_decode(ids) == lines
