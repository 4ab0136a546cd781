"""Base models: a folder of this machine, or the id of a model on the hub; checks that need no weights."""

import hashlib
import json
import os
import re
import sys
import threading
from functools import cache
from pathlib import Path

from ift.errors import UserError
from ift.launch import launch

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATIENCE_SECONDS = 5.0
"""For the hub's answer to the first question; its own client asks each question six times, with 23 s of waits."""
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def local_folder(base: str) -> Path | None:
    """Return the folder that `base` names, or `None` where it can only be a hub id."""
    path = Path(base).expanduser()
    return path if path.is_dir() else None


def check_place(key: str, name: str) -> None:
    """Refuse what is neither a folder nor can be a hub id, or what lies neither on this machine nor can be fetched.

    For a hub id, the hub is asked once whether it answers; if not, this process and those it starts take what was
    fetched before, as with HF_HUB_OFFLINE.

    Raises:
        UserError: a file, a path that does not exist, or a hub id where the hub does not answer and the cache is empty.
    """
    if local_folder(name) is not None:
        return
    if Path(name).expanduser().exists():
        raise UserError(f"{key}: '{name}' is a file. Name the folder that holds it.")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UserError(
            f"{key}: no folder '{name}' (looked in {Path.cwd()}), and it is no hub id (owner/name). Mend the path."
        )
    _check_fetched_or_online(key, name)


def _check_fetched_or_online(key: str, name: str) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    given = constants.HF_HUB_OFFLINE
    silence = "the environment variable HF_HUB_OFFLINE is set" if given else _silence_of_hub()
    if silence is None:
        return
    kept = Path(constants.HF_HUB_CACHE)
    if not any((kept / repo_folder_name(repo_id=name, repo_type="model") / "snapshots").glob("*/*")):
        raise UserError(
            f"{key}: '{name}' is no folder (looked in {Path.cwd()}), {silence}, and nothing of that name was fetched "
            f"before (looked in {kept}). Name a folder, mend the connection, or run 'hf download {name}' where there "
            "is one and copy that folder."
        )
    if not given:
        if launch().is_first:
            print(f"{key}: {silence}; '{name}' is read as it was fetched before.", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"


@cache
def _silence_of_hub() -> str | None:
    """Return how the hub fails to answer, or `None` where it does; asks once."""
    from huggingface_hub import constants

    failures: list[str] = []
    answered = threading.Event()

    def ask() -> None:
        try:
            _question(constants.ENDPOINT)
        except Exception as error:  # of whatever the client is made of; none is an answer
            failures.append(" ".join(str(error).split())[:200] or type(error).__name__)
        answered.set()

    # In a thread, as looking up a name has no time limit of its own.
    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(PATIENCE_SECONDS):
        return f"the hub ({constants.ENDPOINT}) did not answer within {PATIENCE_SECONDS:g} s"
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({failures[0]})" if failures else None


def _question(endpoint: str) -> None:
    from huggingface_hub import get_session

    get_session().head(endpoint, timeout=PATIENCE_SECONDS)


def check_base(key: str, base: str) -> None:
    """Refuse a base model that cannot be there; of the hub, only whether it answers is asked.

    Raises:
        UserError: as `check_place`, or a folder without `config.json`.
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
