"""The tokenizer of a converted base model: as ift reads it, or the original's own files without their code."""

import json
import shutil
from pathlib import Path
from typing import Any

from ift.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "ice_text.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""That tokenizers of the supported models are made of."""
_REPAIR = "Put its tokenizer files there, or pass --no_tokenizer."


def save_tokenizer(key: str, source: Path, target: Path) -> Any:
    """Write the tokenizer of a folder as transformers' own classes read it, and return it.

    Args:
        key: names the folder, for errors.
        source: of a base model.
        target: where to.

    Raises:
        UserError: there is none that can be loaded.
    """
    from ift.data.encoding import load_tokenizer

    try:
        tokenizer = load_tokenizer(key, str(source))
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. {_REPAIR}") from error
    tokenizer.save_pretrained(str(target))
    drop_code(target)
    return tokenizer


def check_tokenizer(key: str, tokenizer: Any, folder: Path) -> None:
    """Read a tokenizer back from the finished folder, whose config may decide how it is read.

    Args:
        key: names the source, for errors.
        tokenizer: of `save_tokenizer`.
        folder: that it was written to.

    Raises:
        UserError: it is another one.
    """
    from ift.data.encoding import load_tokenizer, tokenizer_hash

    if tokenizer_hash(load_tokenizer("DST", str(folder))) != tokenizer_hash(tokenizer):
        raise UserError(
            f"{key}: its tokenizer does not come back as it was from what transformers writes. Pass --no_tokenizer, "
            "and keep the original's files."
        )


def copy_tokenizer(key: str, source: Path, target: Path) -> None:
    """Copy the files of a tokenizer as they are, but for the code that they name.

    Raises:
        UserError: there is none.
    """
    there = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not set(there) - {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}:
        raise UserError(f"{key}: '{source}' holds no tokenizer. {_REPAIR}")
    for name in there:
        shutil.copyfile(source / name, target / name)
    drop_code(target)


def drop_code(folder: Path) -> None:
    """Let a tokenizer's settings name no code."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if settings.pop("auto_map", None) is not None:
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
