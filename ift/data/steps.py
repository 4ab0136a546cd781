"""Steps: which examples an optimizer step takes, how they are shared among ranks and cut into micro-batches.

A step is a number of examples. Its loss is a sum over supervised tokens divided by their number in the whole step, so
neither the share of a rank nor the cut into micro-batches changes the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import GROUPED, IndexArray, MicroBatch, RowLayoutChoice, collate, cut, share
from ift.data.preparation import ExampleStore


@dataclass(frozen=True)
class Step:
    """What one rank computes for one optimizer step (or for one step of validation)."""

    index: int
    """Number of the step since the beginning of the run, over all epochs."""
    micro_batches: tuple[MicroBatch, ...]
    """Never empty: a rank without a share computes one example that counts nothing."""
    num_supervised: int
    """Supervised tokens of the whole step, over all ranks."""
    num_tokens: int
    """Real tokens of the whole step, over all ranks."""
    num_padded: int
    """Padding positions of this rank."""
    num_examples: int
    """Examples of the whole step, over all ranks."""

    def to(self, device: Any, **options: Any) -> "Step":
        """Return the step with its micro-batches on a device."""
        return self._with(tuple(batch.to(device, **options) for batch in self.micro_batches))

    def pin_memory(self) -> "Step":
        """Return the step with its micro-batches in page-locked memory."""
        return self._with(tuple(batch.pin_memory() for batch in self.micro_batches))

    def _with(self, micro_batches: tuple[MicroBatch, ...]) -> "Step":
        numbers = (self.num_supervised, self.num_tokens, self.num_padded, self.num_examples)
        return Step(self.index, micro_batches, *numbers)


@dataclass(frozen=True)
class StepPlan:
    """How steps are cut."""

    global_batch_size: int
    """Examples per step, over all ranks."""
    micro_batch_tokens: int
    """Upper limit of rows times longest row of a micro-batch."""
    pad_token_id: int
    row_layout: RowLayoutChoice = GROUPED
    """How a micro-batch's rows are laid out; the default is right for every model."""
    rank: int = 0
    world_size: int = 1


def epoch_order(indices: Sequence[IndexArray], weights: Sequence[float], *, seed: int, epoch: int) -> IndexArray:
    """Return the order of one epoch: every example as often as its source's weight says, shuffled.

    Args:
        indices: per source, the indices of its training examples.
        weights: per source, how often each example occurs; of a fraction, a share drawn anew each epoch.
        seed: of the run.
        epoch: from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    parts = []
    for own, weight in zip(indices, weights, strict=True):
        whole = int(weight)
        part = round((weight - whole) * len(own))
        parts += [own] * whole + [generator.permutation(own)[:part]]
    return generator.permutation(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def epoch_size(indices: Sequence[IndexArray], weights: Sequence[float]) -> int:
    """Return the length of every `epoch_order`."""
    return sum(int(w) * len(own) + round((w - int(w)) * len(own)) for own, w in zip(indices, weights, strict=True))


def make_step(store: ExampleStore, indices: IndexArray, plan: StepPlan, *, index: int) -> Step:
    """Return this rank's part of the step that takes the examples `indices`."""
    lengths = store.num_tokens[indices]
    own = share(lengths, plan.world_size)[plan.rank]
    if len(own):
        groups = cut(lengths[own], plan.micro_batch_tokens, choice=plan.row_layout)
        rows_of = [[[store[indices[own[position]]] for position in row] for row in group] for group in groups]
        micro_batches = [collate(rows, plan.pad_token_id) for rows in rows_of]
    else:
        example = store[indices[int(lengths.argmin())]]
        weightless = Example(example.input_ids, np.full_like(example.labels, IGNORE_INDEX))
        micro_batches = [collate([[weightless]], plan.pad_token_id)]
    return Step(
        index=index,
        micro_batches=tuple(micro_batches),
        num_supervised=int(store.num_supervised[indices].sum()),
        num_tokens=int(lengths.sum()),
        num_padded=sum(batch.num_padded for batch in micro_batches),
        num_examples=len(indices),
    )


class TrainingSteps(Dataset[Step]):
    """The steps of a run by number: step `n` is always the same examples, whoever asks for it.

    Args:
        store: all examples of the training sources.
        indices: per source, the indices of its training examples.
        weights: per source, its weight.
        plan: how steps are cut.
        seed: of the order.
    """

    def __init__(
        self,
        store: ExampleStore,
        indices: Sequence[IndexArray],
        weights: Sequence[float],
        *,
        plan: StepPlan,
        seed: int,
    ) -> None:
        self._store, self._indices, self._weights = store, indices, weights
        self._plan, self._seed = plan, seed
        self._orders: dict[int, IndexArray] = {}

    @property
    def num_steps_per_epoch(self) -> int:
        """Steps of an epoch; the last one may have fewer examples."""
        return -(-epoch_size(self._indices, self._weights) // self._plan.global_batch_size)

    def __getitem__(self, index: int) -> Step:
        epoch, step = divmod(index, self.num_steps_per_epoch)
        if epoch not in self._orders:
            order = epoch_order(self._indices, self._weights, seed=self._seed, epoch=epoch)
            self._orders = {epoch: order}
        size = self._plan.global_batch_size
        return make_step(self._store, self._orders[epoch][step * size : (step + 1) * size], self._plan, index=index)


class ValidationSteps(Dataset[Step]):
    """Every validation example exactly once, in order, in steps of `global_batch_size`."""

    def __init__(self, store: ExampleStore, indices: IndexArray, plan: StepPlan) -> None:
        self._store, self._indices, self._plan = store, indices, plan

    def __len__(self) -> int:
        return -(-len(self._indices) // self._plan.global_batch_size)

    def __getitem__(self, index: int) -> Step:
        if index >= len(self):
            raise IndexError(index)
        size = self._plan.global_batch_size
        return make_step(self._store, self._indices[index * size : (index + 1) * size], self._plan, index=index)


@dataclass
class Position:
    """How far the run has come in its data; one number, the same on every rank."""

    next_step: int = 0


class EpochSampler(Sampler[int]):
    """Yields the numbers of the steps from the position to the end of its epoch."""

    def __init__(self, position: Position, num_steps_per_epoch: int) -> None:
        self._position, self._num_steps = position, num_steps_per_epoch

    def __len__(self) -> int:
        """Return the steps of a whole epoch, as Lightning counts the steps before a resume itself."""
        return self._num_steps

    def __iter__(self) -> Iterator[int]:
        start = self._position.next_step
        end = (start // self._num_steps + 1) * self._num_steps
        return iter(range(start, end))
