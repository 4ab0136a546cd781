"""How much an optimizer keeps for each weight: seen on small weights, which it is built over and updates once.

So any class under `model.optimizer` is counted as it is: AdamW's two moments, 8-bit ones with their scales, GaLore's
subspaces, Adafactor's rows and columns, nothing for plain SGD and LOMO. Weights of up to `EXACT` numbers are tried in
their own shape, larger ones by smaller ones of the same orientation: what an optimizer keeps of a matrix is a sum of
terms in its rows, its columns and their product.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ift.models.live_memory import LiveMemory
from ift.training.optimizers import with_fused_update, without_paging
from ift.training.parameter_groups import parameter_groups

EXACT = 2**16
"""Most numbers of a weight that is tried as it is."""
_SIDES = (256, 384)
"""Of the smaller ones that stand for larger ones."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer holds beside weights and gradients, in bytes."""

    state: int
    """Between steps."""
    temporary: int
    """While it updates."""


def optimizer_memory(
    build: Callable[[Any], Any], weights: Iterable[torch.Tensor], *, on_gpu: bool, dtype: torch.dtype | None = None
) -> OptimizerMemory:
    """Return what an optimizer holds for some weights.

    Args:
        build: makes the optimizer from groups of weights, as under `model.optimizer`.
        weights: the trained ones; they need no data.
        on_gpu: where it will compute.
        dtype: of the weights that it updates, where that is not their own.
    """
    shapes = Counter((tuple(one.shape), dtype or one.dtype) for one in weights)
    probe = _Probe(build)
    state = sum(number * probe.state(shape, kind) for (shape, kind), number in shapes.items())
    sizes = [number * probe.size(shape, kind) for (shape, kind), number in shapes.items()]
    largest = max((probe.size(shape, kind) for shape, kind in shapes), default=0)
    # torch's own optimizers update weights together on a GPU, and one after another on a CPU, unless told otherwise.
    together = on_gpu and probe.together
    return OptimizerMemory(state, round(probe.temporary * (sum(sizes) if together else largest)))


class _Probe:
    def __init__(self, build: Callable[[Any], Any]) -> None:
        self._build = build
        self._known: dict[tuple[Shape, torch.dtype], int] = {}
        optimizer, weight = self._updated((64, 64), torch.float32)
        group = optimizer.param_groups[0]
        self._rank = int(group.get("rank") or 0)
        own = type(optimizer).__module__.startswith("torch.optim")
        self.together = own and not group.get("fused") and group.get("foreach") is not False
        live = LiveMemory()
        weight.grad = torch.full_like(weight, 1e-3)
        live.ignore([weight, weight.grad, *_kept(optimizer.state.get(weight, {}))])
        with live:
            optimizer.step()
        most = max((one.activations for one in live.moments()), default=0)
        self.temporary = most / (weight.numel() * weight.element_size())
        """Bytes for each byte of a weight."""

    @staticmethod
    def size(shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes of a weight."""
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def state(self, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes that are kept for a weight."""
        if (shape, dtype) not in self._known:
            small = np.prod(shape, dtype=np.int64) <= EXACT
            self._known[shape, dtype] = self._tried(shape, dtype) if small else self._fitted(shape, dtype)
        return self._known[shape, dtype]

    def _fitted(self, shape: Shape, dtype: torch.dtype) -> int:
        """Return what smaller weights of the same kind say of a large one."""
        lengths = [self._lengths(side, place, shape) for place, side in enumerate(shape)]
        tried = list(itertools.product(*lengths))
        terms = [_terms(one) for one in tried]
        values = [self._tried(one, dtype) for one in tried]
        factors, *_ = np.linalg.lstsq(np.array(terms), np.array(values, dtype=np.float64), rcond=None)
        return max(0, round(float(np.dot(factors, _terms(shape)))))

    def _lengths(self, side: int, place: int, shape: Shape) -> tuple[int, ...]:
        """Return the lengths of one side that are tried; the longer side of a matrix stays the longer one."""
        if len(shape) == 1:
            return (2**14, 2**15)
        if len(shape) > 2:  # experts: matrices side by side
            return (1, 2) if place == 0 else tuple(sorted({min(side, 96), min(side, 128)}))
        shorter = side == min(shape) and (place == 0 or shape[0] != side)
        first, second = (max(one, self._rank + 64 * (number + 1)) for number, one in enumerate(_SIDES))
        if shorter:
            return (side,) if side <= first else (first, second)
        return (2 * second, 3 * second)

    def _tried(self, shape: Shape, dtype: torch.dtype) -> int:
        optimizer, weight = self._updated(shape, dtype)
        kept = {one.data_ptr(): one for one in _kept(optimizer.state.get(weight, {})) if one.ndim}
        return sum(one.numel() * one.element_size() for one in kept.values())

    def _updated(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
        """Return an optimizer over one weight after its first update."""
        values = torch.linspace(-1, 1, int(np.prod(shape)), dtype=torch.float32).view(shape)
        weight = torch.nn.Parameter(values.to(dtype))
        built = self._build(parameter_groups([("weight", weight)]))
        optimizer = with_fused_update(without_paging(built, weight.device))
        weight.grad = torch.full_like(weight, 1e-3) * weight.detach().cos()
        optimizer.step()
        return optimizer, weight


def _terms(shape: Shape) -> list[float]:
    """Return the products of all subsets of a shape's sides."""
    sides = [float(side) for side in shape]
    return [
        float(np.prod(chosen)) for number in range(len(sides) + 1) for chosen in itertools.combinations(sides, number)
    ]


def _kept(value: Any) -> list[torch.Tensor]:
    """Return the tensors within a state, those of its objects among them, as of GaLore's projectors."""
    found: list[torch.Tensor] = []
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:  # objects may name one another
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        elif hasattr(one, "__dict__"):
            left += vars(one).values()
    return found
