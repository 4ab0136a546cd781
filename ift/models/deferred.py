"""Tensors that lie in a file until they are asked for: shape and dtype are known, values are read when needed.

A model whose parameters are deferred takes no memory, and all that builds on a model (names, tied weights, adapters
with their random first values) works on it as on any other. Copies, casts, and the joining and splitting of matrices
are put off too. Every other operation reads the whole tensor, computes, and forgets it again; so nothing is ever
computed otherwise, only later. Rows are read by themselves wherever that is possible.

Nothing can be written into a deferred tensor: what was written would be lost when it is read again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ift.models.stored_weights import safetensors_entries

BUFFER_BYTES = 16 << 20
"""So much is read at once where it goes elsewhere than it is read to."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Of safetensors, those that can be deferred."""

Rows = Callable[[int, int], torch.Tensor]
"""Returns rows of a tensor, from the first to the one before the second number; of a number, the number itself."""

_aten: Any = torch.ops.aten
_SAME = frozenset({_aten.detach.default, _aten.alias.default, _aten.clone.default})
_BY_ROWS = frozenset({_aten.slice.Tensor, _aten.split.Tensor, _aten.split_with_sizes.default})
"""That can be made of single rows if they are along another dimension, and are rows of a tensor if they are not."""
_JOINED = frozenset({_aten.cat.default, _aten.stack.default})
_WHOLE = frozenset(
    {
        _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default, _aten.transpose.int, _aten.t.default,
        _aten.permute.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.select.int, _aten.unbind.int,
    }
)  # fmt: skip
"""That are made of whole tensors only, but put off all the same."""


class Deferred(torch.Tensor):
    """A tensor that is read when it is asked for.

    Args:
        like: of its shape and dtype, without data.
        rows: reads rows of it, on the CPU.
        device: that it is on once it is read.
    """

    rows: Rows

    @staticmethod
    def __new__(cls, like: torch.Tensor, rows: Rows, device: torch.device | str = "cpu") -> "Deferred":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        made.rows = rows
        return made  # type: ignore[no-any-return]

    # Attributes of Python do not travel with `.data`, so that a value set there would be lost without a word.
    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The same, without gradient."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise RuntimeError("a weight that is not read yet cannot be set in place")

    def in_memory(self) -> torch.Tensor:
        """Return a plain tensor with the values; a parameter stays one."""
        with torch.no_grad():
            # In the order in which it would lie in memory: sums over it are then the same to the last bit.
            found = torch.empty_like(_without_data(self), device=self.device)
            read_into(found, self)
        return nn.Parameter(found, requires_grad=self.requires_grad) if isinstance(self, nn.Parameter) else found

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return a copy that can be written to."""
        return memo.setdefault(id(self), self.in_memory())  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Put an operation off, or read what it needs and compute it."""
        named = dict(kwargs or {})
        if func is _aten._to_copy.default:
            return _cast(args[0], named)
        if func in _SAME:
            return _like(args[0], args[0].rows)
        if func in _BY_ROWS:
            return _pieces(func, args, named)
        if func in _JOINED and all(isinstance(one, Deferred) for one in args[0]):
            return _joined(func, *args, **named)
        if func in _WHOLE:
            return _put_off(func, args, named)
        _check_unwritten(func, args, named)
        return func(*_read(args), **_read(named))


def read_into(target: torch.Tensor, source: Deferred, *, first_row: int = 0) -> None:
    """Read as many rows as a target has into it, some at a time, and cast them to its dtype.

    Args:
        target: a plain tensor, on any device.
        source: what is read.
        first_row: of the source.
    """
    if target.ndim == 0:
        target.copy_(source.rows(0, 1))
        return
    row_bytes = max(1, source[0].numel() if source.ndim > 1 else 1) * source.dtype.itemsize
    step = max(1, BUFFER_BYTES // row_bytes)
    for start in range(0, len(target), step):
        stop = min(start + step, len(target))
        target[start:stop].copy_(source.rows(first_row + start, first_row + stop))


def _like(one: Deferred, rows: Rows) -> Deferred:
    return Deferred(_without_data(one), rows, one.device)


def _without_data(value: Any) -> Any:
    def empty(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")

    return tree_map(empty, value)


def _read(value: Any) -> Any:
    return tree_map(lambda one: one.in_memory().detach() if isinstance(one, Deferred) else one, value)


def _all_rows(one: Deferred) -> torch.Tensor:
    """Return all of a tensor on the CPU."""
    return one.rows(0, len(one) if one.ndim else 1)


def _cast(one: Deferred, named: Mapping[str, Any]) -> torch.Tensor:
    dtype = named.get("dtype") or one.dtype
    like = _without_data(one).to(dtype)
    if torch.device(named.get("device") or one.device).type == "meta":
        return like
    return Deferred(like, lambda start, stop: one.rows(start, stop).to(dtype), named.get("device") or one.device)


def _pieces(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return one part of a tensor, or several."""
    one = args[0]
    bound = {parameter.name: value for parameter, value in zip(func._schema.arguments, args, strict=False)} | named
    dim = bound.get("dim", 0) % one.ndim
    made = func(_without_data(one), *args[1:], **named)
    parts = list(made) if isinstance(made, list | tuple) else [made]
    if dim != 0:
        readers: list[Rows] = [
            lambda start, stop, number=number: _chosen(func(one.rows(start, stop), *args[1:], **named), number)  # type: ignore[misc]
            for number in range(len(parts))
        ]
    elif bound.get("step", 1) != 1:
        return _put_off(func, args, named)
    else:
        begin = bound.get("start") or 0
        begin = begin + len(one) if begin < 0 else begin
        readers = []
        for part in parts:
            readers.append(lambda start, stop, begin=begin: one.rows(begin + start, begin + stop))  # type: ignore[misc]
            begin += len(part)
    found = [Deferred(part, reader, one.device) for part, reader in zip(parts, readers, strict=True)]
    return found if isinstance(made, list | tuple) else found[0]


def _chosen(found: Any, number: int) -> torch.Tensor:
    return found[number] if isinstance(found, list | tuple) else found  # type: ignore[no-any-return]


def _joined(func: Any, parts: Sequence[Deferred], dim: int = 0) -> Deferred:
    """Return tensors one behind the other; rows of it need only the tensors that they are in."""
    made = func([_without_data(one) for one in parts], dim)
    if dim % made.ndim != 0:

        def rows(start: int, stop: int) -> torch.Tensor:
            return func([one.rows(start, stop) for one in parts], dim)  # type: ignore[no-any-return]

    elif func is _aten.stack.default:

        def rows(start: int, stop: int) -> torch.Tensor:
            return torch.stack([_all_rows(one) for one in parts[start:stop]])

    else:
        borders = [0]
        for one in parts:
            borders.append(borders[-1] + len(one))

        def rows(start: int, stop: int) -> torch.Tensor:
            return torch.cat(
                [
                    one.rows(max(start - begin, 0), min(stop - begin, len(one)))
                    for one, begin in zip(parts, borders, strict=False)
                    if start < begin + len(one) and begin < stop
                ]
            )

    return Deferred(made, rows, parts[0].device)


def _put_off(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return what an operation on whole tensors will give."""
    made = func(*_without_data(args), **named)
    device = next(one.device for one in tree_leaves(args) if isinstance(one, Deferred))

    def compute() -> Any:
        return func(*tree_map(lambda one: _all_rows(one) if isinstance(one, Deferred) else one, args), **named)

    def part(like: torch.Tensor, number: int) -> Deferred:
        def rows(start: int, stop: int) -> torch.Tensor:
            found = _chosen(compute(), number)
            return found[start:stop] if found.ndim else found

        return Deferred(like, rows, device)

    several = isinstance(made, list | tuple)
    return [part(like, number) for number, like in enumerate(made)] if several else part(made, 0)


def _check_unwritten(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    for number, parameter in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else named.get(parameter.name)
        if parameter.alias_info is not None and parameter.alias_info.is_write and isinstance(value, Deferred):
            raise RuntimeError(f"a weight that is not read yet cannot be changed in place ({func})")


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
                view = memoryview(found.reshape(-1).view(torch.uint8).numpy())
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
    with safe_open(path, "pt"):  # which compares what it says of itself with its size
        pass
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
    found = {}
    for name, entry in safetensors_entries(path).items():
        place = _Place(path, begin + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))
        like = torch.empty(place.shape, dtype=place.dtype, device="meta")
        found[name] = Deferred(like, place.rows)
    return found
