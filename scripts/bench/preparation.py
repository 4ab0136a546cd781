"""Measures preparation (read, render, tokenize, label, write) against the tokenizer's own `encode_batch`.

usage: python scripts/bench/preparation.py --base FOLDER --data ROWS.jsonl [--layout alpaca] [--template alpaca]
                                           [--records 20000] [--rounds 7]

Both work on the same texts with the same number of threads: `encode_batch` gets the segments that preparation renders,
in batches of the same size, and nothing else; preparation begins with the file and ends with the store on disk. The
rows of the file are repeated until there are enough. The two take turns, so that whatever else the machine does hits
both alike; the median of the rounds' ratios counts. Exits with 1 where preparation is slower than LIMIT times that.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from ift.data.encoding import Encoder, load_tokenizer, make_renderer
from ift.data.length import LengthPolicy
from ift.data.preparation import PreparationSettings, prepare
from ift.data.row_conversations import resolve_source, to_conversations
from ift.data.rows import Source, read_rows
from ift.data.templates import resolve_template
from ift.errors import UserError

LIMIT = 0.8
BATCH_RECORDS = 1000
MAX_LENGTH = 1 << 20


def usable(source: Source, encoder: Encoder) -> tuple[list[str], list[list[str]]]:
    """Return the rows that become examples, as JSON lines, and the texts of each that the tokenizer sees."""
    policy = LengthPolicy(encoder, MAX_LENGTH, "drop", "outputs")
    function = resolve_source("--data", source).function
    lines, texts = [], []
    for row in read_rows(source):
        (conversation, *more) = to_conversations(row, function, needs_response=True)
        if isinstance(conversation, Exception) or more:
            continue
        segments = policy.render(conversation)
        lines.append(json.dumps(row.value, ensure_ascii=False) + "\n")
        texts.append([segment.text for segment in segments if segment.kind == "text"])
    return lines, texts


def measure(arguments: argparse.Namespace, folder: Path) -> list[tuple[float, float]]:
    """Return records per second of (`encode_batch`, preparation) for every round but the first."""
    tokenizer = load_tokenizer("--base", arguments.base)
    template = resolve_template("--template", arguments.template)
    encoder = Encoder(tokenizer, make_renderer(tokenizer, template))
    lines, texts = usable(Source(arguments.data, arguments.layout), encoder)
    if not lines:
        raise UserError(f"--data: no row of '{arguments.data}' becomes an example.")
    number = arguments.records
    source = Source(str(folder / "rows.jsonl"), arguments.layout)
    Path(source.path).write_text("".join(islice(cycle(lines), number)), encoding="utf-8")
    repeated = list(islice(cycle(texts), number))
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    results = []
    for round_number in range(arguments.rounds + 1):
        started = time.perf_counter()
        for start in range(0, number, BATCH_RECORDS):
            batch = [text for own in repeated[start : start + BATCH_RECORDS] for text in own]
            backend.encode_batch(batch, add_special_tokens=False)
        middle = time.perf_counter()
        settings = PreparationSettings(MAX_LENGTH)
        prepare([source], encoder, settings, cache_dir=folder / f"cache{round_number}", key="--data")
        ended = time.perf_counter()
        results.append((number / (middle - started), number / (ended - middle)))
    return results[1:]


def main() -> int:
    """Print medians and the ratio, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--layout", default="alpaca")
    parser.add_argument("--template", default="alpaca")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    alone, prepared = (statistics.median(column) for column in zip(*results, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in results)
    print(f"encode_batch alone  {alone:9,.0f} records/s")
    print(f"preparation         {prepared:9,.0f} records/s")
    print(f"ratio               {ratio:9.2f}   (median of {len(results)} rounds; at least {LIMIT} is asked for)")
    return 1 if ratio < LIMIT else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
