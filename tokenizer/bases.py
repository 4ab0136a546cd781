"""Finds what a user names as a tokenizer: a SentencePiece model or a `tokenizer.json`, alone or in a folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ift.data.sentencepiece_models import read_model
from ift.errors import UserError

_KEPT = (
    "unk_token",
    "bos_token",
    "eos_token",
    "pad_token",
    "add_bos_token",
    "add_eos_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "model_max_length",
    "padding_side",
    "chat_template",
)
"""Of a base's `tokenizer_config.json`; the rest names classes, or repeats what the tokenizer's own file says."""


@dataclass(frozen=True)
class TokenizerFile:
    """A file that holds a tokenizer."""

    path: Path
    kind: Literal["sentencepiece", "json"]
    folder: Path | None
    """Where its settings lie, if a folder was named."""


def find_tokenizer(
    key: str, path: Path, *, prefer: Literal["sentencepiece", "json"] = "sentencepiece"
) -> TokenizerFile:
    """Return the file of a tokenizer.

    Args:
        key: the option that named it, for errors.
        path: a file, or a folder with one.
        prefer: which to take of a folder that has both; `tokenizer.json` is what transformers loads, and mostly made
            from the SentencePiece model.

    Raises:
        UserError: no such file, or no tokenizer in the folder.
    """
    if path.is_file():
        return TokenizerFile(path, "json" if path.suffix == ".json" else "sentencepiece", None)
    if not path.is_dir():
        raise UserError(f"{key}: {path}: no such file or folder.")
    if prefer == "json" and (path / "tokenizer.json").is_file():
        return TokenizerFile(path / "tokenizer.json", "json", path)
    models = sorted(path.glob("*.model"))
    named = [model for model in models if model.name == "tokenizer.model"] or models
    if len(named) > 1:
        names = ", ".join(model.name for model in named)
        raise UserError(f"{key}: {path}: holds several models ({names}). Name the file itself.")
    if named:
        return TokenizerFile(named[0], "sentencepiece", path)
    if (path / "tokenizer.json").is_file():
        return TokenizerFile(path / "tokenizer.json", "json", path)
    raise UserError(f"{key}: {path}: holds neither a SentencePiece model (*.model) nor a tokenizer.json.")


def sentencepiece_settings(found: TokenizerFile, *, pad_token: str | None) -> dict[str, Any]:
    """Return `tokenizer_config.json` for a model merged into a base: the base's own, where it has one.

    Raises:
        UserError: the folder adds tokens behind the model's pieces, which new pieces would move.
    """
    message = read_model(found.path)
    pieces, trainer = {piece.piece for piece in message.pieces}, message.trainer_spec
    names = {"unk": trainer.unk_piece, "bos": trainer.bos_piece, "eos": trainer.eos_piece, "pad": trainer.pad_piece}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{name}_token": piece for name, piece in names.items() if piece in pieces}
    settings |= {"add_bos_token": trainer.bos_piece in pieces, "add_eos_token": False}
    if found.folder is not None:
        config = _read_json(found.folder / "tokenizer_config.json")
        _check_added(found, config, len(message.pieces))
        settings |= {name: _plain(config[name]) for name in _KEPT if config.get(name) is not None}
    if pad_token is not None:
        settings["pad_token"] = pad_token
    return settings | {"clean_up_tokenization_spaces": False}


def byte_level_settings(found: TokenizerFile, *, pad_token: str | None) -> dict[str, Any]:
    """Return `tokenizer_config.json` for an extended byte-level tokenizer: the base's own, where it has one.

    The class becomes the general one, which takes `tokenizer.json` as it is.
    """
    config = {} if found.folder is None else _read_json(found.folder / "tokenizer_config.json")
    settings = {name: value for name, value in config.items() if name not in ("auto_map", "tokenizer_class")}
    if pad_token is not None:
        settings["pad_token"] = pad_token
    return {"tokenizer_class": "PreTrainedTokenizerFast", **settings}


def copy_chat_template(found: TokenizerFile, folder: Path) -> None:
    """Copy a chat template that is a file of its own."""
    if found.folder is not None and (found.folder / "chat_template.jinja").is_file():
        shutil.copyfile(found.folder / "chat_template.jinja", folder / "chat_template.jinja")


def _check_added(found: TokenizerFile, config: Mapping[str, Any], size: int) -> None:
    assert found.folder is not None
    added = {int(index): _plain(token) for index, token in config.get("added_tokens_decoder", {}).items()}
    added |= {index: token for token, index in _read_json(found.folder / "added_tokens.json").items()}
    for token in _read_json(found.folder / "tokenizer.json").get("added_tokens", []):
        added[token["id"]] = token["content"]
    behind = {index: token for index, token in added.items() if index >= size}
    if behind:
        names = ", ".join(f"'{token}' ({index})" for index, token in sorted(behind.items())[:5])
        raise UserError(
            f"--base: {found.folder}: adds tokens behind the {size} pieces of its model ({names}), and new pieces "
            f"would take their ids. Give {found.path} itself to leave them out."
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--base: {path}: not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"--base: {path}: must hold a JSON object.")
    return found


def _plain(token: Any) -> Any:
    """Return a token that is written with its flags as its text."""
    return token["content"] if isinstance(token, dict) and "content" in token else token
