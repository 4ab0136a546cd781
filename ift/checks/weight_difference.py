"""How far the final weights of two runs lie apart, read from their safetensors files. Starts without torch."""

import json
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.artifacts import RunFolder
from ift.errors import UserError

_KINDS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_AT_ONCE = 1 << 24
"""Numbers that are compared at once."""


@dataclass(frozen=True)
class WeightDifference:
    """Final weights of two runs."""

    tensors: int
    """That both have in the same shape."""
    differing: int
    """Of these, those that are not equal to the last bit."""
    largest: float
    """Largest absolute difference of a number."""
    largest_in: str | None
    """Name of the tensor that has it."""
    only_one: int
    """Tensors that one run has alone, or in another shape or dtype."""
    missing: tuple[str, ...] = ()
    """Runs that hold no final weights."""

    @property
    def same(self) -> bool:
        """Whether both have the same weights to the last bit."""
        return not self.differing and not self.only_one and not self.missing and self.tensors > 0

    def text(self) -> str:
        """Return one line for people."""
        if self.missing:
            return f"no final weights in {' and '.join(self.missing)} (a run that has not finished has none)"
        if self.same:
            return f"equal to the last bit ({self.tensors} tensors)"
        told = [f"{self.differing} of {self.tensors} tensors differ"]
        if self.differing:
            told.append(f"largest difference {self.largest:.3e} in {self.largest_in}")
        if self.only_one:
            told.append(f"{self.only_one} tensors are in one run alone, or of another shape or dtype")
        return "; ".join(told)


def compare_weights(run: RunFolder, other: RunFolder) -> WeightDifference:
    """Compare what two runs have trained.

    Raises:
        UserError: a file that is no safetensors file.
    """
    folders = [_trained(one) for one in (run, other)]
    missing = tuple(
        str(one.root) for one, folder in zip((run, other), folders, strict=True) if not list(_files(folder))
    )
    if missing:
        return WeightDifference(0, 0, 0.0, None, 0, missing)
    with _opened(folders[0]) as one, _opened(folders[1]) as two:
        common = [name for name in sorted(one.keys() & two.keys()) if one[name].kind == two[name].kind]
        gaps = {name: _gap(one[name], two[name]) for name in common}
        only_one = len(one.keys() | two.keys()) - len(common)
    differing = {name: gap for name, gap in gaps.items() if gap is not None}
    largest = max(differing, key=lambda name: differing[name], default=None)
    return WeightDifference(
        tensors=len(common),
        differing=len(differing),
        largest=differing[largest] if largest is not None else 0.0,
        largest_in=largest,
        only_one=only_one,
    )


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a file that is mapped into memory."""

    kind: tuple[str, tuple[int, ...]]
    """Dtype as safetensors names it, and shape."""
    data: memoryview


def _trained(run: RunFolder) -> Path:
    return run.adapter if run.adapter.is_dir() else run.model


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.safetensors"))


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, _Tensor]]:
    """Yield the tensors of a folder by name."""
    tensors: dict[str, _Tensor] = {}
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            (size,) = struct.unpack("<Q", view[:8])
            header = json.loads(bytes(view[8 : 8 + size]))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    kind = (entry["dtype"], tuple(entry["shape"]))
                    tensors[name] = _Tensor(kind, view[8 + size + start : 8 + size + end])
        except (ValueError, KeyError, struct.error) as error:
            raise UserError(
                f"'{path}' cannot be read as safetensors: {error}. Restore it, or compare other runs."
            ) from error
    yield tensors


def _gap(one: _Tensor, two: _Tensor) -> float | None:
    """Return the largest difference of two tensors of one kind, or `None` where they are equal to the last bit."""
    if one.data == two.data:
        return None
    name = one.kind[0]
    if name not in _KINDS:  # packed numbers of a quantized base, of which a difference says nothing
        return float("inf")
    largest = 0.0
    numbers, others = (np.frombuffer(tensor.data, dtype=_KINDS[name]) for tensor in (one, two))
    for start in range(0, len(numbers), _AT_ONCE):
        first, second = (_widened(part[start : start + _AT_ONCE], name) for part in (numbers, others))
        gaps = np.abs(first - second)
        largest = max(largest, float("inf") if np.isnan(gaps).any() else float(gaps.max(initial=0.0)))
    return largest


def _widened(numbers: npt.NDArray[Any], kind: str) -> npt.NDArray[np.float64]:
    if kind == "BF16":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float64)
