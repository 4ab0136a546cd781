"""Tensors that lie in a file until they are asked for: shape and dtype are known, values are read when needed.

A model whose parameters are deferred takes no memory, and all that builds on a model (names, tied weights, adapters
with their random first values) works on it as on any other. Copies, casts, and the joining and splitting of matrices
are put off too. Every other operation reads the whole tensor, computes, and forgets it again; so nothing is ever
computed otherwise, only later. Rows are read by themselves wherever that is possible.

Nothing can be written into a deferred tensor: what was written would be lost when it is read again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

BUFFER_BYTES = 16 << 20
"""So much is read at once where it goes elsewhere than it is read to."""

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
        by_rows: whether a few rows take less than all of them; else it is read at once.
    """

    rows: Rows
    by_rows: bool

    @staticmethod
    def __new__(
        cls, like: torch.Tensor, rows: Rows, *, device: torch.device | None = None, by_rows: bool = True
    ) -> "Deferred":
        """Make one."""
        place = device or torch.device("cpu")
        made = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=place
        )
        made.rows, made.by_rows = rows, by_rows
        return made

    # Attributes of Python do not travel with `.data`, so that a value set there would be lost without a word.
    @property
    def data(self) -> torch.Tensor:
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

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return a copy that can be written to."""
        return memo.setdefault(id(self), self.in_memory())  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Put an operation off, or read what it needs and compute it."""
        named = dict(kwargs or {})
        if func is _aten._to_copy.default:
            return _cast(args[0], named)
        if func in _SAME:
            return _like(args[0], func(_without_data(args[0]), **named))
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
    row_bytes = max(1, math.prod(source.shape[1:])) * source.dtype.itemsize
    step = max(1, BUFFER_BYTES // row_bytes if source.by_rows else len(target))
    for start in range(0, len(target), step):
        stop = min(start + step, len(target))
        target[start:stop].copy_(source.rows(first_row + start, first_row + stop))


def in_place(tensor: torch.Tensor) -> Deferred:
    """Return a tensor that is somewhere already, as one to be read from there."""
    values = tensor.detach()
    return Deferred(_without_data(values), lambda start, stop: values[start:stop] if values.ndim else values)


def values_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a parameter, read if they are not yet."""
    return tensor.in_memory().detach() if isinstance(tensor, Deferred) else tensor.data


def read_for_good(module: nn.Module) -> None:
    """Read the deferred parameters of a module, which can be written to from then on."""
    for name, one in module.named_parameters():
        if isinstance(one, Deferred):
            setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], one.in_memory())


def _like(one: Deferred, like: torch.Tensor) -> Deferred:
    return Deferred(like, one.rows, device=one.device, by_rows=one.by_rows)


def _without_data(value: Any) -> Any:
    def empty(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")

    return tree_map(empty, value)


def _read(value: Any) -> Any:
    return tree_map(lambda one: one.in_memory().detach() if isinstance(one, Deferred) else one, value)


def _all_rows(one: Deferred) -> torch.Tensor:
    """Return all of a tensor on the CPU, in the order that it says it lies in."""
    found = one.rows(0, len(one) if one.ndim else 1)
    return found if found.stride() == one.stride() else torch.empty_like(_without_data(one), device="cpu").copy_(found)


def _cast(one: Deferred, named: Mapping[str, Any]) -> torch.Tensor:
    dtype, device = named.get("dtype") or one.dtype, torch.device(named.get("device") or one.device)
    like: torch.Tensor = _without_data(one).to(dtype)
    if device.type == "meta":
        return like
    return Deferred(like, lambda start, stop: one.rows(start, stop).to(dtype), device=device, by_rows=one.by_rows)


def _pieces(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return one part of a tensor, or several."""
    one = args[0]
    bound = {parameter.name: value for parameter, value in zip(func._schema.arguments, args, strict=False)}
    bound |= named
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
    made_of: dict[str, Any] = {"device": one.device, "by_rows": one.by_rows}
    found = [Deferred(part, reader, **made_of) for part, reader in zip(parts, readers, strict=True)]
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

    return Deferred(made, rows, device=parts[0].device, by_rows=all(one.by_rows for one in parts))


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

        return Deferred(like, rows, device=device, by_rows=False)

    several = isinstance(made, list | tuple)
    return [part(like, number) for number, like in enumerate(made)] if several else part(made, 0)


def _check_unwritten(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    for number, parameter in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else named.get(parameter.name)
        if parameter.alias_info is not None and parameter.alias_info.is_write and isinstance(value, Deferred):
            raise RuntimeError(f"a weight that is not read yet cannot be changed in place ({func})")
