"""Solves a method's size (rank, width, number of tokens or layers) for a number of trainable parameters.

In: a method and how many parameters it may train. Out: the same method in the size whose count is nearest, and that
count. Counts are taken on the model without its weights, with the method attached, so they are those of the run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import UserError
from ift.models.adapters import attach_empty, empty_model, num_trainable
from ift.models.base_weights import Biases, SampledLayers
from ift.models.methods import Method
from ift.models.sizes import KEY, Choices, Size, size_of, smallest, with_size
from ift.models.trained_adapters import adapter_folder
from ift.models.vocabulary import Growth

EQUAL = 0.1
"""Share of the budget beyond which the nearest count is said not to be of equal cost; sizes are whole numbers."""
TOLERANCE = 0.5
"""Largest share of the budget by which the nearest count may miss it."""
EXHAUSTIVE = 64
"""So many sizes are all counted where counts go up and down; of more, those near the crossing."""


@dataclass(frozen=True)
class Allotment:
    """What was found for a budget."""

    asked: int
    """Trainable parameters asked for."""
    parameter: str
    """Name of the method's size."""
    value: int
    """The size that was found."""
    trainable: int
    """Trainable parameters in that size; of AdaLoRA, those it begins with."""

    def note(self) -> str:
        """Return what was decided, in one line."""
        gap = (self.trainable - self.asked) / self.asked
        told = f"{KEY}: {self.asked:,} asked for; {self.parameter} {self.value} trains {self.trainable:,} ({gap:+.2%})"
        if abs(gap) <= EQUAL:
            return told
        return f"{told}, and no size comes nearer: methods that are compared at this budget do not cost the same"


def check_budget(budget: int | None) -> None:
    """Refuse a budget that is no number of parameters.

    Raises:
        UserError: below 1.
    """
    if budget is not None and budget < 1:
        raise UserError(f"{KEY}: {budget} is no number of trainable parameters. Give 1 or more, or leave it out.")


def check_counted(allotment: Allotment | None, trainable: int) -> None:
    """Refuse to train another number of parameters than was counted without the weights.

    Args:
        allotment: of the run, if it has a budget.
        trainable: parameters of the loaded model.

    Raises:
        UserError: the numbers differ.
    """
    if allotment is not None and allotment.trainable != trainable:
        raise UserError(
            f"{KEY}: {allotment.parameter} {allotment.value} was counted as {allotment.trainable:,} trainable "
            f"parameters, and trains {trainable:,} in the loaded model. Leave the budget out, and give "
            f"model.adapter.{allotment.parameter} itself."
        )


def allot(method: Method, budget: int, *, base: str, growth: Growth | None = None) -> tuple[Method, Allotment]:
    """Return a method in the size that trains nearest to so many parameters.

    Args:
        method: its own size is not used, but for the scale that goes with it.
        budget: number of trainable parameters.
        base: folder or hub id of the base model, whose config alone is read.
        growth: by which it is enlarged.

    Raises:
        UserError: the method has no size, or none is within half of the budget.
    """
    if isinstance(method.config, Path):
        raise UserError(_refusal_of_trained(method.config, budget))
    model = empty_model(base, growth)
    if model is None:
        raise UserError(f"{KEY}: counts on the base model's config, and none could be read from '{base}'.")
    size = size_of(method)
    if size is None:
        raise UserError(_refusal_without_size(method, model))
    return _nearest(method, size, budget, model=model)


def _nearest(method: Method, size: Size, budget: int, *, model: Any) -> tuple[Method, Allotment]:
    start = smallest(method)
    attached = attach_empty(with_size(method, size, start), model)
    if attached is None:
        raise UserError(
            f"{KEY}: how many parameters {method.name} trains depends on the values of the weights, which are not "
            f"loaded yet. Give model.adapter.{size.parameter} itself."
        )
    choices = Choices(method, size, attached)
    counts = _Counts(lambda value: _count(with_size(method, size, value), model), choices)
    indices = _around(counts, budget, ragged=size.ragged)
    # Of two as near, the cheaper; of equal counts, the smaller size.
    ranked = sorted(indices, key=lambda index: (abs(counts[index] - budget), counts[index], index))
    best = ranked[0]
    if abs(counts[best] - budget) > TOLERANCE * budget:
        raise UserError(_refusal_of_distance(method, size, budget, found=[(choices[i], counts[i]) for i in indices]))
    value = choices[best]
    found = Allotment(budget, size.parameter, value=value, trainable=int(counts[best]))
    return with_size(method, size, value), found


def _count(method: Method, model: Any) -> float:
    """Return a count; a size that the method cannot have on this model is beyond all others."""
    try:
        attached = attach_empty(method, model)
    except UserError:
        return math.inf
    return num_trainable(attached) if attached is not None else math.inf


class _Counts:
    """Counts by the number of the choice, each taken once."""

    def __init__(self, count: Callable[[int], float], choices: Choices) -> None:
        self._count, self._choices = count, choices
        self._known: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._choices)

    def __getitem__(self, index: int) -> float:
        if index not in self._known:
            self._known[index] = self._count(self._choices[index])
        return self._known[index]


def _around(counts: _Counts, budget: int, *, ragged: bool) -> list[int]:
    """Return the numbers of the choices among which the nearest count is, with finite counts."""
    last = len(counts) - 1
    if ragged and last < EXHAUSTIVE:
        return list(range(last + 1))
    falling = counts[min(1, last)] < counts[0]
    above = _first(counts, budget, falling=falling)
    near = 8 if ragged else 1
    found = [i for i in range(max(0, above - near), min(last, above + near - 1) + 1) if math.isfinite(counts[i])]
    lower = found[0]
    if not falling and lower > 0 and counts[lower] == counts[lower - 1]:
        found[0] = _first(counts, counts[lower], falling=False)  # the smallest of many sizes that count the same
    return found


def _first(counts: _Counts, target: float, *, falling: bool) -> int:
    """Return the number of the first choice that reaches a count from below (from above, if counts fall).

    Most counts are affine in the size, so a straight line through the two nearest known choices is tried first; if it
    does not narrow the place by half, the middle is.

    Returns:
        The number of choices, where none does.
    """

    def reached(index: int) -> bool:
        return counts[index] <= target if falling else counts[index] >= target

    if reached(0):
        return 0
    low, high, step = 0, len(counts), 1
    while high == len(counts) and low < high - 1:  # grow until it is reached
        index = min(low + step, high - 1)
        if reached(index):
            high = index
            break
        guess = _on_line(counts, (0, index), target) if index else None
        low, step = index, max(2 * step, (guess or 0) - index)
    halve = False
    while high - low > 1:
        known = high < len(counts) and math.isfinite(counts[high])
        guess = _on_line(counts, (low, high), target) if known and not halve else None
        index = min(max(guess, low + 1), high - 1) if guess is not None else (low + high) // 2
        width = high - low
        low, high = (low, index) if reached(index) else (index, high)
        halve = not halve and high - low > width // 2
    return high


def _on_line(counts: _Counts, two: tuple[int, int], target: float) -> int | None:
    """Return where a line through two choices reaches a count, or `None` where it does not."""
    first, second = two
    slope = (counts[second] - counts[first]) / (second - first)
    return math.ceil(first + (target - counts[first]) / slope) if slope else None


def _refusal_of_distance(method: Method, size: Size, budget: int, *, found: list[tuple[int, float]]) -> str:
    by_distance = sorted(found, key=lambda one: (abs(one[1] - budget), one))[:2]
    told = " and ".join(f"{int(count):,} ({size.parameter} {value})" for value, count in sorted(by_distance))
    nearest = int(by_distance[0][1])
    if len(by_distance) == 1:
        end = "smallest" if by_distance[0][0] == smallest(method) else "largest"
        told += f", of the {end} size that is of use here"
    return (
        f"{KEY}: {budget:,}, and no size of {method.name} trains within {TOLERANCE:.0%} of that on this model; the "
        f"nearest {'count is' if len(by_distance) == 1 else 'counts are'} {told}. Ask for {nearest:,}, or take another "
        "method or other target_modules."
    )


def _refusal_without_size(method: Method, model: Any) -> str:
    attached = attach_empty(method, model)
    trained = f"{num_trainable(attached):,} parameters" if attached is not None else "what the weights' values say"
    if isinstance(method.config, SampledLayers):
        trained += ", some layers at a time"
    elif isinstance(method.config, Biases):
        trained += ", which are all biases"
    return (
        f"{KEY}: {method.name} has no size to choose; on this model it trains {trained}. Leave the budget out, or take "
        "a method with a size: lora (r), freeze (num_layers), sadapter_p (bottleneck_size), prefix "
        "(num_virtual_tokens)."
    )


def _refusal_of_trained(folder: Path, budget: int) -> str:
    from peft import load_peft_weights

    place = adapter_folder("model.adapter", folder)
    number = sum(weight.numel() for weight in load_peft_weights(str(place), device="cpu").values())
    return (
        f"{KEY}: {budget:,}, and '{folder}' is trained already and holds {number:,} parameters; its size is not to "
        "choose. Leave the budget out."
    )
