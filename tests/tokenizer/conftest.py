import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `tokenizer` is a folder of programs and not installed

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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bilingual text, half of it as lines and half as documents with newlines."""
    folder = tmp_path_factory.mktemp("corpus")
    text, documents = folder / "lines.txt", folder / "documents.jsonl"
    lines = LINES.splitlines(keepends=True)
    text.write_text("".join(lines[::2]), encoding="utf-8")
    rows = [{"text": "".join(lines[start : start + 6 : 2])} for start in range(1, len(lines), 6)]
    documents.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [text, documents]


@pytest.fixture(scope="session")
def run_tokenizer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m tokenizer …` as a user does, from the repository root."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tokenizer", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def call_tokenizer(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Like `run_tokenizer`, within this process: much faster."""
    from tokenizer.__main__ import main

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call
