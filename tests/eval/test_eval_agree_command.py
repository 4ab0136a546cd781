import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

Run = Callable[..., subprocess.CompletedProcess[str]]

FIRST = {"a": 1.0, "b": 2.0, "c": 2.0, "d": 5.0, "e": 4.0}
SECOND = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 5.0, "f": 9.0}


@pytest.fixture
def raters(tmp_path: Path) -> tuple[Path, Path]:
    """A report folder, one of whose items does not count, and a table."""
    (tmp_path / "report").mkdir()
    items = [{"id": name, "value": value} for name, value in FIRST.items()] + [{"id": "f", "value": None}]
    text = "".join(json.dumps(item) + "\n" for item in items)
    (tmp_path / "report" / "items.jsonl").write_text(text, encoding="utf-8")
    table = tmp_path / "people.csv"
    table.write_text("id,score\n" + "".join(f"{name},{value}\n" for name, value in SECOND.items()), encoding="utf-8")
    return tmp_path / "report", table


def test_a_report_and_a_table_are_compared(run_eval: Run, raters: tuple[Path, Path]) -> None:
    done = run_eval("agree", *raters)
    assert done.returncode == 0, done.stderr
    shared = [name for name in FIRST if name in SECOND]
    expected = stats.spearmanr([FIRST[name] for name in shared], [SECOND[name] for name in shared]).statistic
    first, second, *_, last = done.stdout.splitlines()
    assert first == "4 items that both scored; 2 that only one did are left out"
    assert second.startswith("Spearman's rank correlation") and f" {expected:.3f} [" in second
    assert last.startswith("mean absolute difference") and " 0.750 [" in last


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,score\na,high\n", "line 2: 'score' must be a number; found 'high'"),
        ("id,mark\na,1\n", "line 2: a row needs 'id' and 'score'"),
        ("id,score\na,1\na,2\n", "line 3: the id 'a' occurs twice"),
        ("id,score\na,1\n", "share 1 items; at least 2"),
    ],
)
def test_rows_that_are_no_scores_are_refused(
    content: str, message: str, run_eval: Run, raters: tuple[Path, Path]
) -> None:
    raters[1].write_text(content, encoding="utf-8")
    done = run_eval("agree", *raters)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
