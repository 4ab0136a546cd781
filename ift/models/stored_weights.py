"""The files of weights in a model's folder: which of them are read, and what lies in them, without loading it."""

import json
import pickle
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ift.errors import UserError

SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors' names to torch's."""
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may be an index of shards instead."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads from a folder; none where there is nothing it knows."""
    for name in _SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / shard for shard in sorted(shards)]
    return []


def stored_dtypes(key: str, folder: Path) -> dict[str, str]:
    """Return the dtype of every tensor in the files of a folder, by its name there.

    Args:
        key: names the folder, for errors.
        folder: of a model.

    Raises:
        UserError: a file that is missing, damaged, or holds more than tensors.
    """
    found: dict[str, str] = {}
    for path in weight_files(folder):
        try:
            found |= _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)
        except (OSError, ValueError, KeyError, RuntimeError, struct.error, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{key}: '{path}' cannot be read as weights: {reason}") from error
    return found


def read_stored(folder: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return some tensors of a folder's files, as they are stored; the files were looked at before."""
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder) if names else ():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
        else:
            found |= {name: tensor for name, tensor in _unpickled(path).items() if name in names}
    return found


def safetensors_entries(path: Path) -> dict[str, Any]:
    """Return what a file of safetensors says of each of its tensors: `dtype`, `shape`, `data_offsets`."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _of_safetensors(path: Path) -> dict[str, str]:
    entries = safetensors_entries(path)
    return {name: SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]) for name, entry in entries.items()}


def _of_pickle(path: Path) -> dict[str, str]:
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in _unpickled(path).items()}


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written before torch 1.6: not to be mapped
        found = torch.load(path, map_location="cpu", weights_only=True)
    return found
