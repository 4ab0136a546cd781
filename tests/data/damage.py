"""Data files that are damaged in known ways, and which of their rows any reader can still find."""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

Row = dict[str, Any]
TEXTS = ["plain", "中文，测试", "a🙂b", 'say "no"', "back\\slash", "two\nlines", "tab\there", "\u2028sep", ""]


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    kind: str
    suffix: str
    content: bytes
    rows: tuple[Row, ...]
    """The rows that it held before."""
    kept: frozenset[int] = frozenset()
    """Numbers of the rows that must be read."""
    lost: frozenset[int] = frozenset()
    """Numbers of the rows that cannot be read."""


def make_rows(generator: random.Random, *, flat: bool = False) -> tuple[Row, ...]:
    """Return alpaca rows that differ in all their fields; `flat` ones need no quoting in CSV."""
    rows = []
    for number in range(generator.randrange(3, 9)):
        extra = generator.choice(TEXTS[:3] if flat else TEXTS)
        row = {"instruction": f"Say {number}.", "input": extra, "output": f"{number} {extra}", "id": f"r{number}"}
        rows.append(row)
    return tuple(rows)


def _deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def _inserted(line: bytes, generator: random.Random, piece: bytes) -> bytes:
    place = generator.randrange(1, len(line))
    return line[:place] + piece + line[place:]


UNUSABLE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "duplicate key": lambda line, _: line[:-1] + b', "output": "twice"}',
    "nested duplicate key": lambda line, _: line[:-1] + b', "m": [{"k": 1, "k": 2}]}',
    "huge integer": lambda line, _: line[:-1] + b', "n": ' + b"7" * 5000 + b"}",
    "deep": lambda line, _: line[:-1] + b', "n": ' + _deep(5000) + b"}",
    "deep with brackets in texts": lambda line, _: line[:-1] + b', "n": ' + _deep(3000) + b', "t": "]}\\"]"}',
    "no utf-8 in a text": lambda line, _: line[:-2] + b'\xff\xfe"}',
    "gbk": lambda line, _: line[:-2] + "中文".encode("gbk") + b'"}',
    "half a surrogate as bytes": lambda line, _: line[:-2] + b'\xed\xa0\x80"}',
}
"""Damage to one record that leaves its end visible."""
BROKEN: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda line, generator: line[: generator.randrange(1, len(line))],
    "byte 0xff": lambda line, generator: _inserted(line, generator, b"\xff"),
    "NUL": lambda line, generator: _inserted(line, generator, b"\0"),
    "BOM before": lambda line, _: b" \xef\xbb\xbf" + line,
    "UTF-16": lambda line, _: line.decode().encode("utf-16-le").replace(b"\n", b"\1"),
    "trailing comma": lambda line, _: line[:-1] + b",}",
    "comment": lambda line, _: line[:1] + b"/* see above */" + line[1:],
    "quoted singly": lambda line, _: line.replace(b'"instruction"', b"'instruction'"),
    "bare word": lambda line, _: line[:-1] + b', "n": undefined}',
    "unterminated text": lambda line, _: line[:-2],
    "open brackets": lambda line, _: line[:-1] + b', "n": ' + b"[" * 5000,
    "text behind": lambda line, _: line + b" // done",
    "raw control character": lambda line, _: line[:-2] + b'\x01"}',
}
"""Damage to one record that leaves its end in doubt."""
VALUES = [b"null", b"3", b'"text"', b"true", b"{}", b'{"instruction": null}', b'{"instruction": [null], "output": {}}']
SURROGATE = rb'{"\ud83d": 1, "instruction": "\ud83d", "output": "\udc80"}'


def _others(rows: tuple[Row, ...], *damaged: int) -> frozenset[int]:
    return frozenset(range(len(rows))) - frozenset(damaged)


def _lines(rows: tuple[Row, ...], generator: random.Random) -> list[bytes]:
    ascii_only = generator.random() < 0.5
    return [json.dumps(row, ensure_ascii=ascii_only).encode() for row in rows]


def _packed(content: bytes, compression: str) -> bytes:
    if compression == ".gz":
        return gzip.compress(content, mtime=0)
    if compression == ".zst":
        return bytes(pa.Codec("zstd").compress(content, asbytes=True))
    return content


def json_lines(generator: random.Random) -> Iterator[Case]:
    """JSON lines with one bad line: every other line is a row."""
    for kind, damage in (UNUSABLE | BROKEN).items():
        rows = make_rows(generator)
        lines, bad = _lines(rows, generator), generator.randrange(len(rows))
        lines[bad] = damage(lines[bad], generator)
        newline = generator.choice([b"\n", b"\r\n", b"\r", b"\n\n", b"\n \n"])
        if newline == b"\r" and (kind in ("UTF-16",) or bad == 0):
            newline = b"\n"  # what a file is that begins so, its first line alone can tell
        content = generator.choice([b"", b"\xef\xbb\xbf", b"\n"]) + newline.join(lines)
        compression = generator.choice(["", "", ".gz", ".zst"])
        suffix = generator.choice([".jsonl", ".json", ".ndjson"]) + compression
        yield Case(f"line: {kind}", suffix, _packed(content, compression), rows, _others(rows, bad), frozenset({bad}))
    for value in [*VALUES, SURROGATE]:
        rows = make_rows(generator)
        lines = _lines(rows, generator)
        lines.insert(generator.randrange(1, len(rows)), value)
        yield Case(f"line: {value!r}", ".jsonl", b"\n".join(lines), rows, _others(rows))
    rows = make_rows(generator)
    yield Case("rows on one line", ".jsonl", b"".join(_lines(rows, generator)), rows, _others(rows))


def json_arrays(generator: random.Random) -> Iterator[Case]:
    """An array with one bad element: what stands before is read, and after it where its end can be seen."""
    for kind, damage in (UNUSABLE | BROKEN).items():
        rows = make_rows(generator)
        elements, bad = _lines(rows, generator), generator.randrange(len(rows))
        elements[bad] = damage(elements[bad], generator)
        between = generator.choice([b",", b",\n", b"\r\n,\r\n"])
        content = b"[" + generator.choice([b"", b"\n"]) + between.join(elements) + b"]"
        kept = _others(rows, bad) if kind in UNUSABLE else frozenset(range(bad))
        if kind == "text behind":  # a whole element, and then something
            yield Case(f"element: {kind}", ".json", content, rows, kept | {bad})
        else:
            yield Case(f"element: {kind}", ".json", content, rows, kept, frozenset({bad}))
    for tail in (b",]", b"", b"]]", b"] x", b"}", b",", b"]\0"):
        rows = make_rows(generator)
        content = b"[" + b",\n".join(_lines(rows, generator)) + tail
        yield Case(f"array ends in {tail!r}", ".json", content, rows, _others(rows))


def documents(generator: random.Random) -> Iterator[Case]:
    """Pretty-printed objects one after the other; the first is whole."""
    rows = make_rows(generator)
    texts = [json.dumps(row, indent=1).encode() for row in rows]
    yield Case("documents", ".json", b"\n".join(texts), rows, _others(rows))
    for kind, damage in (UNUSABLE | BROKEN).items():
        bad = generator.randrange(1, len(rows))
        damaged = [*texts[:bad], damage(texts[bad].rstrip(b"\n}") + b"}", generator), *texts[bad + 1 :]]
        kept = _others(rows, bad) if kind in UNUSABLE else frozenset(range(bad))
        yield Case(f"document: {kind}", ".json", b"\n".join(damaged), rows, kept)


def _table(rows: tuple[Row, ...], delimiter: str, newline: str) -> list[bytes]:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\0")
    writer.writeheader()
    writer.writerows(rows)
    return [record.encode() + newline.encode() for record in text.getvalue().split("\0")[:-1]]


TABLE_DAMAGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a mark that is never closed": lambda record, _: b'"' + record,
    "text behind a closing mark": lambda record, _: b'"a"b' + record,
    "a field too many": lambda record, delimiter: b"x" + delimiter + record,
    "a field too few": lambda record, delimiter: record.split(delimiter, 1)[1],
    "no utf-8": lambda record, _: b"\xff" + record,
    "half a surrogate": lambda record, _: b"\xed\xa0\x80" + record,
}


def tables(generator: random.Random) -> Iterator[Case]:
    """CSV and TSV with one bad record; the others need no quoting, so that each can be found."""
    for kind, damage in TABLE_DAMAGE.items():
        rows, delimiter = make_rows(generator, flat=True), generator.choice(",\t")
        records = _table(rows, delimiter, generator.choice(["\n", "\r\n", "\r"]))
        bad = generator.randrange(len(rows))
        records[bad + 1] = damage(records[bad + 1], delimiter.encode())
        content = generator.choice([b"", b"\xef\xbb\xbf"]) + b"".join(records)
        compression = generator.choice(["", ".gz", ".zst"])
        suffix = (".csv" if delimiter == "," else ".tsv") + compression
        yield Case(f"record: {kind}", suffix, _packed(content, compression), rows, _others(rows, bad), frozenset({bad}))
    for head in (
        b"a,a\n",
        b",\n",
        b"\xff,b\n",
        b'"a\n',
        b"\xff\xfea\0,\0",
        b"a\0b,c\n",
        b"\n\n\n",
        b"instruction,output",
    ):
        yield Case(f"table begins with {head!r}", ".csv", head + b"1,2\n3,4\n", ())


def byte_damage(generator: random.Random) -> Iterator[Case]:
    """Any byte of any plain file flipped, lost, doubled or the last: the rows before it are read."""
    for suffix in (".jsonl", ".json", ".csv", ".tsv") * 3:
        rows = make_rows(generator, flat=suffix != ".json")
        if suffix == ".jsonl":
            head, parts, tail = b"", [line + b"\n" for line in _lines(rows, generator)], b""
        elif suffix == ".json":
            head, parts, tail = b"[", [line + b"," for line in _lines(rows, generator)], b"]"
            parts[-1] = parts[-1][:-1]
        else:
            head, *parts = _table(rows, "," if suffix == ".csv" else "\t", "\n")
            tail = b""
        whole = head + b"".join(parts) + tail
        place = generator.randrange(max(1, len(head)), len(whole))
        kind = generator.choice(["flip", "cut", "insert", "delete", "zeros"])
        ends = [len(head) + len(b"".join(parts[: i + 1])) for i in range(len(parts))]
        kept = {i for i, end in enumerate(ends) if end <= place}
        if suffix == ".jsonl" and kind != "cut":  # at most the line there and, behind its lost newline, the next
            kept |= {i for i in range(1, len(ends)) if ends[i - 1] > place + 8}
        yield Case(f"byte: {kind} at {place}", suffix, _mutated(whole, place, kind, generator), rows, frozenset(kept))


def _mutated(content: bytes, place: int, kind: str, generator: random.Random) -> bytes:
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << generator.randrange(8))]) + content[place + 1 :]
    if kind == "delete":
        return content[:place] + content[place + 1 :]
    if kind == "zeros":
        return content[:place] + b"\0" * len(content[place : place + 8]) + content[place + 8 :]
    piece = generator.choice(
        [b"\0", b"\xff", b"\xef\xbb\xbf", '{"a"'.encode("utf-16"), b'"', b"\\", b"}", b"[", b"\x1a"]
    )
    return content[:place] + piece + content[place:]


def compressed(generator: random.Random) -> Iterator[Case]:
    """Compressed JSON lines that break off, hold damage, or consist of several parts."""
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        compression = suffix[6:]
        rows = make_rows(generator)
        parts = [line + b"\n" for line in _lines(rows, generator)]
        packed = _packed(b"".join(parts), compression)
        place = generator.randrange(1, len(packed))
        cut = packed[:place]
        readable = zlib.decompressobj(31).decompress(cut).count(b"\n") if compression == ".gz" else 0
        yield Case(f"cut {compression}", suffix, cut, rows, frozenset(range(readable)))
        yield Case(f"flipped {compression}", suffix, _mutated(packed, place, "flip", generator), rows)
        yield Case(f"zeroed {compression}", suffix, _mutated(packed, place, "zeros", generator), rows)
        yield Case(f"garbage behind {compression}", suffix, packed + b"garbage \xff\0", rows, _others(rows))
        members = b"".join(_packed(part, compression) for part in parts)
        yield Case(f"members {compression}", suffix, members, rows, _others(rows))
        yield Case(f"not {compression}", suffix, b"".join(parts), rows)
    rows = make_rows(generator)
    packed = _packed(b"\n".join(_lines(rows, generator)), ".gz")
    yield Case("zeros behind .gz", ".jsonl.gz", packed + b"\0" * 512, rows, _others(rows))


def others(generator: random.Random) -> Iterator[Case]:
    """Text and Parquet, and files that are something else than their names say."""
    rows = make_rows(generator, flat=True)
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), stream, row_group_size=2)
    whole = stream.getvalue()
    for kind in ("flip", "cut", "insert", "delete", "zeros", "flip", "flip", "zeros"):
        place = generator.randrange(len(whole))
        yield Case(f"parquet: {kind} at {place}", ".parquet", _mutated(whole, max(1, place), kind, generator), rows)
    yield Case("parquet under another name", ".jsonl", whole, rows)
    yield Case("gz under another name", ".jsonl", gzip.compress(b"{}"), rows)
    yield Case(
        "random bytes", generator.choice([".json", ".csv", ".parquet", ".jsonl"]), generator.randbytes(300), rows
    )
    texts = b"\n".join(row["output"].encode() for row in rows)
    yield Case("text", ".txt", _mutated(texts, generator.randrange(len(texts)), "insert", generator), rows)
    text = json.dumps(list(rows))
    yield Case("array in UTF-16", ".json", text.encode(generator.choice(["utf-16", "utf-16-le", "utf-32"])), rows)


ALL = (json_lines, json_arrays, documents, tables, byte_damage, compressed, others)


def cases(seed: int) -> list[Case]:
    """Return every kind of damaged file once."""
    generator = random.Random(seed)
    return [case for make in ALL for case in make(generator)]
