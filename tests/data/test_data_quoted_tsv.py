"""The reader of tab-separated records with CSV quoting, against Python's csv module."""

import csv
import io
import random
from pathlib import Path

import pytest

from ift.data.quoted_tsv import MAX_LINES, TsvRecord, read_quoted_tsv


def read(tmp_path: Path, content: str | bytes) -> list[TsvRecord]:
    path = tmp_path / "records.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_quoted_tsv(path))


def swallows_the_next_line(line: str) -> bool:
    return len(list(csv.reader([f"{line}\n", "next\n"], delimiter="\t"))) == 1


@pytest.mark.parametrize("seed", range(10))
def test_what_csv_writes_is_read_back_with_its_lines(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    records = [
        ["".join(generator.choices('ab"\t\n\\ 文{}', k=generator.randrange(1, 9))) for _ in range(3)]
        for _ in range(generator.randrange(1, 30))
    ]
    buffer, lines = io.StringIO(), []
    for record in records:
        buffer.write("\n" * generator.randrange(2))  # lines without a character are no records
        lines.append(buffer.getvalue().count("\n") + 1)
        csv.writer(buffer, delimiter="\t", lineterminator="\n").writerow(record)
    found = read(tmp_path, buffer.getvalue())
    assert [list(one.fields) for one in found] == records
    assert [one.line for one in found] == lines
    assert not any(one.problem or one.loosely_quoted for one in found)


@pytest.mark.parametrize("seed", range(10))
def test_every_line_is_read_as_csv_reads_it_alone_or_refused_where_csv_would_swallow(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    lines = ["".join(generator.choices('ab" \\\t', k=generator.randrange(1, 14))) for _ in range(200)]
    refused = 0
    for line in lines:
        (record,) = read(tmp_path, line)
        if swallows_the_next_line(line):
            assert "never closed" in record.problem
            refused += 1
        else:
            assert [list(record.fields)] == list(csv.reader([line], delimiter="\t"))
    assert 0 < refused < 200


def test_a_mark_that_is_never_closed_costs_only_its_own_line(tmp_path: Path) -> None:
    good = [f"q{i}\ta{i}\tr{i}" for i in range(5)]
    for place in range(6):
        found = read(tmp_path, "\n".join([*good[:place], '"open\ta\tr', *good[place:]]))
        assert [record.line for record in found if record.problem] == [place + 1]
        assert ["\t".join(record.fields) for record in found if not record.problem] == good


def test_a_mark_of_a_later_record_does_not_close_an_earlier_one(tmp_path: Path) -> None:
    """Csv would make one record of both, with a plausible number of fields."""
    text = '"open\ta\tr\n"Gamey" is a word\ta\tr\n'
    assert len(next(csv.reader(io.StringIO(text), delimiter="\t"))) == 3
    refused, loose = read(tmp_path, text)
    assert "not closed on its line" in refused.problem
    assert (loose.line, loose.fields, loose.loosely_quoted) == (2, ("Gamey is a word", "a", "r"), True)


def test_a_quoted_text_may_be_long_but_not_endless(tmp_path: Path) -> None:
    (record,) = read(tmp_path, '"' + "\n" * (MAX_LINES - 1) + '"\ta\tr\n')
    assert record.fields == ("\n" * (MAX_LINES - 1), "a", "r")
    refused, rest = read(tmp_path, '"' + "\n" * MAX_LINES + 'x"\ta\tr\n')
    assert "never closed" in refused.problem
    assert (rest.line, rest.fields) == (MAX_LINES + 1, ('x"', "a", "r"))


def test_bytes_that_are_no_text_and_the_ends_of_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfq\ta\tr\r\n\r\nq\xff\ta\tr\r\n"two\r\nlines"\ta\tr\r\n"open\n\xff\nlast\ta\tr'
    found = read(tmp_path, content)
    assert [(one.line, one.fields, one.problem) for one in found] == [
        (1, ("q", "a", "r"), ""),
        (3, (), "not UTF-8 at byte 1 of the line"),
        (4, ("two\nlines", "a", "r"), ""),
        (6, (), "a quotation mark that opens a field is never closed"),
        (7, (), "not UTF-8 at byte 0 of the line"),
        (8, ("last", "a", "r"), ""),
    ]


def test_an_empty_file_holds_no_record(tmp_path: Path) -> None:
    assert read(tmp_path, "") == read(tmp_path, "\n\n") == []
