"""The folder that training leaves behind, loaded by transformers, against SentencePiece reading `tokenizer.model`."""

import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, LlamaConfig

from tokenizer.training import TrainingSettings, train_tokenizer

TEXTS = [
    "",
    "hello world",
    "白日依山尽，黄河入海流。Alice was late!",
    "  two leading blanks, and two at the end  ",
    " ",
    "   ",
    "\n",
    "\n\nfirst\n  second\n第二行\n",
    "tab\there\r\n",
    "2023年12月05日 1,234.56",
    "Ａ１２３，。！？：；「」（）《》　全角",
    "😀🎉 ok 👩‍👩‍👧 ☕",
    "生僻字：龘靐齉爩",
    "▁under a▁b",
    "<0x0A> is not a newline",
    "é e\u0301 ﬁ ß Ω",
    "def f(x):\n    if x:\n        return [1, 2]\n",
    "---------- ======= ..... 哈哈哈哈哈哈哈哈",
]
SETTINGS = {
    "bpe": TrainingSettings(vocab_size=800),
    "bpe without bytes": TrainingSettings(vocab_size=540, byte_fallback=False),
    "unigram": TrainingSettings(vocab_size=580, model_type="unigram"),
    "unigram without bytes": TrainingSettings(vocab_size=330, model_type="unigram", byte_fallback=False),
}


@pytest.fixture(scope="module", params=SETTINGS)
def folder(request: pytest.FixtureRequest, corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(corpus, output, SETTINGS[request.param])
    return output


@pytest.fixture
def reference(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_those_of_sentencepiece(
    folder: Path, reference: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == reference.encode(text)
    if reference.unk_id() not in ids:
        assert tokenizer.decode(ids) == reference.decode(ids) == text.replace("▁", " ")


def test_random_text_gives_equal_ids_or_equally_likely_ones(
    folder: Path, reference: sentencepiece.SentencePieceProcessor
) -> None:
    """Runs of one character are where the two implementations could part; BPE never does, unigram at ties only."""
    is_unigram = reference.get_score(reference.piece_to_id("e")) % 1 != 0
    parts = ["a", " ", "-", "=", ".", "哈", "山", "\n", "1", "😀", "the", " of", "ing", ",", "，"]
    chance = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for _ in range(1000):
        text = "".join(chance.choice(parts) * chance.choice([1, 1, 2, 3, 5, 9]) for _ in range(chance.randint(1, 12)))
        ids, expected = tokenizer(text, add_special_tokens=False).input_ids, reference.encode(text)
        likelihoods = [sum(map(reference.get_score, found)) for found in (ids, expected)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-5), text
        assert is_unigram or ids == expected, text


def test_special_tokens_are_those_of_llama_and_a_padding_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2, 3)
    plain = tokenizer("hello", add_special_tokens=False).input_ids
    assert tokenizer("hello").input_ids == [1, *plain]
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [2]
    assert tokenizer.decode([1, *plain, 2, 3], skip_special_tokens=True) == "hello"


def test_size_agrees_and_newlines_are_bytes(folder: Path, reference: sentencepiece.SentencePieceProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == reference.get_piece_size()
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a\nb", add_special_tokens=False).input_ids)
    has_bytes = "<0x0A>" in tokenizer.get_vocab()
    assert ("<0x0A>" if has_bytes else "<unk>") in pieces


def test_ids_stay_beside_a_llama_model_and_after_saving(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert saved(text).input_ids == tokenizer(text).input_ids
