"""Text and small vocabularies for the tests: SentencePiece models and a byte-level BPE."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Public domain: Tang poems, the Analects, Lewis Carroll's "Alice's Adventures in Wonderland".
LINES = """\
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
床前明月光，疑是地上霜。举头望明月，低头思故乡。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。
红豆生南国，春来发几枝。愿君多采撷，此物最相思。
空山不见人，但闻人语响。返景入深林，复照青苔上。
移舟泊烟渚，日暮客愁新。野旷天低树，江清月近人。
松下问童子，言师采药去。只在此山中，云深不知处。
国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。
子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”
子曰：“温故而知新，可以为师矣。”
子曰：“学而不思则罔，思而不学则殆。”
子曰：“三人行，必有我师焉。择其善者而从之，其不善者而改之。”
曾子曰：“吾日三省吾身：为人谋而不忠乎？与朋友交而不信乎？传不习乎？”
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it,
"and what is the use of a book," thought Alice, "without pictures or conversations?"
So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid),
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies,
when suddenly a White Rabbit with pink eyes ran close by her.
There was nothing so very remarkable in that; nor did Alice think it so very much out of the way
to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"
In another moment down went Alice after it, never once considering how in the world she was to get out again.
Either the well was very deep, or she fell very slowly, for she had plenty of time as she went down to look about her.
    if x < 10 and x > 0 or 0 < x < 10 > x:
        return [1, 2, 34]
-------- ======== ........ 哈哈哈哈哈哈
"""

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
