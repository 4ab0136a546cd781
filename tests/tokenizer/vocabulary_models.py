"""Small vocabularies for tests of merging: SentencePiece models and a byte-level BPE."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""In the manner of Llama 3 and Qwen."""


def train_model(lines: Sequence[str], **settings: Any) -> bytes:
    """Return a SentencePiece model with LLaMA's settings but for those given."""
    model = io.BytesIO()
    chosen = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2}
    chosen |= {"remove_extra_whitespaces": False, "character_coverage": 1.0, "hard_vocab_limit": False, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **chosen)
    return model.getvalue()


def parse(model: bytes) -> Any:
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(model)
    return message


def write_byte_level(folder: Path, lines: Sequence[str], *, ignore_merges: bool, size: int = 400) -> Path:
    """Write a byte-level BPE with special tokens behind its vocabulary, as Llama 3 has them."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "chat_template": "{{ messages }}"}'
    )
    return folder


def mixed_texts(lines: Sequence[str], number: int) -> list[str]:
    """Return texts cut out of lines at random and put together."""
    chance, texts = random.Random(0), []
    for _ in range(number):
        parts = []
        for _ in range(chance.randint(1, 6)):
            line = chance.choice(lines)
            start = chance.randrange(len(line))
            parts.append(line[start : start + chance.randint(1, 12)])
        texts.append(chance.choice(["", " ", "\n"]).join(parts))
    return texts
