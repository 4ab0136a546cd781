"""Micro-batches: every example once, within the budget, with little padding, and no label across a border."""

import math
import random
from collections.abc import Iterator
from itertools import accumulate, chain, pairwise

import numpy as np
import pytest
import torch

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import (
    MICRO_BATCH_COST,
    MicroBatch,
    RowLayout,
    RowLayoutChoice,
    collate,
    cut,
    fill_rows,
    group_rows,
    share,
)

LAYOUTS: tuple[RowLayout, ...] = ("packed", "flattened", "grouped")


def make_lengths(seed: int, number: int | None = None) -> np.ndarray:
    """Lengths as instruction data have them: many short ones, a few long."""
    generator = random.Random(seed)
    count = number or generator.randrange(1, 64)
    return np.array([min(2000, 20 + int(generator.lognormvariate(5, 0.8))) for _ in range(count)])


def make_examples(lengths: np.ndarray) -> list[Example]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 1000, length) for length in lengths]
    return [Example(one, np.where(generator.random(len(one)) < 0.5, one, IGNORE_INDEX)) for one in ids]


@pytest.mark.parametrize("seed", range(20))
def test_shares_part_a_step_evenly(seed: int) -> None:
    generator = random.Random(seed)
    lengths = np.array([generator.randrange(1, 500) for _ in range(generator.randrange(1, 64))])
    world_size = generator.randrange(1, 9)
    shares = share(lengths, world_size)
    assert len(shares) == world_size
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(lengths)))
    loads = [int(lengths[own].sum()) for own in shares]
    # Graham (1969): longest first is at most 4/3 of the best; that a longest example bounds from below.
    best = max(int(lengths.max()), -(-int(lengths.sum()) // world_size))
    assert max(loads) - min(loads) <= lengths.max()
    assert max(loads) <= best * 4 / 3 + lengths.max() / 3


@pytest.mark.parametrize("row_layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(20))
def test_a_cut_holds_every_example_once_and_keeps_the_budget(seed: int, row_layout: RowLayout) -> None:
    lengths = make_lengths(seed)
    for budget in (100, 500, 2048, 10**6):
        micro_batches = cut(lengths, budget, choice=RowLayoutChoice(row_layout, ""))
        assert sorted(chain.from_iterable(chain.from_iterable(micro_batches))) == list(range(len(lengths)))
        for rows in micro_batches:
            longest = max(int(lengths[row].sum()) for row in rows)
            # Only an example that is longer than the budget exceeds it, and it stands alone.
            assert len(rows) * longest <= budget or (len(rows) == 1 and len(rows[0]) == 1)
            assert row_layout != "flattened" or len(rows) == 1
            assert row_layout != "grouped" or all(len(row) == 1 for row in rows)
        assert micro_batches == cut(lengths.copy(), budget, choice=RowLayoutChoice(row_layout, ""))


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield every partition of a list into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


def cost_of(groups: list[list[int]], lengths: np.ndarray, *, budget: int, square: int) -> float:
    """Positions, costlier in longer rows, and a fixed cost per micro-batch; none over the budget but single rows."""
    total = 0.0
    for group in groups:
        longest = max(int(lengths[row]) for row in group)
        if len(group) > 1 and len(group) * longest > budget:
            return math.inf
        total += len(group) * longest * (1 + longest / square) + MICRO_BATCH_COST
    return total


@pytest.mark.parametrize("square", [500, 8192])
@pytest.mark.parametrize("seed", range(8))
def test_no_grouping_costs_less(seed: int, square: int) -> None:
    lengths = make_lengths(seed, 7)
    for budget in (150, 400, 1000, 10**6):
        groups, cost = group_rows(lengths, budget, square_cost_length=square)
        assert cost == pytest.approx(cost_of(groups, lengths, budget=budget, square=square))
        assert cost == pytest.approx(
            min(cost_of(one, lengths, budget=budget, square=square) for one in partitions(list(range(7))))
        )
        # Grouped by length: no group reaches into the lengths of the next.
        assert all(lengths[a].min() >= lengths[b].max() for a, b in pairwise(groups))


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_filled_nearly_as_well_as_can_be(seed: int) -> None:
    lengths = make_lengths(seed, 200)
    for capacity in (600, 2048, 8192):
        rows = fill_rows(lengths, capacity)
        fewest = sum(length > capacity for length in lengths)
        fewest += -(-int(lengths[lengths <= capacity].sum()) // capacity)
        assert len(rows) <= fewest * 11 / 9 + 1
        assert all(lengths[row].sum() <= capacity or len(row) == 1 for row in rows)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [2048, 8192])
def test_packed_rows_pad_little_and_less_than_grouped_ones(seed: int, budget: int) -> None:
    lengths = make_lengths(seed, 128)

    def padding(row_layout: RowLayout) -> float:
        batches = cut(lengths, budget, choice=RowLayoutChoice(row_layout, ""))
        positions = sum(len(rows) * max(int(lengths[row].sum()) for row in rows) for rows in batches)
        return 1 - int(lengths.sum()) / positions

    assert padding("flattened") == 0
    assert padding("packed") <= padding("grouped")
    assert padding("packed") < 0.03 and padding("grouped") < 0.05


def test_rows_are_shorter_where_attention_is_dear() -> None:
    lengths = make_lengths(3, 128)
    longest = []
    for square in (300, 2000, 100_000):
        cuts = cut(lengths, 8192, choice=RowLayoutChoice("packed", "", square))
        longest.append(np.mean([lengths[row].sum() for rows in cuts for row in rows]))
    assert longest[0] < longest[1] < longest[2]


@pytest.mark.parametrize("row_layout", LAYOUTS)
def test_a_micro_batch_holds_its_examples_and_nothing_else(row_layout: RowLayout) -> None:
    lengths = make_lengths(1, 40)
    examples = make_examples(lengths)
    for rows in cut(lengths, 2048, choice=RowLayoutChoice(row_layout, "")):
        batch = collate([[examples[position] for position in row] for row in rows], 7)
        assert batch.lengths == tuple(tuple(int(lengths[position]) for position in row) for row in rows)
        assert batch.num_padded == batch.input_ids.numel() - sum(int(lengths[row].sum()) for row in rows)
        assert (batch.position_ids is None) == all(len(row) == 1 for row in rows)
        check_rows(batch, rows, examples)


def check_rows(batch: MicroBatch, rows: list[list[int]], examples: list[Example]) -> None:
    for number, row in enumerate(rows):
        ends = [0, *accumulate(batch.lengths[number])]
        for position, (start, end) in zip(row, pairwise(ends), strict=True):
            assert batch.input_ids[number, start:end].tolist() == examples[position].input_ids.tolist()
            # Nothing of its own precedes the first token, so no label may stand there.
            assert int(batch.labels[number, start]) == IGNORE_INDEX
            assert batch.labels[number, start + 1 : end].tolist() == examples[position].labels[1:].tolist()
        assert (batch.input_ids[number, ends[-1] :] == 7).all()
        assert (batch.labels[number, ends[-1] :] == IGNORE_INDEX).all()
        if batch.position_ids is not None:
            borders = [*pairwise(ends), (ends[-1], batch.input_ids.shape[1])]
            assert batch.position_ids[number].tolist() == [p for start, end in borders for p in range(end - start)]


def test_supervised_tokens_are_counted_alike() -> None:
    """An example's own count leaves its first token out, as the rows do."""
    ids = np.arange(1, 6)
    examples = [Example(ids, ids), Example(ids[:1], ids[:1]), Example(ids, ids)]
    batch = collate([examples], 0)
    assert int((batch.labels != IGNORE_INDEX).sum()) == sum(example.num_supervised for example in examples) == 8


def test_a_micro_batch_moves_whole() -> None:
    examples = make_examples(np.array([5, 3, 4]))
    for rows in ([[*examples]], [[example] for example in examples]):
        batch = collate(rows, 0)
        moved = batch.to("meta")
        assert moved.lengths == batch.lengths and moved.num_padded == batch.num_padded
        assert (moved.position_ids is None) == (batch.position_ids is None)
        tensors = [moved.input_ids, moved.labels, *([] if moved.position_ids is None else [moved.position_ids])]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert all(tensor.dtype == torch.int64 for tensor in tensors)


@pytest.mark.parametrize("row_layout", ["packed", "flattened", "grouped"])
def test_a_whole_step_is_one_micro_batch_whatever_the_budget(row_layout: RowLayout) -> None:
    lengths = np.random.default_rng(5).integers(3, 200, size=60)
    choice = RowLayoutChoice(row_layout, "", 10**9, whole_step=True)
    (rows,) = cut(lengths, 256, choice=choice)
    assert sorted(position for row in rows for position in row) == list(range(60))
    assert {"packed": len(rows) < 40, "flattened": len(rows) == 1, "grouped": len(rows) == 60}[row_layout]
