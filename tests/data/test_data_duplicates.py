"""Duplicates: what counts as equal, near ones against a brute-force reference, and the command."""

import dataclasses
import json
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ROOT

from ift.cli import main
from ift.data.conversation import Conversation, Message
from ift.data.duplicates import (
    RECALL,
    ExactDuplicates,
    NearDuplicates,
    choose_bands,
    comparable_text,
    conversation_digest,
    jaccard,
    shingle_hashes,
)
from ift.data.text_windows import window_hashes

SHARED = ROOT.parent / "shared" / "data"
ENGLISH = ["river", "stone", "bread", "green", "window", "seven", "morning", "paper", "cloud", "engine", "salt"]
CHINESE = "河石头面包绿窗七早晨纸云机盐信花园北音乐山水火土木金人口手足日月"


def talk(request: str, response: str = "", **settings: Any) -> Conversation:
    return Conversation((Message("user", request), Message("assistant", response)), **settings)


def random_text(generator: random.Random, length: int, *, chinese: bool) -> str:
    if chinese:
        return "".join(generator.choices(CHINESE, k=length))
    return " ".join(generator.choices(ENGLISH, k=length // 4))


def edited(text: str, generator: random.Random, *, edits: int) -> str:
    characters = list(text)
    for place in generator.sample(range(len(characters)), edits):
        characters[place] = generator.choice("xyz火")
    return "".join(characters)


def reference_shingles(conversation: Conversation) -> set[str]:
    """The definition, written down a second time without hashes."""
    text = "\n".join(part for m in conversation.messages for part in (m.text, m.context))
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return {text[i : i + 5] for i in range(len(text) - 4)} or {text}


def reference_similarity(first: Conversation, second: Conversation) -> float:
    one, two = reference_shingles(first), reference_shingles(second)
    return len(one & two) / len(one | two)


def family(seed: int, *, chinese: bool) -> list[Conversation]:
    """Texts, each followed by copies with more and more edits, shuffled."""
    generator = random.Random(seed)
    texts = []
    for _ in range(12):
        text = random_text(generator, 300, chinese=chinese)
        texts += [text, *(edited(text, generator, edits=edits) for edits in (0, 1, 2, 4, 6, 9, 20))]
    generator.shuffle(texts)
    return [talk(text[:100], text[100:]) for text in texts]


def test_an_equal_conversation_names_the_first() -> None:
    duplicates = ExactDuplicates()
    assert duplicates.check(talk("a", "b"), "f line 1") is None
    assert duplicates.check(talk("a", "c"), "f line 2") is None
    assert duplicates.check(talk("a", "b"), "f line 3") == "equal to f line 1"
    assert duplicates.check(talk("a", "b", id="7", source="g", meta={"x": 1}), "g line 1") == "equal to f line 1"
    assert duplicates.check(talk("a", "c"), "g line 2") == "equal to f line 2"


def test_every_part_of_a_message_counts_for_equality() -> None:
    """A field that messages get later fails here until it counts."""
    message = Message("assistant", "a", context="b", supervised=True, thought="c", call=False)
    others = {"role": "user", "text": "A", "context": "b ", "supervised": None, "thought": "", "call": True}
    assert others.keys() == {field.name for field in dataclasses.fields(Message)}
    digest = conversation_digest(Conversation((message,)))
    for name, value in others.items():
        assert conversation_digest(Conversation((dataclasses.replace(message, **{name: value}),))) != digest
    assert conversation_digest(Conversation((message,), system="s")) != digest
    assert conversation_digest(Conversation((message, message))) != digest


def test_where_one_text_ends_and_the_next_begins_counts() -> None:
    assert conversation_digest(talk("ab", "c")) != conversation_digest(talk("a", "bc"))
    assert conversation_digest(talk('a", "b', "")) != conversation_digest(talk("a", "b"))


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_are_those_of_the_brute_force(seed: int, chinese: bool) -> None:
    """Whatever is left out is truly similar to what it names; at 0.9 the chance to miss a pair is 2 in a million."""
    near = NearDuplicates(0.8)
    kept: dict[str, Conversation] = {}
    seen = Counter[bool]()
    for number, conversation in enumerate(family(seed, chinese=chinese)):
        reason = near.check(conversation, f"f line {number}")
        similarities = {place: reference_similarity(conversation, other) for place, other in kept.items()}
        seen[reason is not None] += 1
        if reason is None:
            assert max(similarities.values(), default=0) < 0.9
            kept[f"f line {number}"] = conversation
        else:
            stated, place = reason.removeprefix("Jaccard similarity ").split(" with ")
            assert similarities[place] >= 0.8
            assert float(stated) == pytest.approx(similarities[place], abs=0.0006)
            assert not any(value >= 0.9 for other, value in similarities.items() if int(other[7:]) < int(place[7:]))
    assert seen[True] >= 30 and seen[False] >= 12


def test_pairs_at_the_threshold_are_found_as_often_as_stated() -> None:
    """Pairs just above the threshold, where most are missed, against the formula of the bands."""
    generator = random.Random(5)
    expected, found, number = 0.0, 0, 0
    while number < 150:
        text = random_text(generator, 400, chinese=True)
        first, second = talk(text), talk(edited(text, generator, edits=generator.randrange(7, 11)))
        similarity = reference_similarity(first, second)
        if 0.8 <= similarity < 0.85:
            near = NearDuplicates(0.8, seed=number)
            assert near.check(first, "f line 1") is None
            expected += near.recall(similarity)
            found += near.check(second, "f line 2") is not None
            number += 1
    assert expected / number > RECALL
    assert abs(found - expected) <= 4 * (number * 0.01) ** 0.5  # four standard deviations at a recall of 99 %


def test_form_does_not_matter_but_the_text_does() -> None:
    near = NearDuplicates(1.0)
    assert near.check(talk("What is  the\ncapital of France?", "Paris"), "f line 1") is None
    assert near.check(talk("ＷＨＡＴ is the capital of\tfrance？", " paris"), "f line 2") is not None
    assert near.check(talk("What is the capital of Francd?", "Paris"), "f line 3") is None
    assert near.check(talk("法国的首都是哪里？"), "f line 4") is None
    assert near.check(talk("法国的首都是哪里?"), "f line 5") is not None


def test_short_texts_are_compared_whole() -> None:
    near = NearDuplicates(0.5)
    assert near.check(talk("1+1"), "f line 1") is None
    assert near.check(talk("1+2"), "f line 2") is None
    assert near.check(talk("1+1"), "f line 3") == "Jaccard similarity 1.000 with f line 1"


def test_a_shared_system_text_makes_no_duplicates() -> None:
    near = NearDuplicates(0.8)
    system = "You are an assistant who answers at length and with care. " * 20
    assert near.check(talk("north", "salt", system=system), "f line 1") is None
    assert near.check(talk("music", "paper", system=system), "f line 2") is None


def test_conversations_of_one_row_are_not_compared() -> None:
    near = NearDuplicates(0.8)
    text = random_text(random.Random(0), 300, chinese=False)
    assert near.check(talk(text, "a"), "f line 1") is None
    assert near.check(talk(text, "b"), "f line 1") is None
    assert near.check(talk(text, "c"), "f line 2") is not None


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("permutations", [64, 128, 256])
def test_bands_are_the_fewest_candidates_that_find_enough(threshold: float, permutations: int) -> None:
    bands, rows = choose_bands(threshold, permutations)
    assert bands * rows <= permutations
    assert 1 - (1 - threshold**rows) ** bands >= RECALL
    more = rows + 1
    assert more > permutations or 1 - (1 - threshold**more) ** (permutations // more) < RECALL


def test_hashes_are_equal_where_the_windows_are() -> None:
    """Few small numbers in all orders, because regular input is where a weak hash collides."""
    generator = random.Random(0)
    for length in (1, 2, 5, 13):
        values = generator.choices(range(7), k=30_000)
        hashes = window_hashes(np.array(values, dtype=np.uint64), length).tolist()
        windows = [tuple(values[i : i + length]) for i in range(len(values) - length + 1)]
        assert len(hashes) == len(windows)
        assert len(set(zip(hashes, windows, strict=True))) == len(set(hashes)) == len(set(windows))


def test_jaccard_of_hashes_is_that_of_the_shingles() -> None:
    conversations = family(7, chinese=True)[:12]
    for first in conversations:
        for second in conversations:
            own = [shingle_hashes(comparable_text(one), 5) for one in (first, second)]
            assert jaccard(*own) == pytest.approx(reference_similarity(first, second), abs=1e-12)


def test_the_same_input_gives_the_same_outcome() -> None:
    conversations = family(3, chinese=False)
    runs = [
        [near.check(conversation, f"f line {i}") for i, conversation in enumerate(conversations)]
        for near in (NearDuplicates(), NearDuplicates())
    ]
    assert runs[0] == runs[1]


def test_the_description_holds_every_setting() -> None:
    described = [
        NearDuplicates(0.8),
        NearDuplicates(0.7),
        NearDuplicates(0.8, num_permutations=64),
        NearDuplicates(0.8, ngram=4),
        NearDuplicates(0.8, seed=2),
        ExactDuplicates(),
    ]
    assert len({json.dumps(one.describe(), sort_keys=True) for one in described}) == len(described)
    assert NearDuplicates(0.8).describe() == described[0].describe()


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"threshold": 0}, "threshold"), ({"num_permutations": 8}, "num_perm"), ({"ngram": 0}, "ngram")],
)
def test_settings_out_of_range(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}"):
        NearDuplicates(**settings)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match="pip install 'datasketch"):
        NearDuplicates()
    assert ExactDuplicates().check(talk("a"), "f line 1") is None


def test_a_full_disk_is_told_with_its_remedy() -> None:
    for duplicates in (ExactDuplicates(), NearDuplicates()):
        duplicates._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(ValueError, match="database or disk is full.*SQLITE_TMPDIR"):
            for number in range(2000):
                duplicates.check(talk(f"text number {number}"), f"f line {number}")


def write_lines(path: Path, lines: Iterable[Any]) -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n" for one in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def alpaca_rows(number: int) -> list[dict[str, Any]]:
    generator = random.Random(number)
    return [
        {"instruction": random_text(generator, 200, chinese=i % 2 == 0), "output": f"answer {i}", "extra": [i, None]}
        for i in range(number)
    ]


def threads(row: dict[str, Any]) -> list[Conversation]:
    """A row function whose rows hold several conversations."""
    return [talk(text, "yes") for text in row["texts"]]


def test_the_command_accounts_for_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = alpaca_rows(30)
    near = {**rows[4], "instruction": rows[4]["instruction"] + "!"}
    first = write_lines(tmp_path / "first.jsonl", [*rows[:20], rows[3], "{broken", near, {"q": "no layout"}])
    second = write_lines(tmp_path / "second.jsonl", [rows[7], *rows[20:], {**rows[25], "extra": "other"}])
    outputs = ["--output", str(tmp_path / "new" / "kept.jsonl"), "--removed", str(tmp_path / "new" / "removed.jsonl")]
    assert main(["data", "deduplicate", "--input", first, second, "--near", *outputs]) == 0
    kept, removed = read_lines(tmp_path / "new" / "kept.jsonl"), read_lines(tmp_path / "new" / "removed.jsonl")
    assert kept == rows
    assert [(one["file"], one["line"], one["kind"]) for one in removed] == [
        (first, 21, "duplicate"),
        (first, 22, "unreadable"),
        (first, 23, "near_duplicate"),
        (first, 24, "unreadable"),
        (second, 1, "duplicate"),
        (second, 12, "duplicate"),
    ]
    assert removed[0]["reason"] == f"equal to {first} line 4" and removed[0]["row"] == rows[3]
    assert removed[1]["reason"].startswith("not valid JSON") and removed[1]["row"] is None
    assert removed[2]["reason"].endswith(f"with {first} line 5") and removed[2]["row"] == near
    assert removed[4]["reason"] == f"equal to {first} line 8"
    printed = capsys.readouterr().out
    assert f"{first}: 24 rows, 20 kept, 1 duplicate, 1 near_duplicate, 2 unreadable\n" in printed
    assert f"{second}: 12 rows, 10 kept, 2 duplicate\n" in printed
    assert "kept 30 rows" in printed and "removed 6 rows" in printed


def test_without_near_only_equal_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    (row,) = alpaca_rows(1)
    other = {**row, "output": "answer 0!"}
    path = write_lines(tmp_path / "rows.jsonl", [row, other, row])
    outputs = ["--output", str(tmp_path / "kept.jsonl"), "--removed", str(tmp_path / "removed.jsonl")]
    assert main(["data", "deduplicate", "--input", path, *outputs]) == 0
    assert read_lines(tmp_path / "kept.jsonl") == [row, other]


def test_a_row_of_several_conversations_goes_when_all_of_them_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"texts": ["a", "b"]}, {"texts": ["a", "c"]}, {"texts": ["c", "b"]}, {"texts": []}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    outputs = ["--output", str(tmp_path / "kept.jsonl"), "--removed", str(tmp_path / "removed.jsonl")]
    assert main(["data", "deduplicate", "--input", path, "--layout", f"{__name__}.threads", *outputs]) == 0
    assert read_lines(tmp_path / "kept.jsonl") == rows[:2]
    assert [one["kind"] for one in read_lines(tmp_path / "removed.jsonl")] == ["duplicate", "unreadable"]
    assert "1 conversations are duplicate in a row that stays" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outputs", "x"], "Did you mean '--output'?"),
        (["--threshold", "0.9"], "--threshold: says what counts"),
        (["--near", "--threshold", "1.5"], "threshold: 1.5 is not above 0 and at most 1"),
        (["--near", "--threshold", "much"], "--threshold: invalid float value: 'much'"),
        (["--layout", "alpacca"], "Did you mean 'alpaca'?"),
        (["--removed", "{input}"], "exists, and nothing is overwritten"),
        (["--removed", "{output}"], "is --output already"),
        (["--input", "{input}", "{input}"], "stands there twice"),
        (["--input", "none.jsonl"], "--input.path: no file 'none.jsonl'"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"input": write_lines(tmp_path / "rows.jsonl", alpaca_rows(2)), "output": str(tmp_path / "kept.jsonl")}
    given = ["--input", names["input"], "--output", names["output"], "--removed", str(tmp_path / "removed.jsonl")]
    assert main(["data", "deduplicate", *given, *(argument.format(**names) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
def test_real_rows_that_occur_in_two_collections(tmp_path: Path) -> None:
    """One file holds a row of the other, and a row twice; the reference is a dictionary of the raw texts."""
    paths = [SHARED / "alpaca_en_zh_parallel/en.json", SHARED / "alpaca_gpt4_demo/alpaca_en_demo.json"]
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    different = {(row["instruction"], row["input"], row["output"]) for row in rows}
    outputs = ["--output", str(tmp_path / "kept.jsonl"), "--removed", str(tmp_path / "removed.jsonl")]
    assert main(["data", "deduplicate", "--input", *map(str, paths), *outputs]) == 0
    kept, removed = read_lines(tmp_path / "kept.jsonl"), read_lines(tmp_path / "removed.jsonl")
    assert len(removed) == len(rows) - len(different) == 2
    assert len(kept) == len(different)


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
@pytest.mark.parametrize("threshold", [0.8, 0.6])
def test_real_near_duplicates_are_those_of_the_brute_force(threshold: float) -> None:
    """Questions of one collection that differ in their numbers only."""
    rows = json.loads((SHARED / "cot_pairs/aqua_formatted.json").read_text(encoding="utf-8"))
    conversations = [talk(row["instruction"], row["output"]) for row in rows]
    near = NearDuplicates(threshold)
    found = [near.check(one, f"f line {line}") is not None for line, one in enumerate(conversations)]
    kept: list[set[str]] = []
    expected = []
    for shingles in map(reference_shingles, conversations):
        similar = any(len(shingles & other) >= threshold * len(shingles | other) for other in kept)
        expected.append(similar)
        if not similar:
            kept.append(shingles)
    assert sum(expected) >= 3
    assert found == expected
