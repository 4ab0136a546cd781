"""Base models: a folder of this machine, or the id of a model on the hub; checks that need no weights."""

import hashlib
import json
import re
from pathlib import Path

from ift.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def local_folder(base: str) -> Path | None:
    """Return the folder that `base` names, or `None` where it can only be a hub id."""
    path = Path(base).expanduser()
    return path if path.is_dir() else None


def check_place(key: str, name: str) -> None:
    """Refuse what is neither a folder nor can be a hub id, without touching the network.

    Raises:
        UserError: a file, or a path that does not exist.
    """
    if local_folder(name) is not None:
        return
    if Path(name).expanduser().exists():
        raise UserError(f"{key}: '{name}' is a file. Name the folder that holds it.")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UserError(
            f"{key}: no folder '{name}' (looked in {Path.cwd()}), and it is no hub id (owner/name). Mend the path."
        )


def check_base(key: str, base: str) -> None:
    """Refuse a base model that cannot be there, without touching the network.

    Raises:
        UserError: a path that does not exist, or a folder without `config.json`.
    """
    check_place(key, base)
    folder = local_folder(base)
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError(f"{key}: the folder '{base}' holds no config.json, so it is no model in transformers' layout.")


def has_encoder(base: str) -> bool:
    """Return whether a model is an encoder-decoder (T5), by its config; a folder without one is none.

    What the encoder reads and what the decoder writes are then two texts.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    folder = local_folder(base)
    if folder is not None and not (folder / "config.json").is_file():
        return False
    try:
        config = AutoConfig.from_pretrained(str(folder) if folder else base, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError):  # whoever loads the model says what is wrong
        return False
    return bool(getattr(config, "is_encoder_decoder", False))


def fingerprint(base: str) -> str:
    """Return a sha256 that changes with the model: over its config and a sample of its weights.

    For a folder: `config.json`, and of every weight file its name, size and 64 blocks of 64 KiB evenly spread; so a
    model of any size takes milliseconds. For a hub id: the id itself, as its files may not be here yet.
    """
    folder = local_folder(base)
    digest = hashlib.sha256()
    if folder is None:
        digest.update(base.encode())
        return digest.hexdigest()
    digest.update(json.dumps(_config(folder), sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLED_BLOCKS):
                file.seek(max(0, size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _config(folder: Path) -> object:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read ({error}).") from error
    if isinstance(config, dict):
        config.pop("_name_or_path", None)
        config.pop("transformers_version", None)
    return config
