import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from ift.errors import UserError
from tokenizer.corpus import MAX_SENTENCE_CHARACTERS, CorpusSize, measure, read_sentences, sample_sentences


def write(path: Path, text: str) -> list[Path]:
    path.write_bytes(text.encode())
    return [path]


def test_lines_and_documents_give_sentences(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "  一\r\n\n \ntwo")
    documents = write(tmp_path / "b.jsonl", '{"text": "三\\n\\n four\\n", "id": 1}\n\n{"text": ""}\n')
    assert list(read_sentences([*text, *documents])) == ["  一", "two", "三", " four"]
    assert measure([*text, *documents]) == CorpusSize(num_sentences=4, num_bytes=5 + 3 + 3 + 5, num_split_lines=0)


def test_nothing_is_left_out_of_long_lines_and_lines_with_the_reserved_character(tmp_path: Path) -> None:
    long = "字" * (2 * MAX_SENTENCE_CHARACTERS + 1)
    paths = write(tmp_path / "a.txt", f"{long}\nbefore\u2585after\n")
    sentences = list(read_sentences(paths))
    assert "".join(sentences[:3]) == long and max(map(len, sentences)) == MAX_SENTENCE_CHARACTERS
    assert sentences[3:] == ["before", "after"]
    assert measure(paths).num_split_lines == 2


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    paths = write(tmp_path / "a.txt", "".join(f"{number:03d}\n" for number in range(100)))
    sample = list(sample_sentences(paths, num_sentences=20, total=100, seed=1))
    assert sample == sorted(sample) and len(set(sample)) == 20
    assert sample == list(sample_sentences(paths, num_sentences=20, total=100, seed=1))
    assert sample != list(sample_sentences(paths, num_sentences=20, total=100, seed=2))


def test_folders_and_compressed_files_are_read_like_plain_ones(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "below").mkdir(parents=True)
    write(folder / "b.txt", "one\n")
    write(folder / "notes.md", "not read")
    (folder / "a.txt.gz").write_bytes(gzip.compress("零\n".encode()))
    (folder / "below" / "c.jsonl.zst").write_bytes(pa.compress(b'{"text": "two\\nthree"}\n', "zstd", asbytes=True))
    assert list(read_sentences([folder])) == ["零", "one", "two", "three"]
    assert measure([folder]) == CorpusSize(num_sentences=4, num_bytes=3 + 3 + 3 + 5, num_split_lines=0)
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(b"abc\n" * 1000)[:-20])
    with pytest.raises(UserError, match=r"broken.txt.gz after line \d+: .* damaged"):
        measure([tmp_path / "broken.txt.gz"])
    with pytest.raises(UserError, match="below2: no such file|name must end"):
        measure([folder / "below2"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no file that ends with .txt"):
        measure([tmp_path / "empty"])


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Ten times the text, in lines and in one line, are read and sampled within the same memory."""
    line = "三人行，必有我师焉。" * 10 + "\n"
    peaks = []
    for size in (1_500, 15_000):
        lines = write(tmp_path / f"{size}.txt", line * size)[0]
        whole = write(tmp_path / f"{size}.one.txt", line.strip() * size)[0]
        tracemalloc.start()
        found = measure([lines, whole])
        sample = sample_sentences([lines, whole], num_sentences=100, total=found.num_sentences, seed=0)
        assert sum(1 for _ in sample) == 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 10e6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n\n", "no text but white space"),
        ("a.csv", "x", "the name must end with .txt .* or .jsonl"),
        ("a.jsonl", '{"text": "x"}\n{', "a.jsonl line 2: not valid JSON"),
        ("a.jsonl", '{"body": "x"}', "a.jsonl line 1: a document needs 'text'"),
        ("a.jsonl", "[]", "a.jsonl line 1: a document needs 'text'"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(write(tmp_path / name, text))


def test_other_encodings_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gbk.txt").write_bytes("汉字\n".encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8"):
        measure([tmp_path / "gbk.txt"])
    with pytest.raises(UserError, match="no such file"):
        measure([tmp_path / "none.txt"])
