from itertools import permutations, product

import pytest

from eval.ordering import competition_ranks, extract_ordering, mean_rank, mean_rank_score


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("Therefore, the order is: Assistant 2 > Assistant 1 = Assistant 3.", (2, 1, 2)),
        ("Assistant 1 = Assistant 2 > Assistant 4 > Assistant 3", (1, 1, 4, 3)),
        ("Ordering: Assistant 1 = Assistant 2", (1, 1)),
        ("**Assistant 3** > **Assistant 1** >= **Assistant 2**", (2, 3, 1)),
        ("[Assistant 2] >> [Assistant 1]", (2, 1)),
        ("Assistant 1 ＞ Assistant 2 ＝ Assistant 3", (1, 2, 2)),
        ("助手2 > 助手1 = 助手3", (2, 1, 2)),
        ("排序：系统3>系统2>系统1", (3, 2, 1)),
        ("Assistant 3 < Assistant 1 < Assistant 2", (2, 1, 3)),
        ("Assistant 1 &gt; Assistant 2", (1, 2)),
        ("The order:\n2 > 1 = 3", (2, 1, 2)),
        ("Assistant 1 > 2 = 3", (1, 2, 2)),
        ("Assistant 1 = Assistant 2\n= Assistant 3", (1, 1, 1)),
        ("Accuracy: Assistant 1 > Assistant 2. Overall: Assistant 2 > Assistant 1.", (2, 1)),
        ("Assistant 1 > Assistant 2 > Assistant 3. Assistant 1 > Assistant 2 in depth.", (1, 2, 3)),
        ("Model 1 ≈ Model 2 ≥ Model 3", (1, 1, 3)),
        (
            "Assistant 10 > Assistant 9 > " + " = ".join(f"Assistant {number}" for number in range(1, 9)),
            (3,) * 8 + (2, 1),
        ),
    ],
)
def test_the_last_full_chain_is_read(reply: str, ranks: tuple[int, ...]) -> None:
    assert extract_ordering(reply, len(ranks)).ranks == ranks


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        ("", 2),
        ("Both are fine.", 2),
        ("Assistant 1 > Assistant 2", 3),
        ("Assistant 1 > Assistant 2, Assistant 3 > Assistant 4", 4),
        ("Assistant 1 > Assistant 2 > Assistant 1", 2),
        ("Assistant 1 > Assistant 2 < Assistant 3", 3),
        ("Assistant 0 > Assistant 1", 2),
        ("We know that 2 > 1 holds, so the first reply is right.", 2),
        ("Assistant 1 is better than Assistant 2", 2),
    ],
)
def test_anything_else_is_unparsed(reply: str, count: int) -> None:
    found = extract_ordering(reply, count)
    assert (found.ranks, found.status) == (None, "unparsed")


def test_ranks_count_the_systems_that_are_better() -> None:
    """The definition of competition ranking, over every ordering of four systems."""
    for order in permutations(range(1, 5)):
        for signs in product(">=", repeat=3):
            chain = f"Assistant {order[0]}" + "".join(
                f" {sign} Assistant {system}" for sign, system in zip(signs, order[1:], strict=True)
            )
            level, levels = 0, {order[0]: 0}
            for sign, system in zip(signs, order[1:], strict=True):
                level += sign == ">"
                levels[system] = level
            expected = tuple(1 + sum(levels[other] < levels[system] for other in levels) for system in range(1, 5))
            assert extract_ordering(chain, 4).ranks == expected


def test_aggregates() -> None:
    assert competition_ranks([[2], [1, 3], [4]], 4) == (2, 1, 2, 4)
    assert mean_rank([1, 2, 4]) == pytest.approx(7 / 3)
    assert mean_rank_score([1, 2, 4]) == pytest.approx((10 + 5 + 2.5) / 3)
