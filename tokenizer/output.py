"""New folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ift.errors import UserError


def check_new(output: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        UserError: something is there.
    """
    if output.exists():
        raise UserError(f"--output: {output} exists and nothing is overwritten. Give another folder, or remove it.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder to fill, which is moved to its place when the block ends well, and removed when it does not.

    Raises:
        UserError: the place is taken.
    """
    check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
