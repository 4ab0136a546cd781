import pytest

from eval.matching import match, select
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

PROMPTS = [PromptRecord(f"q-{index}", ({"role": "user", "content": "?"},), reference="A") for index in range(9)]


def predictions(ids: list[str], reference: str | None = "A") -> list[Prediction]:
    return [Prediction(name, "?", response="A", reference=reference) for name in ids]


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    sample = select(PROMPTS, limit=4, seed=3)
    assert sample == select(iter(PROMPTS), limit=4, seed=3)
    assert sample != select(PROMPTS, limit=4, seed=4)
    assert sample == sorted(sample, key=lambda prompt: prompt.id) and len(sample) == 4
    assert select(PROMPTS, limit=None, seed=3) == PROMPTS


@pytest.mark.parametrize("limit", [0, -1, 10])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(UserError, match="--limit: .*the data has 9 rows"):
        select(PROMPTS, limit=limit, seed=0)


def test_an_id_that_occurs_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'q-0' occurs twice"):
        select([*PROMPTS, PROMPTS[0]], limit=None, seed=0)


def test_predictions_come_back_in_the_order_of_the_prompts() -> None:
    ids = [prompt.id for prompt in PROMPTS]
    assert [item.id for item in match(PROMPTS, predictions(ids[::-1]))] == ids


def test_missing_and_unknown_ids_are_counted_and_named() -> None:
    with pytest.raises(UserError) as caught:
        match(PROMPTS, predictions(["q-0", "q-1", "other"]))
    assert "3 predictions for 9 prompts: 7 missing (q-2, q-3, q-4, q-5, q-6, …)" in str(caught.value)
    assert "1 not in the data (other)" in str(caught.value)


def test_predictions_outside_the_sample_are_left_out_and_counted() -> None:
    ids = [prompt.id for prompt in PROMPTS]
    sample = select(PROMPTS, limit=4, seed=3)
    chosen = [prompt.id for prompt in sample]
    outside = [name for name in ids if name not in chosen]
    assert [one.id for one in match(sample, predictions(ids), outside=outside)] == chosen
    with pytest.raises(UserError, match=r"1 predictions for 4 prompts \(and 2 outside the sample\): 3 missing"):
        match(sample, predictions([chosen[0], *outside[:2]]), outside=outside)


def test_data_that_changed_after_prepare_is_refused() -> None:
    ids = [prompt.id for prompt in PROMPTS]
    with pytest.raises(UserError, match="9 whose reference differs"):
        match(PROMPTS, predictions(ids, reference="B"))
    assert all(item.reference == "A" for item in match(PROMPTS, predictions(ids, reference=None)))
