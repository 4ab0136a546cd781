"""SentencePiece models trained by the tests, and texts to try them on."""

import io
import math
import random
from collections.abc import Sequence
from typing import Any

import sentencepiece

# Public domain: Tang poems, the Analects, Lewis Carroll's "Alice's Adventures in Wonderland".
LINES = """\
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
床前明月光，疑是地上霜。举头望明月，低头思故乡。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。
红豆生南国，春来发几枝。愿君多采撷，此物最相思。
国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。
子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”
子曰：“三人行，必有我师焉。择其善者而从之，其不善者而改之。”
[Round 1] 问：你好 答：你好，有什么我可以帮助你的吗？ 晚上睡不着应该怎么办
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it,
"and what is the use of a book," thought Alice, "without pictures or conversations?"
So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid),
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies,
to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" ### Instruction: Response: <n> <s> | _ 0x09AF
def main(): print('hello world') # greeting {} [] | return 1 + 2 * 34 <|User|>: <|Bot|>: blank_tab
-------- ======== ........ 哈哈哈哈哈哈
""".splitlines()

TEXTS = [
    "",
    " ",
    "   ",
    "hello world",
    "白日依山尽，黄河入海流。Alice was late!",
    "  two leading blanks, and two at the end  ",
    "\n",
    "\n\nfirst\n  second\n第二行\n",
    "tab\there\r\n",
    "2023年12月05日 1,234.56",
    "Ａ１２３，。！？：；「」（）《》　全角　",
    "😀🎉 ok 👩‍👩‍👧 ☕",
    "生僻字：龘靐齉爩",
    "▁under a▁b▁",
    "▁",
    " ▁ ",
    "<0x0A> </s> <unk> [gMASK] are no tokens",
    "é ﬁ ß Ω ① ㍿",
    "def main():\n    print('hello world')\t# greeting",
    "---------- ======= ..... 哈哈哈哈哈哈哈哈",
    "你好<eoh>\n<eoh><eohs> <eoh>",
    "<eoh>a",
    " <eoh> ",
]
PARTS = ["a", " ", "  ", "-", "=", ".", "哈", "山", "\n", "\t", "1", "😀", "the", " of", "ing", ",", "，", "▁", "Ａ"]
PARTS += ["<eoh>", "<eohs>", "<n>", "<|tab|>", "</s>", "\u3000", "龘", "(", "print", "春", "来", "é", "<", ">"]


def random_texts(number: int, *, seed: int = 0, parts: Sequence[str] = PARTS) -> list[str]:
    """Return texts with runs of one part, where ties and blanks are many, and with characters from all planes."""
    chance = random.Random(seed)
    texts = []
    for _ in range(number):
        text = "".join(
            chance.choice(parts) * chance.choice([1, 1, 1, 2, 3, 5, 9]) for _ in range(chance.randint(1, 12))
        )
        if chance.random() < 0.3:
            place = chance.randint(0, len(text))
            text = text[:place] + "".join(map(chr, chance.choices(range(0x4E00, 0x9FA0), k=3))) + text[place:]
        texts.append(text)
    return texts


def train(lines: Sequence[str] = LINES, **settings: Any) -> bytes:
    """Return a small model trained on the lines."""
    model = io.BytesIO()
    chosen = {"vocab_size": 700, "model_type": "bpe", "byte_fallback": True, "character_coverage": 1.0}
    chosen |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    chosen |= {"hard_vocab_limit": False, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **chosen)
    return model.getvalue()


def processor(model: bytes) -> Any:
    """Return SentencePiece's own reading of a model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def equally_likely(reference: Any, found: list[int], expected: list[int]) -> bool:
    """Whether two ways to cut a text have the same score but for rounding."""
    scores = [sum(map(reference.get_score, cut)) for cut in (found, expected)]
    return math.isclose(*scores, rel_tol=1e-6)
