"""The order of an epoch, computed where it is needed: no list of all examples is ever shuffled or kept.

A permutation of any size is a function of its seed (a Feistel network over the numbers below a power of four, walked
until the result is small enough: Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). So beginning or
resuming an epoch takes the same time and memory for a thousand examples and for a thousand million.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ift.data.text_windows import mixed

IndexArray = npt.NDArray[np.int64]
Mixing = Literal["repeats", "examples", "tokens"]
"""What a source's weight means: how often each of its examples occurs per epoch, or its share of the mixture's examples
or tokens."""
_ROUNDS = 7


class Permutation:
    """A permutation of the numbers below `size` that is a function of `seed`.

    Args:
        size: how many numbers.
        seed: one or several numbers.
    """

    def __init__(self, size: int, *seed: int) -> None:
        self.size = size
        self._half_bits = max(1, -(-max(1, size - 1).bit_length() // 2))
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: IndexArray) -> IndexArray:
        """Return where each position is sent, int64, of the same shape; positions are below `size`."""
        values = np.asarray(positions, dtype=np.uint64)
        values = self._encrypt(values)
        outside = values >= self.size
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return (left << bits) | right


@dataclass(frozen=True)
class Members:
    """The examples of one source that are trained on: a range of the store without those held out, perhaps capped."""

    start: int
    stop: int
    held_out: IndexArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Sorted indices within the range that are not trained on."""
    cap: int | None = None
    """At most so many."""
    seed: tuple[int, ...] = (0,)
    """Of the choice under a cap."""

    def __len__(self) -> int:
        available = self.stop - self.start - len(self.held_out)
        return available if self.cap is None else min(self.cap, available)

    def __getitem__(self, positions: IndexArray) -> IndexArray:
        """Return the indices of the members at these positions."""
        available = self.stop - self.start - len(self.held_out)
        if len(self) < available:
            positions = Permutation(available, *self.seed)(positions)
        # The number of held-out indices before the n-th member: where n would stand among (held-out - their rank).
        before = np.searchsorted(self.held_out - self.start - np.arange(len(self.held_out)), positions, side="right")
        return self.start + positions + before


@dataclass(frozen=True)
class Mixture:
    """Which example stands where in which epoch."""

    members: tuple[Members, ...]
    uses: tuple[int, ...]
    """Per source, how many examples an epoch takes of it; more than it has repeats them, fewer are a choice that
    changes from epoch to epoch."""
    seed: int

    @cached_property
    def bounds(self) -> IndexArray:
        """int64, `(sources + 1,)`: where each source's uses begin, and the end."""
        return np.concatenate(([0], np.cumsum(self.uses, dtype=np.int64)))

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def at(self, positions: IndexArray, *, epoch: int) -> IndexArray:
        """Return the indices of the examples at these positions of an epoch."""
        slots = Permutation(len(self), self.seed, epoch)(positions)
        owners = np.searchsorted(self.bounds, slots, side="right") - 1
        result = np.empty(len(slots), dtype=np.int64)
        for owner in np.unique(owners).tolist():
            own = owners == owner
            result[own] = self._examples(owner, slots[own] - self.bounds[owner], epoch)
        return result

    def _examples(self, owner: int, numbers: IndexArray, epoch: int) -> IndexArray:
        """Return the examples of a source's uses by number: whole passes, then a part drawn anew each epoch."""
        members = self.members[owner]
        size = len(members)
        whole = self.uses[owner] // size * size
        chosen = numbers % size
        partial = numbers >= whole
        if partial.any():
            chosen[partial] = Permutation(size, self.seed, epoch, owner, 1)(numbers[partial] - whole)
        return members[chosen]


def uses_per_epoch(
    sizes: Sequence[int], weights: Sequence[float], mean_tokens: Sequence[float], *, mixing: Mixing
) -> tuple[int, ...]:
    """Return how many examples an epoch takes of each source.

    With shares, an epoch has as many examples (or tokens) as the sources have together, so that a source above its own
    share is repeated, and one below it is thinned out.

    Args:
        sizes: examples of each source.
        weights: above 0.
        mean_tokens: per example of each source; for mixing by tokens.
        mixing: what the weights mean.
    """
    if mixing == "repeats":
        return tuple(int(w) * n + round((w - int(w)) * n) for w, n in zip(weights, sizes, strict=True))
    # A source of which everything was left out has no part; the others share what it would have had.
    parts = [weight if size else 0.0 for weight, size in zip(weights, sizes, strict=True)]
    shares = [part / (sum(parts) or 1) for part in parts]
    if mixing == "examples":
        return tuple(round(share * sum(sizes)) for share in shares)
    tokens = sum(size * mean for size, mean in zip(sizes, mean_tokens, strict=True))
    return tuple(round(share * tokens / mean) if mean else 0 for share, mean in zip(shares, mean_tokens, strict=True))
