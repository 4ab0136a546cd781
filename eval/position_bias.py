"""Whether a judge favours a place in its message: how much each place adds to a score, and whether that is chance.

The systems' order is rotated from message to message (`rotations` in `eval/judged.py`), so that every system stands
equally often in every place and the two can be told apart. `placed_scores` takes the scores out of the judge's replies,
and `position_bias` measures what the places add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.judge_systems import parse_system_scores
from ift.errors import UserError
from ift.records import Prediction

RESAMPLES = 5000
SEED = 20_231_011


@dataclass(frozen=True)
class Placed:
    """One score, with where its system stood."""

    item: str
    system: str
    place: int
    """From 1."""
    score: float


def placed_scores(replies: Sequence[Prediction], *, maximum: float = 10.0) -> list[Placed]:
    """Return the scores that replies give to systems beside each other, with their places.

    Args:
        replies: of the judge; `meta` names the judged `item` and the `systems` in the order shown.
        maximum: best score of the judge's scale.
    """
    placed = []
    for reply in replies:
        names = reply.meta["systems"]
        scores = parse_system_scores(reply.response or "", len(names), maximum=maximum)
        for place, (name, score) in enumerate(zip(names, scores, strict=True), 1):
            if score.value is not None:
                placed.append(Placed(reply.meta["item"], name, place, score.value))
    return placed


@dataclass(frozen=True)
class PlaceMean:
    """What a place gets, once what belongs to its items and systems is taken off."""

    place: int
    n: int
    mean: float
    """Plain mean score."""
    effect: float
    """Mean of score - mean of its system - mean of its item + overall mean: 0 where the place does not matter."""
    interval: tuple[float, float]
    """95 % percentile bootstrap of the effect over items."""


@dataclass(frozen=True)
class PositionBias:
    """The bias of a judge over places."""

    n_items: int
    """Items in which every system has a score; the others are left out here."""
    left_out: int
    places: tuple[PlaceMean, ...]
    table: Mapping[str, Mapping[int, tuple[int, float]]]
    """System to place to number and mean of the scores, over all of them."""
    p_value: float
    """Of the permutation test: how often shuffling the places within items moves the effects as far apart."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the places differ at the 5 % level."""
        return self.p_value < 0.05


def position_bias(scores: Sequence[Placed], *, resamples: int = RESAMPLES, seed: int = SEED) -> PositionBias:
    """Return how scores depend on the place in the judge's message.

    The test shuffles, within every item, which place each score counts for, after the means of items and systems are
    taken off: F. Pesarin and L. Salmaso, "Permutation Tests for Complex Data" (2010), on blocks with estimated effects;
    its level is then approximate, and the tests of this project hold it against simulated judges.

    Args:
        scores: of several systems; an item with a system or place missing or twice is left out, and counted.
        resamples: of the bootstrap and of the test.
        seed: the same seed gives the same result.

    Raises:
        UserError: no item is complete, or every item shows the same order, which hides the places behind the systems.
    """
    systems = sorted({one.system for one in scores})
    items: dict[str, list[Placed]] = {}
    for one in scores:
        items.setdefault(one.item, []).append(one)
    complete = [own for own in items.values() if _is_complete(own, systems)]
    if not complete or len(systems) < 2:
        raise UserError("position bias: no item has a score for every one of several systems.")
    values = np.array([[one.score for one in sorted(own, key=lambda one: one.place)] for own in complete])
    ids = np.array([[systems.index(one.system) for one in sorted(own, key=lambda one: one.place)] for own in complete])
    if (ids == ids[0]).all():
        raise UserError(
            "position bias: the systems stand in one order in every item. Rotate it (--seed) to see places."
        )
    rest = _residuals(values, ids)
    generator = np.random.default_rng(seed)
    drawn = rest[generator.integers(len(rest), size=(resamples, len(rest)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    places = tuple(
        PlaceMean(
            place + 1,
            len(values),
            float(values[:, place].mean()),
            float(rest[:, place].mean()),
            (float(low[place]), float(high[place])),
        )
        for place in range(len(systems))
    )
    table = {system: _means([one for one in scores if one.system == system]) for system in systems}
    p_value = _permutation_test(rest, resamples, generator)
    return PositionBias(len(complete), len(items) - len(complete), places, table, p_value)


def _is_complete(own: Sequence[Placed], systems: Sequence[str]) -> bool:
    places = sorted(one.place for one in own)
    return sorted(one.system for one in own) == list(systems) and places == list(range(1, len(systems) + 1))


def _residuals(values: NDArray[np.float64], ids: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return scores `(items, places)` without the means of their items and systems."""
    means = np.array([values[ids == system].mean() for system in range(ids.shape[1])])
    rest: NDArray[np.float64] = values - values.mean(axis=1, keepdims=True) - means[ids] + values.mean()
    return rest


def _permutation_test(rest: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> float:
    def spread(values: NDArray[np.float64]) -> float:
        return float((values.mean(axis=0) ** 2).sum())

    observed = spread(rest)
    # A shuffle counts as equal within rounding: the same sums in another order differ in the last digits.
    extreme = sum(spread(generator.permuted(rest, axis=1)) >= observed - 1e-12 for _ in range(resamples))
    return (extreme + 1) / (resamples + 1)


def _means(scores: Sequence[Placed]) -> dict[int, tuple[int, float]]:
    places = sorted({one.place for one in scores})
    own = {place: [one.score for one in scores if one.place == place] for place in places}
    return {place: (len(values), float(np.mean(values))) for place, values in own.items()}


def bias_markdown(bias: PositionBias) -> str:
    """Return the report for people."""
    told = "distinguishable" if bias.is_distinguishable else "not distinguishable"
    header = " | ".join(f"place {place.place}" for place in bias.places)
    return "\n".join(
        [
            "# Position bias",
            "",
            f"Places are {told} (permutation test within items, p = {bias.p_value:.4f}); {bias.n_items} items, "
            f"{bias.left_out} left out because a score is missing.",
            "",
            "| place | n | mean score | effect of the place | 95 % interval |",
            "|---:|---:|---:|---:|---|",
            *(
                f"| {one.place} | {one.n} | {one.mean:.3f} | {one.effect:+.3f} "
                f"| {one.interval[0]:+.3f} – {one.interval[1]:+.3f} |"
                for one in bias.places
            ),
            "",
            f"| mean score (n) of | {header} |",
            "|---|" + "---:|" * len(bias.places),
            *(
                f"| {name.replace('|', '&#124;')} | {_cells(row, len(bias.places))} |"
                for name, row in bias.table.items()
            ),
            "",
        ]
    )


def _cells(row: Mapping[int, tuple[int, float]], count: int) -> str:
    found = [row.get(place) for place in range(1, count + 1)]
    return " | ".join("" if one is None else f"{one[1]:.3f} ({one[0]})" for one in found)
