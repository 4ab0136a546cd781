"""The likelihood of texts longer than a model's positions: windows that together predict every token once."""

from collections.abc import Iterator
from dataclasses import dataclass

from ift.errors import UserError

DEFAULT_LENGTH = 2048
"""Window of a model whose config states no number of positions."""


@dataclass(frozen=True)
class Windows:
    """How whole texts are cut where their own likelihood is asked for."""

    length: int | None = None
    """Tokens that the model reads at once; as many as it has positions (2048 where its config names none)."""
    stride: int | None = None
    """Tokens that each window after the first predicts: fewer give each more context, and take longer. As many as
    `length`, as in lm-evaluation-harness."""

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise UserError(f"model.windows.length: {self.length} is less than 1.")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"model.windows.stride: {self.stride} is less than 1.")
        if self.length is not None and self.stride is not None:
            self._check_stride(self.length)

    def within(self, positions: int | None) -> tuple[int, int]:
        """Return length and stride for a model with so many positions for the text.

        Raises:
            UserError: longer windows than that, or a stride over the length.
        """
        length = self.length or positions or DEFAULT_LENGTH
        if positions is not None and length > positions:
            raise UserError(f"model.windows.length: {length} is more than the {positions} positions of the model.")
        self._check_stride(length)
        return length, self.stride or length

    def _check_stride(self, length: int) -> None:
        if self.stride is not None and self.stride > length:
            raise UserError(f"model.windows.stride: {self.stride} is more than the window's length, {length}.")


def cut(ids: list[int], *, begin: list[int], length: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield context and continuation of each window; the continuations laid end to end are `ids`.

    The first window is read from `begin` on and predicts as much as fits; each further one predicts the next `stride`
    tokens, or what is left of them, with all the context that fits. With a stride of the whole length these are the
    windows of lm-evaluation-harness (`get_rolling_token_windows` with one token of context).

    Args:
        ids: of the text.
        begin: ids before it, not empty; shorter than the window.
        length: tokens that the model reads at once: all but the last of context and continuation.
        stride: up to `length`.
    """
    end = min(len(ids), length - len(begin) + 1)
    yield begin, ids[:end]
    while end < len(ids):
        start, end = end, min(len(ids), end + stride)
        yield ids[max(0, end - length - 1) : start], ids[start:end]
