"""How large the steps of a run are: counted on prepared data, or guessed from the settings where none may be prepared.

In: a data module, and how many ranks there will be. Out: lengths, padding and the largest micro-batch.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ift.data.micro_batches import cut, share
from ift.data.steps import TrainingSteps
from ift.models.simulation import MicroBatchShape

MOST_STEPS = 400
"""Of a longer epoch, so many steps are looked at, evenly spread."""
KEPT_SHAPES = 64
"""Of the first micro-batches."""
MOST_IN_SEQUENCE = 2
"""Micro-batches in a row, of which the heap of a process is asked; behind them it grew by nothing."""
SUPERVISED_SHARE = 0.5
"""Of all tokens, where nothing is known."""


@dataclass(frozen=True)
class StepShapes:
    """The steps of a run."""

    largest: MicroBatchShape
    """The micro-batch that takes most memory, of any rank."""
    num_micro_batches: int
    """Most micro-batches of a rank in a step."""
    tokens: float
    """Real ones of a step, in the mean, over all ranks."""
    positions: float
    """Of a step, padding among them."""
    supervised: float
    """Of a step."""
    lengths: tuple[int, ...]
    """Tokens of all examples of the steps that were looked at."""
    num_steps: int
    """That were looked at."""
    steps_per_epoch: int | None
    """`None` where data are not prepared, or stream without end."""
    sequence: tuple[MicroBatchShape, ...]
    """Large micro-batches of a rank, in their order, the largest among them."""
    counted: bool
    """Whether the numbers are those of prepared data."""


def counted_shapes(
    data: Any, *, world_size: int, vocabulary: int, width: int, num_steps: int | None = None, masks: bool = False
) -> StepShapes:
    """Return the shapes of a data module's steps.

    Args:
        data: an `InstructionDataModule` whose data are loaded, none of them a stream.
        world_size: number of ranks.
        vocabulary: of the model, and
        width: of its layers all together; by these, positions are weighed against supervised tokens.
        num_steps: of the run, where it is shorter than an epoch.
        masks: whether a mask keeps the examples of a row apart, where it holds several.
    """
    steps: TrainingSteps = data._training_steps(0, world_size)
    per_epoch = steps.num_steps_per_epoch
    last = min(per_epoch, num_steps or per_epoch)
    looked_at = np.unique(np.linspace(0, last - 1, min(last, MOST_STEPS)).astype(np.int64))
    largest, most, most_supervised, positions, supervised = MicroBatchShape(1, 1, 1), 0, 0, 0, 0
    lengths: list[int] = []
    sequence: list[MicroBatchShape] = []
    for index in looked_at.tolist():
        examples = steps.examples_of(index)
        own, counts = data.store.num_tokens(examples), data.store.num_supervised(examples)
        lengths += own.tolist()
        supervised += int(counts.sum())
        for part in share(own, world_size):
            if not len(part):
                continue
            groups = cut(own[part], data.micro_batch_tokens, choice=data.row_layout_choice)
            shapes = [_shape(group, own[part], counts[part], masks=masks) for group in groups]
            most, positions = max(most, len(shapes)), positions + sum(one.positions for one in shapes)
            sequence += shapes if len(sequence) < KEPT_SHAPES else []
            largest = max(largest, *shapes, key=lambda one: one.positions * width + one.supervised * vocabulary)
            most_supervised = max(most_supervised, *(one.supervised for one in shapes))
    number = len(looked_at)
    return StepShapes(
        # The head keeps its buffer from one micro-batch to the next.
        largest=replace(largest, supervised=most_supervised),
        num_micro_batches=most,
        tokens=sum(lengths) / number,
        positions=positions / number,
        supervised=supervised / number,
        lengths=tuple(lengths),
        num_steps=number,
        steps_per_epoch=per_epoch,
        sequence=_large(sequence, largest),
        counted=True,
    )


def _large(sequence: list[MicroBatchShape], largest: MicroBatchShape) -> tuple[MicroBatchShape, ...]:
    """Return the first micro-batches of at least half the largest's positions, and the largest, where it comes."""
    found = [one for one in sequence if 2 * one.positions >= largest.positions]
    place = found.index(largest) if largest in found else len(found)
    first = found[:MOST_IN_SEQUENCE] if place < MOST_IN_SEQUENCE else [*found[: MOST_IN_SEQUENCE - 1], largest]
    return tuple(first)


def _shape(rows: list[list[int]], lengths: Any, supervised: Any, *, masks: bool) -> MicroBatchShape:
    longest = max(int(lengths[row].sum()) for row in rows)
    counted = int(sum(supervised[row].sum() for row in rows))
    return MicroBatchShape(len(rows), longest, counted, masked=masks and any(len(row) > 1 for row in rows))


def assumed_shapes(data: Any, *, world_size: int, length: int | None = None) -> StepShapes:
    """Return shapes of steps that are as large as the settings let them be; nothing is read.

    Args:
        data: an `InstructionDataModule`.
        world_size: number of ranks.
        length: of each example; by default `data.max_length`.
    """
    length = length or data.max_length
    per_rank = -(-data.global_batch_size // world_size)
    whole = data.row_layout_choice.whole_step
    rows = per_rank if whole else max(1, min(per_rank, data.micro_batch_tokens // length))
    tokens = float(data.global_batch_size * length)
    return StepShapes(
        largest=MicroBatchShape(rows, length, max(1, round(rows * length * SUPERVISED_SHARE))),
        num_micro_batches=-(-per_rank // rows),
        tokens=tokens,
        positions=tokens,
        supervised=tokens * SUPERVISED_SHARE,
        lengths=(length,) * data.global_batch_size,
        num_steps=1,
        steps_per_epoch=None,
        sequence=(MicroBatchShape(rows, length, max(1, round(rows * length * SUPERVISED_SHARE))),) * 2,
        counted=False,
    )


def with_budget(shapes: StepShapes, tokens: int) -> StepShapes:
    """Return shapes whose largest micro-batch has at most so many positions, as a smaller budget would cut it."""
    before = shapes.largest
    rows = max(1, min(before.rows, tokens // before.length))
    length = before.length if rows * before.length <= tokens else tokens
    ratio = rows * length / before.positions
    largest = replace(before, rows=rows, length=length, supervised=max(1, round(before.supervised * ratio)))
    return replace(shapes, largest=largest, num_micro_batches=max(2, round(shapes.num_micro_batches / ratio)))
