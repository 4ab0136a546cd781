"""Steps: which examples an optimizer step takes, how they are shared among ranks and cut into micro-batches.

A step is a number of examples. Its loss is a sum over supervised tokens divided by their number in the whole step, so
neither the share of a rank nor the cut into micro-batches changes the result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import GROUPED, MicroBatch, RowLayoutChoice, collate, cut, share
from ift.data.order import IndexArray, Mixture
from ift.data.row_conversations import Reject
from ift.data.store import ExampleStore


@dataclass(frozen=True)
class StreamProgress:
    """How far the streams have come after a step."""

    states: tuple[dict[str, Any] | None, ...]
    """Per source where its current block begins; `None` for a source that is no stream."""
    num_rows: tuple[int, ...]
    """Per source the rows that the step took; 0 for a source that is no stream."""
    num_used: tuple[int, ...]
    """Per source the conversations of those rows that are in the examples."""
    rejected: tuple[tuple[int, Reject], ...] = ()
    """What became none, each with the number of its source."""


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
    num_examples: int
    """Examples of the whole step, over all ranks."""
    progress: StreamProgress | None = None
    """How far the streams have come after it; `None` in a run without streams."""

    @property
    def num_padded(self) -> int:
        """Padding positions of this rank."""
        return sum(batch.num_padded for batch in self.micro_batches)

    def to(self, device: Any, **options: Any) -> "Step":
        """Return the step with its micro-batches on a device."""
        return replace(self, micro_batches=tuple(batch.to(device, **options) for batch in self.micro_batches))

    def pin_memory(self) -> "Step":
        """Return the step with its micro-batches in page-locked memory."""
        return replace(self, micro_batches=tuple(batch.pin_memory() for batch in self.micro_batches))


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


def make_step(store: ExampleStore, indices: IndexArray, plan: StepPlan, *, index: int) -> Step:
    """Return this rank's part of the step that takes the examples `indices` of a store."""
    return Step(
        index=index,
        micro_batches=_micro_batches(store.num_tokens(indices), lambda position: store[int(indices[position])], plan),
        num_supervised=int(store.num_supervised(indices).sum()),
        num_tokens=int(store.num_tokens(indices).sum()),
        num_examples=len(indices),
    )


def step_of_examples(examples: Sequence[Example], plan: StepPlan, *, index: int, progress: StreamProgress) -> Step:
    """Return this rank's part of the step that takes these examples; there may be none."""
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    nothing = Example(np.array([plan.pad_token_id] * 2), np.array([IGNORE_INDEX] * 2))
    return Step(
        index=index,
        micro_batches=(
            _micro_batches(lengths, lambda position: examples[position], plan)
            if examples
            else (collate([[nothing]], plan.pad_token_id),)
        ),
        num_supervised=sum(example.num_supervised for example in examples),
        num_tokens=int(lengths.sum()),
        num_examples=len(examples),
        progress=progress,
    )


def _micro_batches(lengths: IndexArray, example_at: Callable[[int], Example], plan: StepPlan) -> tuple[MicroBatch, ...]:
    """Return this rank's micro-batches of a step whose examples have these lengths."""
    shares = share(lengths, plan.world_size)
    own, groups = shares[plan.rank], _cut_share(lengths, shares[plan.rank], plan)
    rows_of = [[[example_at(int(own[position])) for position in row] for row in group] for group in groups]
    # Every rank knows the shares of all, so that none has to ask.
    number = max(len(_cut_share(lengths, one, plan)) for one in shares) if plan.row_layout.even else 1
    if len(rows_of) < number:
        example = example_at(int(lengths.argmin()))
        weightless = Example(example.input_ids, np.full_like(example.labels, IGNORE_INDEX))
        rows_of += [[[weightless]]] * (number - len(rows_of))
    return tuple(collate(rows, plan.pad_token_id) for rows in rows_of)


def examples_of(step: Step) -> list[Example]:
    """Return the examples that a rank has in a step, as they lie in its micro-batches; their source is not known."""
    found = []
    for batch in step.micro_batches:
        input_ids, labels = batch.input_ids.cpu().numpy(), batch.labels.cpu().numpy()
        for row, lengths in enumerate(batch.lengths):
            ends = np.cumsum(lengths)
            places = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
            found += [Example(input_ids[row, place], labels[row, place]) for place in places]
    return found


def recut(step: Step, micro_batch_tokens: int, *, choice: RowLayoutChoice, pad_token_id: int) -> Step:
    """Return a rank's part of a step, cut under another budget; on the device where it is."""
    examples = examples_of(step)
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    groups = cut(lengths, micro_batch_tokens, choice=choice)
    batches = (collate([[examples[one] for one in row] for row in group], pad_token_id) for group in groups)
    device = step.micro_batches[0].input_ids.device
    return replace(step, micro_batches=tuple(batch.to(device) for batch in batches))


def _cut_share(lengths: IndexArray, own: IndexArray, plan: StepPlan) -> list[list[list[int]]]:
    """Return the micro-batches of a rank's share of a step; none where it has no share."""
    return cut(lengths[own], plan.micro_batch_tokens, choice=plan.row_layout) if len(own) else []


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
        return make_step(self._store, self.examples_of(index), self._plan, index=index)

    def places(self, index: int) -> dict[bytes, tuple[str, int]]:
        """Return file and line of each example of a step, on all ranks, by the bytes of its ids (int64)."""
        found = self.examples_of(index).tolist()
        return {self._store[one].input_ids.tobytes(): self._store.place(one) for one in found}

    def examples_of(self, index: int) -> IndexArray:
        """Return which examples of the store a step takes, over all ranks."""
        epoch, step = divmod(index, self.num_steps_per_epoch)
        start = step * self._plan.global_batch_size
        positions = np.arange(start, min(start + self._plan.global_batch_size, len(self._mixture)))
        return self._mixture.at(positions, epoch=epoch)


class ValidationSteps(Dataset[Step]):
    """Every validation example exactly once, in order, in steps of `global_batch_size`."""

    def __init__(self, store: ExampleStore, indices: IndexArray, plan: StepPlan) -> None:
        # Only gradients may need a whole step at once.
        self._plan = replace(plan, row_layout=replace(plan.row_layout, whole_step=False))
        self._store, self._indices = store, indices

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
