"""Models whose best pieces share one score, against SentencePiece itself."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from sentencepiece_training import processor, random_texts, train
from tiny import ROOT

from ift.data.sentencepiece_models import differences, fast_tokenizer


def with_pieces(pieces: Sequence[tuple[str, float]], *, keep: int = 0) -> bytes:
    """Return a model with special and byte pieces, the first learned ones, and these."""
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(train())
    first = next(number for number, piece in enumerate(message.pieces) if piece.type == 1)
    del message.pieces[first + keep :]
    known = {piece.piece for piece in message.pieces}
    for piece, score in pieces:
        if piece not in known:
            message.pieces.add(piece=piece, score=score)
            known.add(piece)
    content: bytes = message.SerializeToString()
    return content


def random_model(chance: random.Random, letters: str) -> bytes:
    """Return pieces of a few letters: the more of them there are, the more they overlap."""
    words = [
        "".join(chance.choice(letters) for _ in range(chance.choice([2, 2, 2, 3, 3, 4, 5])))
        for _ in range(chance.choice([4, 8, 15]))
    ]
    tied = [(word, 0.0) for word in words if chance.random() < 0.6]
    tied += [(chance.choice(words), -0.0)] if chance.random() < 0.3 else []  # as the best piece of a trained model
    lower = [(word, -1.0 - number) for number, word in enumerate(words)]
    single = [(letter, -100.0 - number) for number, letter in enumerate([*letters, "▁"])]
    return with_pieces([*tied, *lower, *single])


def ids(tokenizer: Any, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("letters", ["ab", "abc", "abcdef", "人大会中国"])
def test_random_models_have_equal_ids_wherever_no_difference_is_named(letters: str) -> None:
    chance = random.Random(letters)
    exact = 0
    for _ in range(60):
        model = random_model(chance, letters)
        message = sentencepiece_model_pb2.ModelProto()
        message.ParseFromString(model)
        if differences(message):
            continue
        exact += 1
        reference, tokenizer = processor(model), fast_tokenizer(model)
        for text in random_texts(40, seed=exact, parts=[*letters, *letters, " ", "x"]):
            assert ids(tokenizer, text) == reference.encode(text), (text, [str(p.piece) for p in message.pieces[259:]])
    assert exact > 30


def test_rules_are_the_same_in_every_run() -> None:
    """Strings hash differently from process to process; the order of merges must not show it."""
    program = (
        "import random\n"
        "from ift.data.sentencepiece_ties import tie_rules\n"
        "chance = random.Random(3)\n"
        "words = ['12', '21', *(''.join(chance.choices('12ab', k=chance.choice([2, 3, 4]))) for _ in range(120))]\n"
        "scores = {word: 0.0 if chance.random() < 0.5 else -1.0 - n for n, word in enumerate(words)}\n"
        "print(tie_rules({**scores, **dict.fromkeys('12ab', -999.0)}, never=['<0x0A>']))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(found) == 1 and "TieRules(merges=[" in found.pop()


def test_minus_zero_is_below_zero_as_for_sentencepiece() -> None:
    single = [(letter, -100.0 - number) for number, letter in enumerate("abc▁")]
    for left, right, expected in ((0.0, 0.0, ["ab", "c"]), (-0.0, 0.0, ["a", "bc"]), (0.0, -0.0, ["ab", "c"])):
        model = with_pieces([("ab", left), ("bc", right), *single])
        tokenizer = fast_tokenizer(model)
        assert processor(model).encode("abc", out_type=str) == ["▁", *expected]
        assert tokenizer.encode("abc").tokens == ["▁", *expected]


def test_pieces_in_thousands_of_lines_are_found_by_longest_match() -> None:
    """What Chinese-LLaMA's vocabulary needs: overlapping words that all score 0, and words that nothing makes."""
    words = ["人大", "大会", "会议", "中国", "中国人", "国人", "意大利", "利用"]
    single = [(letter, -100.0 - number) for number, letter in enumerate(dict.fromkeys("".join(words) + "▁，"))]
    model = with_pieces([*((word, 0.0) for word in words), *single])
    tokenizer, reference = fast_tokenizer(model), processor(model)
    for text in ("中国人大会议", "人大会议", "意大利用人", "，意大利，", "意大利"):
        assert tokenizer.encode(text).tokens == reference.encode(text, out_type=str)
    assert tokenizer.encode("中国人大会").tokens == ["▁", "中国人", "大会"]
    assert tokenizer.encode("意大利").tokens == ["▁", "意", "大", "利"]
