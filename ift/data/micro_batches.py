"""Micro-batches: a rank's share of a step, laid into rows that go through the model together.

There are three row layouts. They differ in padding and in what the model must be able to do, never in the result:

packed      several rows, each with examples end to end; the model must keep the examples of a row apart
flattened   one row without any padding, as the variable-length kernels of FlashAttention want it, and attention
            that is computed example by example
grouped     one example per row, rows of similar length; right for every causal model
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.order import IndexArray

RowLayout = Literal["packed", "flattened", "grouped"]
RowLayoutSetting = Literal["auto", "packed", "flattened", "grouped"]

MICRO_BATCH_COST = 48
"""What a micro-batch costs beside its positions, in positions: starting kernels, and filling them too little."""
ROW_LENGTHS = (128, 256, 512, 1024, 2048)
"""Lengths tried for packed rows. Longer rows pad next to nothing less, and a block mask costs their square."""


@dataclass(frozen=True)
class RowLayoutChoice:
    """How the rows of a run are laid out."""

    layout: RowLayout
    reason: str
    """Why so, for people."""
    square_cost_length: int = 8192
    """Row length at which attention, whose cost grows with the square of the row, costs as much as all else."""
    by_example: bool = False
    """The model computes attention example by example, so that a long row costs no more than its examples."""
    whole_step: bool = False
    """A rank's share of a training step goes through the model at once, whatever its size."""
    even: bool = False
    """Every rank computes as many micro-batches of a step as the rank with the most; what is added counts nothing."""


GROUPED = RowLayoutChoice("grouped", "one example per row is right for every model")


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, padded on the right to one length."""

    input_ids: torch.Tensor
    """int64, `(rows, length)`."""
    labels: torch.Tensor
    """int64, `(rows, length)`, not shifted, `IGNORE_INDEX` where the loss does not count."""
    position_ids: torch.Tensor | None
    """int64, `(rows, length)`, from 0 again with every example and with the padding; by this the model keeps examples
    apart. `None` where no row holds several."""
    lengths: tuple[tuple[int, ...], ...]
    """Per row the tokens of its examples in their order; what is left of the row is padding."""

    @property
    def num_padded(self) -> int:
        """Number of padding positions."""
        return self.input_ids.numel() - sum(map(sum, self.lengths))

    def to(self, device: Any, **options: Any) -> "MicroBatch":
        """Return the micro-batch on a device."""
        return self._with([tensor.to(device, **options) for tensor in self._tensors()])

    def pin_memory(self) -> "MicroBatch":
        """Return the micro-batch in page-locked memory, for faster copies to a GPU."""
        return self._with([tensor.pin_memory() for tensor in self._tensors()])

    def _tensors(self) -> list[torch.Tensor]:
        return [self.input_ids, self.labels, *([self.position_ids] if self.position_ids is not None else [])]

    def _with(self, tensors: list[torch.Tensor]) -> "MicroBatch":
        names = ("input_ids", "labels", "position_ids")
        return replace(self, **dict(zip(names, tensors, strict=False)))  # type: ignore[arg-type]


def share(lengths: IndexArray, world_size: int) -> list[IndexArray]:
    """Deal the positions of a step's examples to ranks so that their tokens come out even.

    Longest first, each to the rank with the fewest tokens so far; the same on every rank.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]  # a heap
    for position in np.argsort(-lengths, kind="stable").tolist():
        load, rank = loads[0]
        shares[rank].append(position)
        heapreplace(loads, (load + int(lengths[position]), rank))
    return [np.array(own, dtype=np.int64) for own in shares]


def cut(lengths: IndexArray, micro_batch_tokens: int, *, choice: RowLayoutChoice) -> list[list[list[int]]]:
    """Lay examples into rows and rows into micro-batches, so that little is padded and little started.

    Args:
        lengths: tokens of each example.
        micro_batch_tokens: most positions (rows times longest row) of a micro-batch; only an example that is longer
            exceeds them, and stands alone. For whole steps, the longest row of several examples.
        choice: how.

    Returns:
        Per micro-batch its rows, per row the positions of its examples in `lengths`; each position once.
    """
    if choice.layout == "flattened":
        if choice.whole_step:
            return [[list(range(len(lengths)))]]
        return [[row] for row in fill_rows(lengths, micro_batch_tokens)]
    tried = [[[position] for position in range(len(lengths))]]
    if choice.layout == "packed":
        capacities = {int(lengths.max()), *ROW_LENGTHS}
        tried += [fill_rows(lengths, capacity) for capacity in sorted(capacities) if capacity <= micro_batch_tokens]
    cuts = []
    for rows in tried:
        row_lengths = np.array([lengths[row].sum() for row in rows])
        square: Any = {"square_cost_length": choice.square_cost_length}
        grouped = one_group(row_lengths, **square) if choice.whole_step else None
        groups, cost = grouped or group_rows(row_lengths, micro_batch_tokens, **square)
        cuts.append((cost, [[rows[number] for number in group] for group in groups]))
    return min(cuts, key=lambda one: one[0])[1]


def fill_rows(lengths: IndexArray, capacity: int) -> list[list[int]]:
    """Lay examples end to end into few rows of at most `capacity` tokens; a longer example stands alone.

    Best fit decreasing: longest first, each into the fullest row that still takes it. It needs at most 11/9 of the
    fewest rows, and one (Johnson et al. 1974), and next to no more where many examples are short.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (tokens that are free, row), sorted
    for position in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[position])
        at = bisect_left(spaces, (length, 0))
        if at < len(spaces):
            space, row = spaces.pop(at)
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(position)
        if space > length:
            insort(spaces, (space - length, row))
    return rows


def one_group(lengths: IndexArray, *, square_cost_length: int) -> tuple[list[list[int]], float]:
    """Group all rows into one micro-batch; returns what `group_rows` does."""
    longest = float(lengths.max())
    cost = MICRO_BATCH_COST + longest * (1 + longest / square_cost_length) * len(lengths)
    return [list(range(len(lengths)))], cost


def group_rows(
    lengths: IndexArray, micro_batch_tokens: int, *, square_cost_length: int
) -> tuple[list[list[int]], float]:
    """Group rows into the micro-batches that cost least; a row longer than the budget stands alone.

    Exact, by dynamic programming over the rows from the longest down: some best grouping takes neighbours only, as
    moving longer rows to where the longer ones are lengthens no micro-batch.

    Returns:
        The rows of each micro-batch, and the cost of all, in positions.
    """
    order = np.argsort(-lengths, kind="stable")
    longest = lengths[order].astype(np.float64)
    most = np.maximum(1, micro_batch_tokens // lengths[order])
    row_costs = longest * (1 + longest / square_cost_length)
    counts = np.arange(1, len(lengths) + 1)
    best = np.full(len(lengths) + 1, np.inf)  # cost of the first n rows
    best[0] = 0
    begin = np.zeros(len(lengths) + 1, dtype=np.int64)  # where the last micro-batch of the first n rows begins
    for start in range(len(lengths)):
        end = min(len(lengths), start + int(most[start]))
        costs = best[start] + MICRO_BATCH_COST + row_costs[start] * counts[: end - start]
        better = costs < best[start + 1 : end + 1]
        best[start + 1 : end + 1][better] = costs[better]
        begin[start + 1 : end + 1][better] = start
    groups: list[list[int]] = []
    end = len(lengths)
    while end:
        groups.append(order[begin[end] : end].tolist())
        end = int(begin[end])
    return groups[::-1], float(best[-1])


def collate(rows: Sequence[Sequence[Example]], pad_token_id: int) -> MicroBatch:
    """Make a micro-batch of rows of examples.

    No example's first token is ever a label: in a row, what precedes it is another example.
    """
    lengths = tuple(tuple(len(example.input_ids) for example in row) for row in rows)
    shape = (len(rows), max(map(sum, lengths)))
    input_ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORE_INDEX)
    for number, row in enumerate(rows):
        end = 0
        for example in row:
            start, end = end, end + len(example.input_ids)
            input_ids[number, start:end] = example.input_ids
            labels[number, start + 1 : end] = example.labels[1:]
    several = any(len(row) > 1 for row in rows)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.tensor([_positions(own, shape[1]) for own in lengths]) if several else None,
        lengths=lengths,
    )


def _positions(lengths: Sequence[int], row_length: int) -> list[int]:
    """Return the positions of a row, which begin anew with each example and with the padding."""
    return list(chain.from_iterable(map(range, (*lengths, row_length - sum(lengths)))))
