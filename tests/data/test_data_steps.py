"""Steps: exact counts, an order that only the seed decides, and cuts that change nothing."""

from collections import Counter
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import make_rows, write_json

from ift.data.datamodule import InstructionDataModule
from ift.data.order import Members, Mixing, Mixture, Permutation, uses_per_epoch
from ift.data.rows import Source
from ift.data.steps import EpochSampler, Position, Step
from ift.errors import UserError


@pytest.mark.parametrize(("weight", "size"), [(0.5, 10), (1, 20), (2.5, 50), (0.13, 3), (3, 60)])
def test_weights_are_exact_in_every_epoch(weight: float, size: int) -> None:
    members = (Members(0, 20), Members(100, 107))
    uses = uses_per_epoch([20, 7], [weight, 1], [1, 1], mixing="repeats")
    mixture = Mixture(members, uses, seed=3)
    assert len(mixture) == size + 7
    seen: Counter[int] = Counter()
    for epoch in range(40):
        counts = Counter(mixture.at(np.arange(size + 7), epoch=epoch).tolist())
        assert all(counts[index] == 1 for index in range(100, 107))
        assert all(int(weight) <= counts[index] <= -int(-weight // 1) for index in range(20))
        seen.update(counts)
    # A fraction is drawn anew each epoch, so that over many nothing is left out: 40 draws, 5 standard deviations.
    fraction = weight - int(weight)
    spread = 5 * (40 * fraction * (1 - fraction)) ** 0.5
    assert all(abs(seen[index] - 40 * weight) <= spread for index in range(20))


def test_the_order_is_seeded_and_changes_from_epoch_to_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Mixture((Members(0, 50),), (50,), seed).at(np.arange(50), epoch=epoch).tolist()

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(one) for one in orders.values()}) == 4
    assert all(sorted(one) == list(range(50)) for one in orders.values())
    assert order(1, 1) == orders[1, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_a_permutation_is_one(size: int) -> None:
    for seed in range(3):
        assert sorted(Permutation(size, seed, 9)(np.arange(size)).tolist()) == list(range(size))


def test_all_permutations_of_four_are_equally_likely() -> None:
    found = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(12_000))
    # 24 orders, each expected 500 times; chi-square with 23 degrees of freedom exceeds 49.7 once in a thousand.
    assert len(found) == 24
    assert sum((number - 500) ** 2 / 500 for number in found.values()) < 49.7


def test_neighbours_are_strangers_after_a_permutation() -> None:
    order = Permutation(100_000, 5)(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015  # 5 standard deviations of no correlation
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.015


@pytest.mark.parametrize("seed", range(10))
def test_members_are_the_range_without_what_is_held_out(seed: int) -> None:
    generator = np.random.default_rng(seed)
    held_out = np.sort(generator.choice(np.arange(10, 60), size=seed * 5, replace=False))
    members = Members(10, 60, held_out)
    assert members[np.arange(len(members))].tolist() == sorted(set(range(10, 60)) - set(held_out.tolist()))
    capped = Members(10, 60, held_out, cap=4, seed=(seed,))
    chosen = capped[np.arange(len(capped))].tolist()
    assert len(set(chosen)) == min(4, 50 - seed * 5) and set(chosen) <= set(members[np.arange(len(members))].tolist())


@pytest.mark.parametrize("mixing", ["repeats", "examples", "tokens"])
def test_a_source_without_examples_has_no_part(mixing: Mixing) -> None:
    uses = uses_per_epoch([8, 0], [1, 5], [4.0, 0.0], mixing=mixing)
    mixture = Mixture((Members(0, 8), Members(8, 8)), uses, seed=0)
    assert uses == (8, 0) and sorted(mixture.at(np.arange(8), epoch=0).tolist()) == list(range(8))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.8), (1, 30)])
def test_shares_of_examples_and_tokens_are_as_asked(weights: tuple[float, float]) -> None:
    sizes, means = [1000, 50], [10.0, 400.0]
    asked = weights[0] / sum(weights)
    examples = uses_per_epoch(sizes, weights, means, mixing="examples")
    assert abs(sum(examples) - 1050) <= 1 and abs(examples[0] / sum(examples) - asked) < 0.001
    tokens = [n * m for n, m in zip(uses_per_epoch(sizes, weights, means, mixing="tokens"), means, strict=True)]
    assert abs(sum(tokens) - 30_000) <= 400 and abs(tokens[0] / sum(tokens) - asked) < 0.01


def module_of(base: Path, tmp_path: Path, rank: int = 0, world_size: int = 1, **options: Any) -> InstructionDataModule:
    files = [write_json(tmp_path / f"{n}.json", make_rows(count, start=start)) for n, count, start in FILES]
    weights = options.pop("weights", (1.0, 2.5))
    sources = [Source(str(path), "alpaca", weight=weight) for path, weight in zip(files, weights, strict=True)]
    defaults: dict[str, Any] = {"max_length": 256, "global_batch_size": 8, "micro_batch_tokens": 512}
    module = InstructionDataModule(sources, str(base), cache_dir=str(tmp_path / "cache"), **{**defaults, **options})
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    module.load()
    return module


FILES = [("a", 21, 0), ("b", 12, 40)]


def epoch_of(module: InstructionDataModule, epoch: int = 0) -> list[Step]:
    module.position.next_step = epoch * module.num_steps_per_epoch
    return list(module.train_dataloader())


def examples_in(steps: list[Step]) -> Counter[tuple[int, ...]]:
    """Return the examples of micro-batches, told apart by their ids, where their labels count."""
    found: Counter[tuple[int, ...]] = Counter()
    for step in steps:
        for batch in step.micro_batches:
            for ids, labels, lengths in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
                ends = [0, *accumulate(lengths)]
                assert (labels[ends[-1] :] == -100).all()
                for start, end in pairwise(ends):
                    if (labels[start:end] != -100).any():
                        found[tuple(ids[start:end].tolist())] += 1
    return found


def test_steps_per_epoch_are_exact(base: Path, tmp_path: Path) -> None:
    module = module_of(base, tmp_path)
    assert module.num_train_examples == 33
    assert module.num_steps_per_epoch == 7  # 21 + 2.5 * 12 = 51 examples: six steps of 8 and one of 3
    steps = epoch_of(module)
    assert [step.num_examples for step in steps] == [8] * 6 + [3]
    assert [step.index for step in steps] == list(range(7))
    assert [step.index for step in epoch_of(module, 3)] == list(range(21, 28))
    counts = examples_in(steps)
    assert sorted(counts.values()) == [1] * 21 + [2] * 6 + [3] * 6


@pytest.mark.parametrize(("world_size", "size"), [(2, 7), (3, 7), (11, 20)])
@pytest.mark.parametrize("row_layout", ["packed", "flattened", "grouped"])
def test_every_rank_makes_as_many_passes_where_a_strategy_asks(
    world_size: int, size: int, row_layout: str, base: Path, tmp_path: Path
) -> None:
    options = {"micro_batch_tokens": 256, "row_layout": row_layout, "validation": 10, "global_batch_size": size}
    modules = [module_of(base, tmp_path, rank, world_size, **options) for rank in range(world_size)]
    uneven = list(zip(*map(epoch_of, modules), strict=True))
    for module in modules:
        module.row_layout_choice = replace(module.row_layout_choice, even=True)
    even = list(zip(*map(epoch_of, modules), strict=True))
    even += zip(*(list(module.val_dataloader()) for module in modules), strict=True)
    assert any(len({len(part.micro_batches) for part in parts}) > 1 for parts in uneven)
    for parts in even:
        assert len({len(part.micro_batches) for part in parts}) == 1
    for parts, before in zip(even, uneven, strict=False):
        assert len(parts[0].micro_batches) == max(len(part.micro_batches) for part in before)
        assert examples_in(list(parts)) == examples_in(list(before))


@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
@pytest.mark.parametrize("budget", [256, 512, 10**6])
@pytest.mark.parametrize("row_layout", ["packed", "flattened", "grouped"])
def test_a_step_holds_the_same_whoever_cuts_it(
    world_size: int, budget: int, row_layout: str, base: Path, tmp_path: Path
) -> None:
    plain = epoch_of(module_of(base, tmp_path), 1)
    options = {"micro_batch_tokens": budget, "row_layout": row_layout}
    ranks = [epoch_of(module_of(base, tmp_path, rank, world_size, **options), 1) for rank in range(world_size)]
    for number, expected in enumerate(plain):
        parts = [steps[number] for steps in ranks]
        assert examples_in(parts) == examples_in([expected])
        whole = (expected.index, expected.num_supervised, expected.num_tokens, expected.num_examples)
        assert {(p.index, p.num_supervised, p.num_tokens, p.num_examples) for p in parts} == {whole}
        counted = sum(int((b.labels[:, 1:] != -100).sum()) for part in parts for b in part.micro_batches)
        assert counted == expected.num_supervised
        assert all(part.micro_batches for part in parts)  # also for a rank without a share: DDP waits for it
        assert all(b.input_ids.numel() <= max(budget, 256) for part in parts for b in part.micro_batches)
        for part in parts:
            assert part.num_padded == sum(b.num_padded for b in part.micro_batches)


def test_workers_change_nothing(base: Path, tmp_path: Path) -> None:
    plain = epoch_of(module_of(base, tmp_path))
    served = epoch_of(module_of(base, tmp_path, num_workers=2))
    assert [step.index for step in served] == [step.index for step in plain]
    assert [examples_in([step]) for step in served] == [examples_in([step]) for step in plain]


def test_a_resumed_epoch_begins_where_it_stopped(base: Path, tmp_path: Path) -> None:
    module = module_of(base, tmp_path)
    whole = [*epoch_of(module), *epoch_of(module, 1)]
    for position in range(len(whole)):
        module.load_state_dict({"next_step": position})
        assert module.state_dict() == {"next_step": position}
        rest = list(module.train_dataloader())
        assert [step.index for step in rest] == list(range(position, position // 7 * 7 + 7))
        assert examples_in(rest[:1]) == examples_in(whole[position : position + 1])


def test_the_sampler_counts_the_whole_epoch() -> None:
    sampler = EpochSampler(Position(next_step=9), 7)
    assert len(sampler) == 7 and list(sampler) == [9, 10, 11, 12, 13]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides_the_order(seed: int, base: Path, tmp_path: Path) -> None:
    first, again = (epoch_of(module_of(base, tmp_path, seed=seed)) for _ in range(2))
    other = epoch_of(module_of(base, tmp_path, seed=seed + 1))
    assert [examples_in([s]) for s in first] == [examples_in([s]) for s in again]
    assert [examples_in([s]) for s in first] != [examples_in([s]) for s in other]


class TestValidationSplit:
    @pytest.mark.parametrize(("asked", "number"), [(0.25, 8), (0.001, 1), (5, 5), (1, 1), (None, 0)])
    def test_is_disjoint_from_training_and_whole(
        self, asked: float | int | None, number: int, base: Path, tmp_path: Path
    ) -> None:
        module = module_of(base, tmp_path, weights=(1, 1), validation=asked)
        trained = examples_in(epoch_of(module))
        held_out = examples_in(list(module.val_dataloader()))  # type: ignore[arg-type]
        assert sum(held_out.values()) == module.num_validation_examples == number
        assert sum(trained.values()) == 33 - number
        assert not trained & held_out
        assert set((trained + held_out).values()) == {1}

    def test_is_seeded(self, base: Path, tmp_path: Path) -> None:
        splits = [
            examples_in(list(module_of(base, tmp_path, validation=10, seed=seed).val_dataloader()))  # type: ignore[arg-type]
            for seed in (0, 0, 1)
        ]
        assert splits[0] == splits[1] != splits[2]

    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("size", [4, 7])
    def test_every_example_counts_once_over_all_ranks(
        self, world_size: int, size: int, base: Path, tmp_path: Path
    ) -> None:
        held = [
            list(module_of(base, tmp_path, rank, world_size, validation=10, global_batch_size=size).val_dataloader())
            for rank in range(world_size)
        ]
        assert {len(steps) for steps in held} == {-(-10 // size)}
        found = examples_in([step for steps in held for step in steps])  # type: ignore[misc]
        assert sum(found.values()) == 10 and set(found.values()) == {1}

    def test_of_sources_of_its_own(self, base: Path, rows_file: Path, tmp_path: Path) -> None:
        module = module_of(base, tmp_path, weights=(1, 1), validation=[Source(str(rows_file), "alpaca")])
        assert sum(examples_in(epoch_of(module)).values()) == 33
        assert sum(examples_in(list(module.val_dataloader())).values()) == 40  # type: ignore[arg-type]
        described = module.describe()
        assert described["validation_examples"] == 40
        assert described["validation_sources"][0]["path"] == str(rows_file)
        assert len(module.rejects_files()) == 2

    @pytest.mark.parametrize(
        ("asked", "reason"),
        [
            (0, "data.validation: 0 is neither"),
            (1.5, "data.validation: 1.5 is neither"),
            (-0.1, "data.validation: -0.1 is neither"),
            (33, "data.validation: 33 examples held out of 33 leave none to train on"),
        ],
    )
    def test_refused(self, asked: float, reason: str, base: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=reason):
            module_of(base, tmp_path, validation=asked)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"global_batch_size": 0}, "data.global_batch_size: 0 is less than 1"),
        ({"max_length": 0}, "data.max_length: 0 is less than 1"),
        ({"micro_batch_tokens": 255}, "data.micro_batch_tokens: 255 is less than data.max_length 256"),
        ({"max_rejected": 1.1}, "data.max_rejected: 1.1 is no share"),
        ({"global_batch_size": 52}, "a step takes 52 examples, and an epoch has only 51"),
        ({"template": "alpacca"}, "data.template: unknown name 'alpacca'. Did you mean 'alpaca'?"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], reason: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        module_of(base, tmp_path, **options)


def test_a_source_that_would_never_be_used_is_refused(base: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", make_rows(20))
    for weight, message in ((0.02, r"data.sources\[1\].weight: 0.02 of 20 examples is none per epoch"),):
        sources = [Source(str(path), "alpaca"), Source(str(path), "alpaca", weight=weight)]
        with pytest.raises(UserError, match=message):
            InstructionDataModule(sources, str(base), 256, 4, 512, cache_dir=str(tmp_path / "cache")).load()


def test_a_source_of_which_all_is_held_out_is_refused(base: Path, tmp_path: Path) -> None:
    one, many = write_json(tmp_path / "one.json", make_rows(1)), write_json(tmp_path / "many.json", make_rows(20))
    sources = [Source(str(one), "alpaca"), Source(str(many), "alpaca")]
    with pytest.raises(UserError, match=r"data.sources\[0\]: all examples of '.*one.json' are held out or left out"):
        module = InstructionDataModule(
            sources, str(base), 256, 4, 512, validation=20, cache_dir=str(tmp_path / "cache"), seed=2
        )
        module.load()
        pytest.fail(str([len(members) for members in module.members]))
