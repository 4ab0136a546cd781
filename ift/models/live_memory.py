"""The memory that tensors hold while a model runs, operation by operation."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ift.models.heap import Heap


@dataclass(frozen=True)
class Moment:
    """What is held at a moment beside weights, in bytes."""

    activations: int
    """All that is no gradient of a weight."""
    gradients: int
    """Of weights, as far as they are there."""


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made within it that are still referred to.

    Args:
        heap: of which the same memory is requested.
    """

    def __init__(self, heap: Heap | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._heap = heap
        self._sizes: dict[int, int] = {}
        self._gradients: dict[int, int] = {}
        self._ignored: set[int] = set()
        self._of_head: set[int] = set()
        self._most = self._logits = 0
        self.in_head = False
        """Whether what is made now is made by head and loss."""
        self.logits = 0
        """Bytes made by head and loss, of the most bytes beside gradients."""
        self.activations = self.gradients = 0
        self.highest: dict[int, int] = {}
        """By bytes of gradients, the most bytes of all else."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, torch.Tensor):
                self._add(one.untyped_storage())
        if self.activations > self._most:
            self._most, self.logits = self.activations, self._logits
        if self.activations > self.highest.get(self.gradients, -1):
            self.highest[self.gradients] = self.activations
        return out

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count nothing of tensors that were there before."""
        self._ignored |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def take_gradient(self, gradient: torch.Tensor) -> None:
        """Count a gradient of a weight that is complete among the gradients."""
        key = gradient.untyped_storage()._cdata
        if size := self._sizes.pop(key, 0):
            self._gradients[key] = size
            if key in self._of_head:
                self._of_head.discard(key)
                self._logits -= size
            self.activations, self.gradients = self.activations - size, self.gradients + size

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._gradients or key in self._ignored:
            return
        self._sizes[key] = size = storage.nbytes()
        if self._heap is not None:
            self._heap.take(key, size)
        self.activations += size
        if self.in_head:
            self._of_head.add(key)
            self._logits += size
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        if self._heap is not None:
            self._heap.give_back(key)
        size = self._sizes.pop(key, 0)
        self.activations -= size
        if key in self._of_head:
            self._of_head.discard(key)
            self._logits -= size
        self.gradients -= self._gradients.pop(key, 0)

    def moments(self) -> tuple[Moment, ...]:
        """Return what was held at most, for each amount of gradients."""
        found: list[Moment] = []
        for gradients, activations in sorted(self.highest.items(), reverse=True):
            if not found or activations > found[-1].activations:
                found.append(Moment(activations, gradients))
        return tuple(reversed(found))
