"""Tensors of original files that no model needs (stored rotations, masks), kept small in a record for the way back.

They are the same in every layer and compress well: of 28 masks of 4 MB, a few kB are left.
"""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import torch

_MOST_BYTES = 1 << 20
"""Of all values, compressed; more are not kept."""


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return tensors as plain values, each value once; nothing where they are too large.

    Args:
        tensors: by name.
    """
    names, values = {}, {}
    for name, tensor in tensors.items():
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        described = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        names[name] = hashlib.sha256(repr(described).encode() + content).hexdigest()
        if names[name] not in values:
            values[names[name]] = {**described, "zlib": base64.b64encode(zlib.compress(content, 9)).decode()}
    if sum(len(one["zlib"]) for one in values.values()) > _MOST_BYTES:
        return {}
    return {"names": names, "values": values} if names else {}


def unpacked(kept: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of `packed`, bit by bit."""
    values = {name: _tensor(one) for name, one in kept.get("values", {}).items()}
    return {name: values[value] for name, value in kept.get("names", {}).items()}


def _tensor(one: Mapping[str, Any]) -> torch.Tensor:
    content = bytearray(zlib.decompress(base64.b64decode(one["zlib"])))
    flat = torch.frombuffer(content, dtype=torch.uint8).view(getattr(torch, one["dtype"]))
    return flat.reshape(one["shape"])
