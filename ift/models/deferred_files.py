"""Files of weights as deferred tensors: safetensors, read row by row, and `.bin` files of torch, mapped."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ift.models.deferred import Deferred, in_place
from ift.models.stored_weights import safetensors_entries

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Of safetensors, those that can be deferred."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read rows, and nothing else, into memory of their own."""
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        found = torch.empty(shape, dtype=self.dtype)
        if found.numel():
            row_bytes = found.nbytes // max(1, stop - start)
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * row_bytes)
                view = memoryview(found.reshape(-1).view(torch.uint8).numpy().data)
                while view:
                    if not (count := file.readinto(view)):
                        raise OSError(f"'{self.path}' ends before its tensors do")
                    view = view[count:]
        return found


def deferred_tensors(path: Path) -> dict[str, Deferred]:
    """Return the tensors of a safetensors file, none of which is read.

    Args:
        path: of the file, whose tensors have dtypes of `DTYPES`.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is damaged, or shorter than it says.
    """
    with safe_open(path, "np"):  # which compares what it says of itself with its size
        pass
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
    found = {}
    for name, entry in safetensors_entries(path).items():
        place = _Place(path, begin + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))
        like = torch.empty(place.shape, dtype=place.dtype, device="meta")
        found[name] = Deferred(like, place.rows)
    return found


def mapped_tensors(path: Path) -> dict[str, Deferred]:
    """Return the tensors of a `.bin` file (a zip archive of torch), mapped, and read where they are looked at.

    Raises:
        pickle.UnpicklingError: it holds more than tensors, and is not executed.
        RuntimeError: it is damaged.
    """
    found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: in_place(tensor) for name, tensor in found.items()}
