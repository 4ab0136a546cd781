"""Models whose best pieces share one score, against SentencePiece itself."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from sentencepiece_training import processor, random_texts, train

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
