"""A command finds large pages switched on before it imports torch, unless the user has said otherwise."""

import os
from pathlib import Path

import pytest

from ift import cli


@pytest.mark.parametrize(("said", "found"), [(None, "1"), ("0", "0")])
def test_large_pages_are_on_before_a_command_is_imported(
    said: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"command_that_looks_{found}"
    program = "import os\nSEEN = os.environ.get('THP_MEM_ALLOC_ENABLE')\ndef run(command, arguments): assert SEEN == "
    (tmp_path / f"{name}.py").write_text(f"{program}'{found}', SEEN\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.COMMANDS, "look", (name, ""))
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said or "")
    if said is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert cli.main(["look"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == found
