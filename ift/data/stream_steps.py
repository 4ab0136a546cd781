"""Steps of a run with streams: the next rows of every source, in the proportions asked for.

A step takes `global_batch_size` rows, the same on every rank and for any number of workers; each rank encodes them all
and computes its share. A row that cannot be used leaves its step one example smaller, and is counted. What a step holds
depends on its number and on where the streams stand, and the state of the streams travels with the step, so a resumed
run goes on exactly where the last finished step ended.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from ift.data.conversation import Conversation
from ift.data.encoding import Encoder, Example
from ift.data.layouts import RowFunction
from ift.data.length import LengthPolicy
from ift.data.order import Members, Permutation
from ift.data.rendered_rows import render_rows
from ift.data.row_conversations import Reject
from ift.data.row_streams import RowStream
from ift.data.rows import RawRow
from ift.data.segments import Segment
from ift.data.steps import Step, StepPlan, StreamProgress, step_of_examples
from ift.data.store import ExampleStore


@dataclass(frozen=True)
class Taken:
    """What some rows of a source give."""

    examples: list[Example]
    num_used: int
    """Conversations that are in the examples: a text counts once, however many blocks it is in."""
    rejected: list[Reject] = field(default_factory=list)


class Part(Protocol):
    """One source of the mixture: gives examples by number, without end."""

    def take(self, start: int, stop: int) -> Taken:
        """Return what the rows from `start` to before `stop` give."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Return where the current block of a stream begins."""
        ...


@dataclass(frozen=True)
class StoredPart:
    """A prepared source, repeated in an order that changes from pass to pass."""

    store: ExampleStore
    members: Members
    seed: tuple[int, ...]

    def take(self, start: int, stop: int) -> Taken:
        """Return examples by number; each pass holds every example once."""
        size = len(self.members)
        found = []
        for number in range(start, stop):
            passed, position = divmod(number, size)
            order = Permutation(size, *self.seed, passed)
            index = self.members[order(np.array([position]))]
            found.append(self.store[int(index[0])])
        return Taken(found, len(found))

    def state(self) -> None:
        """Return nothing: the number of an example says it all."""


class StreamedPart:
    """A streaming source.

    Args:
        stream: its rows.
        function: its row function.
        encoder: tokenizer and template.
        length: what becomes of long examples.
        name: of the source, for its examples.
    """

    def __init__(
        self, stream: RowStream, function: RowFunction, *, encoder: Encoder, length: LengthPolicy, name: str
    ) -> None:
        self._stream, self._function, self._name = stream, function, name
        self._encoder, self._length = encoder, length

    def take(self, start: int, stop: int) -> Taken:
        """Return the examples of rows by number; a row with several conversations gives several.

        Texts are joined within these rows, so that what a step holds depends on no row before it.
        """
        rejected: list[Reject] = []
        usable: list[tuple[RawRow, Conversation, list[Segment]]] = []
        rows = map(self._stream.row, range(start, stop))
        for one in render_rows(rows, self._function, length=self._length):
            if one.conversation is None:
                rejected.append(Reject.of(one.row, self._name, kind=one.reason, reason=one.reason))
            else:
                usable.append((one.row, one.conversation, one.segments))
        encoded = self._encoder.encode_batch([segments for _, _, segments in usable])
        outcome = self._length.apply(encoded, [conversation for _, conversation, _ in usable])
        for number, reason in outcome.rejected.items():
            rejected.append(Reject.of(usable[number][0], self._name, kind=reason.kind, reason=reason.text))
        kept = [one for number, (_, one, _) in enumerate(usable) if number not in outcome.rejected]
        batches = self._length.with_blocks(outcome.batch, kept)
        examples = [one for batch in batches for one in self._encoder.examples(batch, source=self._name)]
        return Taken(examples, len(kept), rejected)

    def state(self) -> dict[str, Any]:
        """Return where the current block begins."""
        return self._stream.state()


def rows_taken(shares: Sequence[float], total: int) -> list[int]:
    """Return how many of the first `total` rows come from each source.

    Webster's method (Sainte-Laguë): each next row is of the source that is furthest behind its share, so that every
    beginning of the sequence is as close to the shares as whole numbers can be.

    Args:
        shares: of the sources, above 0, together 1.
        total: rows of all sources.
    """
    taken = [max(0, math.floor(share * (total - len(shares)) + 0.5 - 1e-9)) for share in shares]
    for _ in range(total - sum(taken)):
        behind = max(range(len(shares)), key=lambda i: (shares[i] / (2 * taken[i] + 1), -i))
        taken[behind] += 1
    return taken


class StreamSteps(Dataset[Step]):
    """The steps of a run with streams by number; numbers must not decrease.

    Args:
        parts: the sources.
        shares: of the sources among the rows, together 1.
        plan: how steps are cut.
        num_steps: of the run.
    """

    def __init__(self, parts: Sequence[Part], shares: Sequence[float], *, plan: StepPlan, num_steps: int) -> None:
        self._parts, self._shares, self._plan = list(parts), list(shares), plan
        self.num_steps_per_epoch = num_steps

    def __getitem__(self, index: int) -> Step:
        size = self._plan.global_batch_size
        starts = rows_taken(self._shares, index * size)
        stops = rows_taken(self._shares, (index + 1) * size)
        examples: list[Example] = []
        rejected: list[tuple[int, Reject]] = []
        num_rows, num_used, states = [], [], []
        for number, (part, start, stop) in enumerate(zip(self._parts, starts, stops, strict=True)):
            taken = part.take(start, stop)
            examples += taken.examples
            rejected += [(number, reject) for reject in taken.rejected]
            state = part.state()
            states.append(state)
            num_rows.append(stop - start if state is not None else 0)
            num_used.append(taken.num_used if state is not None else 0)
        progress = StreamProgress(tuple(states), tuple(num_rows), tuple(num_used), tuple(rejected))
        return step_of_examples(examples, self._plan, index=index, progress=progress)
