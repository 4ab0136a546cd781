"""Steps: which examples an optimizer step takes, how they are shared among ranks and cut into micro-batches.

A step is a number of examples. Its loss is a sum over supervised tokens divided by their number in the whole step, so
neither the share of a rank nor the cut into micro-batches changes the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.order import IndexArray, Mixture
from ift.data.store import ExampleStore


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together, padded on the right."""

    input_ids: torch.Tensor
    """int64, `(batch, length)`."""
    labels: torch.Tensor
    """int64, `(batch, length)`, not shifted, `IGNORE_INDEX` where the loss does not count."""
    attention_mask: torch.Tensor
    """int64, `(batch, length)`: 1 for real tokens, 0 for padding."""

    def to(self, device: Any, **options: Any) -> "MicroBatch":
        """Return the micro-batch on a device."""
        return MicroBatch(*(getattr(self, f.name).to(device, **options) for f in fields(self)))

    def pin_memory(self) -> "MicroBatch":
        """Return the micro-batch in page-locked memory, for faster copies to a GPU."""
        return MicroBatch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


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
    rank: int = 0
    world_size: int = 1


def share(lengths: IndexArray, world_size: int) -> list[IndexArray]:
    """Deal the positions of a step's examples to ranks so that their tokens come out even.

    Longest first, each to the rank with the fewest tokens so far; the same on every rank.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for position in np.argsort(-lengths, kind="stable"):
        rank = min(range(world_size), key=lambda r: (loads[r], r))
        shares[rank].append(int(position))
        loads[rank] += int(lengths[position])
    return [np.array(own, dtype=np.int64) for own in shares]


def cut(lengths: IndexArray, micro_batch_tokens: int) -> list[IndexArray]:
    """Group positions of similar length so that rows times longest row stays within the budget.

    An example longer than the budget stands alone.
    """
    groups: list[list[int]] = []
    longest = 0
    for position in np.argsort(-lengths, kind="stable"):
        if groups and (len(groups[-1]) + 1) * longest <= micro_batch_tokens:
            groups[-1].append(int(position))
        else:
            groups.append([int(position)])
            longest = int(lengths[position])
    return [np.array(group, dtype=np.int64) for group in groups]


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Pad examples on the right into one micro-batch."""
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id, dtype=torch.int64)
    labels = torch.full((len(examples), length), IGNORE_INDEX, dtype=torch.int64)
    attention_mask = torch.zeros((len(examples), length), dtype=torch.int64)
    for row, example in enumerate(examples):
        size = len(example.input_ids)
        input_ids[row, :size] = torch.from_numpy(example.input_ids)
        labels[row, :size] = torch.from_numpy(example.labels)
        attention_mask[row, :size] = 1
    return MicroBatch(input_ids, labels, attention_mask)


def make_step(store: ExampleStore, indices: IndexArray, plan: StepPlan, *, index: int) -> Step:
    """Return this rank's part of the step that takes the examples `indices`."""
    lengths = store.num_tokens(indices)
    own = share(lengths, plan.world_size)[plan.rank]
    if len(own):
        groups = [own[group] for group in cut(lengths[own], plan.micro_batch_tokens)]
        micro_batches = [collate([store[indices[p]] for p in group], plan.pad_token_id) for group in groups]
    else:
        example = store[indices[int(lengths.argmin())]]
        weightless = Example(example.input_ids, np.full_like(example.labels, IGNORE_INDEX))
        micro_batches = [collate([weightless], plan.pad_token_id)]
    return Step(
        index=index,
        micro_batches=tuple(micro_batches),
        num_supervised=int(store.num_supervised(indices).sum()),
        num_tokens=int(lengths.sum()),
        num_padded=sum(int((batch.attention_mask == 0).sum()) for batch in micro_batches),
        num_examples=len(indices),
    )


class TrainingSteps(Dataset[Step]):
    """The steps of a run by number: step `n` is always the same examples, whoever asks for it.

    Args:
        store: all examples of the training sources.
        mixture: which of them stands where in which epoch.
        plan: how steps are cut.
    """

    def __init__(self, store: ExampleStore, mixture: Mixture, *, plan: StepPlan) -> None:
        self._store, self._mixture, self._plan = store, mixture, plan

    @property
    def num_steps_per_epoch(self) -> int:
        """Steps of an epoch; the last one may have fewer examples."""
        return -(-len(self._mixture) // self._plan.global_batch_size)

    def __getitem__(self, index: int) -> Step:
        epoch, step = divmod(index, self.num_steps_per_epoch)
        start = step * self._plan.global_batch_size
        positions = np.arange(start, min(start + self._plan.global_batch_size, len(self._mixture)))
        return make_step(self._store, self._mixture.at(positions, epoch=epoch), self._plan, index=index)


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
