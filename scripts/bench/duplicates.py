"""Measures the filters of duplicates and contamination: records per second, peak memory, and what near misses.

usage: python scripts/bench/duplicates.py [RECORDS]

The records are generated: 480 characters each, one in ten a copy of an earlier one with a few characters changed. Each
filter runs in a process of its own, so that its peak of resident memory is its own; making the records is not timed.
"""

import functools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ift.data.benchmark_index import index_benchmarks
from ift.data.contamination import ContaminationFilter
from ift.data.conversation import Conversation, Message
from ift.data.duplicates import ExactDuplicates, NearDuplicates, comparable_text, jaccard, shingle_hashes
from ift.data.rows import Source

FILTERS = ("duplicate", "near_duplicate", "contaminated")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz的一是在不了有和人这中大为上个国我以要他"
NUM_PAIRS = 1000


@functools.cache
def words() -> list[str]:
    """Return 60000 words of Chinese and Latin characters mixed."""
    generator = random.Random(3)
    return ["".join(generator.choices(CHARACTERS, k=5)) for _ in range(60_000)]


def text_of(generator: random.Random) -> str:
    """Return 80 words."""
    return " ".join(generator.choices(words(), k=80))


def edited(text: str, generator: random.Random, *, edits: int) -> str:
    """Return the text with characters changed at random places."""
    characters = list(text)
    for place in generator.sample(range(len(characters)), edits):
        characters[place] = "#"
    return "".join(characters)


def talk(text: str) -> Conversation:
    """Return a request and a response."""
    return Conversation((Message("user", text[:160]), Message("assistant", text[160:])))


def records(number: int) -> Iterator[Conversation]:
    """Yield generated conversations."""
    generator, recent = random.Random(0), [""]
    for _ in range(number):
        copy = len(recent) > 1 and generator.random() < 0.1
        text = edited(generator.choice(recent[1:]), generator, edits=4) if copy else text_of(generator)
        recent = [*recent[-50:], text]
        yield talk(text)


def make_filter(name: str, folder: Path) -> ExactDuplicates | NearDuplicates | ContaminationFilter:
    """Return the filter; the benchmark has 10000 items of 480 characters."""
    if name == "duplicate":
        return ExactDuplicates()
    if name == "near_duplicate":
        return NearDuplicates()
    generator = random.Random(1)
    lines = [json.dumps({"question": text_of(generator)}, ensure_ascii=False) for _ in range(10_000)]
    (folder / "benchmark.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return ContaminationFilter(index_benchmarks([Source(path=str(folder / "benchmark.jsonl"), layout="alpaca")]))


def measure_filter(name: str, number: int) -> None:
    """Print the speed and peak memory of one filter in this process."""
    with tempfile.TemporaryDirectory() as folder:
        own, seconds, found = make_filter(name, Path(folder)), 0.0, 0
        for line, conversation in enumerate(records(number), 1):
            started = time.perf_counter()
            found += own.check(conversation, f"generated.jsonl line {line}") is not None
            seconds += time.perf_counter() - started
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<15} {number / seconds:9.0f} records/s  {mebibytes:6.0f} MiB at its peak  {found:7} found")


def measure_recall() -> None:
    """Print how many pairs near the threshold are found, by their true similarity."""
    generator = random.Random(2)
    found: dict[str, list[bool]] = {}
    for number in range(NUM_PAIRS):
        text = text_of(generator)
        pair = talk(text), talk(edited(text, generator, edits=generator.randrange(4, 16)))
        first, second = (shingle_hashes(comparable_text(one), 5) for one in pair)
        similarity = jaccard(first, second)
        near = NearDuplicates(0.8, seed=number)
        near.check(pair[0], "line 1")
        lower = int(similarity * 50) / 50
        group = "below 0.80" if similarity < 0.8 else f"{lower:.2f} to {lower + 0.02:.2f}"
        found.setdefault(group, []).append(near.check(pair[1], "line 2") is not None)
    for group, own in sorted(found.items(), key=lambda pair: (pair[0][0] != "b", pair[0])):
        print(f"true similarity {group}: {sum(own)} of {len(own)} pairs left out")


def main(arguments: list[str]) -> None:
    """Measure all filters, or the named one in this process."""
    number = int(arguments[0]) if arguments else 20_000
    if len(arguments) > 1:
        measure_filter(arguments[1], number)
        return
    for name in FILTERS:
        subprocess.run([sys.executable, __file__, str(number), name], check=True)
    measure_recall()


if __name__ == "__main__":
    main(sys.argv[1:])
