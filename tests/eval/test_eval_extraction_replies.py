"""The default extractor on a table of replies, each with what must be read from it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.extraction import extract_letters

TABLE = yaml.safe_load((Path(__file__).parent / "data" / "extraction_replies.yaml").read_text(encoding="utf-8"))
CASES = [pytest.param(*case, id=f"{group}: {case[0][:40]!r}") for group, cases in TABLE.items() for case in cases]


def test_the_table_is_large() -> None:
    assert len(CASES) >= 200
    assert len({(param.values[0], str(param.values[2:])) for param in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_placeholder(case: Any) -> None: ...
