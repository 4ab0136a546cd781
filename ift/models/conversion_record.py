"""What a converted folder says of itself: `conversion.json` for programs, `README.md` for people."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ift import __version__
from ift.errors import UserError
from ift.models.families import FAMILIES, Family

RECORD = "conversion.json"


@dataclass(frozen=True)
class ConversionRecord:
    """Of which files a folder was made, and how."""

    source: str
    """Folder or hub id, as the user named it."""
    files: dict[str, str]
    """sha256 of each file that was read, by name."""
    family: str | None
    """Of the original; `None` for a model that transformers knows by itself."""
    title: str | None
    """Of the family, for people."""
    layout: str
    """native or original."""
    dtype: str
    """Of the weights."""
    num_tensors: int
    """That were read back and found equal, bit by bit."""
    left_out: list[str]
    """Tensors of the files that the model has no place for: stored rotations and masks."""
    kept: dict[str, Any]
    """Their values, for the way back."""
    baked_head: bool
    """Whether the rows of the head were divided by their lengths (Baichuan2)."""
    source_config: dict[str, Any] | None
    """The original's `config.json`, for the way back."""
    versions: dict[str, str]
    """Of Python and packages."""

    def describe(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def read_record(folder: Path) -> ConversionRecord | None:
    """Return what a folder says of the conversion that it came from; `None` where it says nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    names = [one.name for one in fields(ConversionRecord)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return ConversionRecord(**{name: found[name] for name in names})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"SRC: '{path}' is damaged ({error}). Delete it, and name the --family.") from error


def original_family(name: str, folder: Path | None, *, read_by: Family | None, asked: str | None) -> Family | None:
    """Return in whose original layout a base model can be, as far as anything says so.

    Args:
        name: of the base model, for errors.
        folder: of the base model, where it is on this machine.
        read_by: the family whose reader reads it, if any.
        asked: name of the family that the user gave.

    Raises:
        UserError: the user says otherwise than the folder.
    """
    known = {family.name: family for family in FAMILIES}
    record = read_record(folder) if folder is not None and read_by is None else None
    found = read_by or (known.get(record.family or "") if record is not None else None)
    if asked is not None and found is not None and asked != found.name:
        raise UserError(f"--family: '{asked}', and '{name}' is of {found.name}. Leave it out.")
    return found or (known[asked] if asked is not None else None)


def readme(record: ConversionRecord, name: str) -> str:
    """Return the text of a converted folder's `README.md`.

    Args:
        record: of the conversion.
        name: of the folder.
    """
    kind = record.title or "a model that transformers knows by itself"
    where = {
        "native": "transformers' own classes load it; no code of its authors and nothing of ift is needed.",
        "original": "Names, matrices and config.json are those of its authors' release; their code is not part of it.",
    }
    lines = [
        f"# {name}",
        "",
        f"{kind} in the {record.layout} layout, {record.dtype}, converted from `{record.source}` by ift {__version__}.",
        where[record.layout],
        "",
        f"All {record.num_tensors} tensors of the model were read back from these files and are equal, bit by bit, to "
        "those in memory when they were written. Hashes of the source are in `conversion.json`.",
    ]
    if record.left_out:
        why = "stored rotations and masks, which code makes itself" if record.family else "the model has no such module"
        number, kept = len(record.left_out), " `conversion.json` keeps them for the way back." if record.kept else ""
        lines.append(f"{number} tensors of the source were left out, first `{record.left_out[0]}`: {why}.{kept}")
    if record.baked_head:
        rounding = "" if record.dtype == "float32" else f", up to the rounding of the divided rows to {record.dtype}"
        lines += [
            "",
            "The rows of the head are divided by their lengths once and for all, which the original does in every "
            f"pass; logits are the same{rounding}. The lengths themselves are not kept, so the way back to the "
            "original layout gives a model with the same logits and another head. To train the head as the original "
            "does, begin with the original folder.",
        ]
    return "\n".join(lines) + "\n"
