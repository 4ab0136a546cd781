"""Reading a large file holds a piece of it, not all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

PROGRAM = """
import resource, sys
from ift.data.files import DataFile
from ift.data.rows import read_file
count = sum(1 for row in read_file(DataFile(sys.argv[1])) if not row.problem)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write(path: Path, mebibytes: int) -> int:
    """Write rows of about 1 KiB up to a size and return how many they are."""
    is_array = path.suffix == ".json"
    number = mebibytes * 1024
    text = "0123456789 abcde" * 60
    with path.open("w", encoding="utf-8") as file:
        if is_array:
            file.write("[")
        elif path.suffix == ".csv":
            file.write("id,text\n")
        for i in range(number):
            if path.suffix == ".csv":
                file.write(f'{i},"{text}"\n')
                continue
            end = ("," if i + 1 < number else "]") if is_array else "\n"
            file.write(json.dumps({"id": i, "text": text}) + end)
    return number


def peak_mebibytes(path: Path, mebibytes: int) -> int:
    number = write(path, mebibytes)
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    count, peak = map(int, done.stdout.split())
    assert count == number
    path.unlink()
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_memory_does_not_grow_with_the_file(suffix: str, tmp_path: Path) -> None:
    """10 MiB and 64 MiB; `test_memory_of_a_very_large_file` goes on to 200."""
    small, large = (peak_mebibytes(tmp_path / f"{size}{suffix}", size) for size in (10, 64))
    assert large - small < 16, (small, large)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_memory_of_a_very_large_file(suffix: str, tmp_path: Path) -> None:
    small, large = (peak_mebibytes(tmp_path / f"{size}{suffix}", size) for size in (10, 200))
    assert large - small < 30, (small, large)
