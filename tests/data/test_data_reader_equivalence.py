"""The streaming JSON reader gives what the json module gives of the whole text, wherever its pieces end."""

import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pytest

from ift.data import json_rows
from ift.data.json_rows import read_json

PIECES = [1, 2, 3, 7, 16, 64, 1000]
CHARACTERS = 'ab"\\/ \n\r\t\b\f[]{},:0-.e文字🙂\u2028\x7fé\ufeff'


@pytest.fixture(params=PIECES)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that the reader takes at once."""
    size: int = request.param
    monkeypatch.setattr(json_rows, "_PIECE", size)
    return size


def random_number(generator: random.Random) -> Any:
    return generator.choice(
        [0, -1, 7, 12.5, -0.25, 1e22, 1.5e-9, 123456789012345678901234567890, generator.randrange(10**9), True, False]
    )


def random_value(generator: random.Random, depth: int) -> Any:
    kind = generator.randrange(6 if depth < 4 else 3)
    if kind == 0:
        return random_number(generator)
    if kind == 1:
        return "".join(generator.choices(CHARACTERS, k=generator.randrange(12)))
    if kind == 2:
        return None
    size = generator.randrange(4)
    if kind == 3:
        return [random_value(generator, depth + 1) for _ in range(size)]
    keys = ["".join(generator.choices(CHARACTERS, k=3)) + str(i) for i in range(size)]
    return {key: random_value(generator, depth + 1) for key in keys}


def random_blank(generator: random.Random, characters: str = " \t\r\n") -> str:
    return "".join(generator.choices(characters, k=generator.choice([0, 0, 1, 3, 40])))


def written(value: Any, generator: random.Random, *, lines: bool) -> str:
    """Write a value with random blanks between its tokens; without `lines`, on one line."""
    blanks = " \t\r\n" if lines else " \t"
    if isinstance(value, dict | list):
        ends = "{}" if isinstance(value, dict) else "[]"
        parts = []
        for item in value.items() if isinstance(value, dict) else value:
            key = f"{json.dumps(item[0])}{random_blank(generator, blanks)}:" if isinstance(value, dict) else ""
            inner = written(item[1] if isinstance(value, dict) else item, generator, lines=lines)
            parts.append(random_blank(generator, blanks) + key + inner + random_blank(generator, blanks))
        return ends[0] + ",".join(parts) + random_blank(generator, blanks) * (not parts) + ends[1]
    return json.dumps(value, ensure_ascii=generator.random() < 0.5)


def read(text: str) -> list[tuple[int, Any]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        yield io.BytesIO(text.encode())

    rows = list(read_json(opened))
    assert not any(row.problem for row in rows), (text, rows)
    return [(row.line, row.value) for row in rows]


@pytest.mark.parametrize("seed", range(40))
def test_arrays(seed: int, piece: int) -> None:
    generator = random.Random(seed)
    values = [random_value(generator, 0) for _ in range(generator.randrange(12))]
    text, lines = random_blank(generator) + "[", []
    for number, value in enumerate(values):
        text += "," * (number > 0) + random_blank(generator)
        lines.append(text.count("\n") + 1)
        text += written(value, generator, lines=True) + random_blank(generator)
    text += random_blank(generator) + "]" + random_blank(generator)
    assert json.loads(text) == values
    assert read("\ufeff" * (seed % 2) + text) == list(zip(lines, values, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_lines(seed: int, piece: int) -> None:
    generator = random.Random(seed)
    text, expected = "", []
    for number in range(generator.randrange(1, 12)):
        # Objects as published; what stands alone on later lines may be anything.
        value = random_value(generator, 0) if number else {"first": random_value(generator, 1)}
        text += generator.choice(["", "\n", " \r\n\n"])
        expected.append((text.count("\n") + 1, value))
        text += written(value, generator, lines=False) + generator.choice(["\n", "\r\n", " \n"])
    assert [json.loads(line) for line in text.split("\n") if line.strip()] == [value for _, value in expected]
    assert read(("\ufeff" * (seed % 2) + text).rstrip("\n")) == expected


@pytest.mark.parametrize("seed", range(40))
def test_documents(seed: int, piece: int) -> None:
    generator = random.Random(seed)
    text, expected = random_blank(generator), []
    for number in range(generator.randrange(1, 5)):
        value = {f"k{i}": random_value(generator, 1) for i in range(1, 4)}
        expected.append((text.count("\n") + 1, value))
        text += json.dumps(value, indent=1) if number == 0 else written(value, generator, lines=True)
        text += generator.choice(["\n", "", " \n\n"])
    assert read(text) == expected


@pytest.mark.parametrize("number", ["12", "-0.5", "1.25e+10", "3E-7", "0", "10000000000000000000000000000001"])
def test_numbers_are_never_cut(number: str, piece: int) -> None:
    assert read(f"[{number},{number} ,[{number}]\n,{number}]") == [
        (1, json.loads(number)),
        (1, json.loads(number)),
        (1, [json.loads(number)]),
        (2, json.loads(number)),
    ]


def test_surrogate_pairs_written_as_escapes(piece: int) -> None:
    assert read(r'["\ud83d\ude42", "\ud83d", "a\\ud83d\\", "\u00e9\"]"]') == [
        (1, value) for value in ["🙂", "\ud83d", "a\\ud83d\\", 'é"]']
    ]
