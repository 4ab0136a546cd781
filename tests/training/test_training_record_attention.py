"""Invariants 3 and 6 where attention is computed example by example, in the place of a mask over the row."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import SIZES, make_model
from test_training_packing import (
    ADAPTERS,
    EAGER_ONLY,
    adapted,
    gradients,
    largest_error,
    micro_batches,
    reference_gradients,
    two_rows,
)
from transformers import AutoConfig, AutoModelForCausalLM

from ift.checks.findings import largest_of
from ift.data.micro_batches import RowLayoutChoice
from ift.models import record_attention
from ift.models.packing import (
    ATTENTION_WITHOUT_POSITIONS,
    EXACT_FAMILIES,
    WINDOW_IN_MASK,
    WITHOUT_FLASH,
    choose_row_layout,
    verify_row_layout,
)
from ift.models.record_attention import NAME, attend_by_example, attend_by_row, attention_name, lengths_in

FAMILIES = sorted(EXACT_FAMILIES - ATTENTION_WITHOUT_POSITIONS - WITHOUT_FLASH - EAGER_ONLY)
BY_EXAMPLE = RowLayoutChoice("flattened", "", by_example=True)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The masks that attention was called with."""
    seen: list[Any] = []
    plain = record_attention.sdpa_attention_forward

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        seen.append(mask)
        return plain(module, query, key, value, mask, **options)

    monkeypatch.setattr(record_attention, "sdpa_attention_forward", spy)
    return seen


@pytest.mark.parametrize("model_type", FAMILIES)
def test_examples_have_the_logits_of_each_alone(model_type: str, masks: list[Any]) -> None:
    model = make_model(model_type, attention="sdpa")
    with torch.no_grad():
        _, batch = two_rows()
        masked = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    choice = verify_row_layout("data.row_layout", "auto", choice=BY_EXAMPLE, model=model)
    assert choice == BY_EXAMPLE
    assert model.config._attn_implementation == NAME and attention_name(model.config) == "sdpa"
    masks.clear()
    assert largest_error(model) < 5e-6
    # Two layers, of six examples and the padding; a window shorter than an example needs a mask of that example.
    assert len(masks) >= 2 * 7
    assert max((mask.shape[-1] for mask in masks if mask is not None), default=0) < batch.input_ids.shape[1]
    with torch.no_grad():
        found = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    torch.testing.assert_close(found, masked, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gpt_neox", "deepseek_v3"])
def test_no_row_layout_changes_the_loss_or_its_gradient(model_type: str, kind: str, masks: list[Any]) -> None:
    model = make_model(model_type, attention="sdpa")
    if kind == "lora":
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    elif kind == "checkpointed":
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, expected = reference_gradients(model)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    attend_by_example(model)
    for row_layout in ("packed", "flattened", "grouped"):
        for budget in (30, 96, 1000):
            found_loss, found = gradients(model, micro_batches(row_layout, budget))
            assert found_loss == pytest.approx(loss, rel=1e-6)
            assert found.keys() == expected.keys()
            error = largest_of(float((found[name] - expected[name]).abs().max()) for name in expected)
            assert error < 2e-6 * scale, (row_layout, budget)
    assert model_type == "mistral" or all(mask is None for mask in masks)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_keep_examples_apart(name: str) -> None:
    model = adapted(ADAPTERS[name]())
    assert verify_row_layout("data.row_layout", "auto", choice=BY_EXAMPLE, model=model) == BY_EXAMPLE
    assert largest_error(model) < 5e-6


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_generation_is_as_before(model_type: str) -> None:
    model = make_model(model_type, attention="sdpa")
    ids = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    told: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **options, **told)
    attend_by_example(model)
    found = model.generate(ids, **options, **told)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_model_that_hands_no_positions_to_attention_gets_masks() -> None:
    model = make_model("gpt_bigcode", attention="sdpa")
    choice = verify_row_layout("data.row_layout", "auto", choice=BY_EXAMPLE, model=model)
    assert (choice.layout, choice.by_example) == ("packed", False)
    assert model.config._attn_implementation == "sdpa"
    assert largest_error(model) < 5e-6
    asked = verify_row_layout("data.row_layout", "flattened", choice=BY_EXAMPLE, model=model)
    assert (asked.layout, asked.by_example) == ("flattened", False)


def test_other_attention_is_left_alone() -> None:
    model = make_model("llama", attention="eager")
    choice = verify_row_layout("data.row_layout", "auto", choice=BY_EXAMPLE, model=model)
    assert (choice.layout, choice.by_example) == ("packed", False)
    assert model.config._attn_implementation == "eager"


def test_it_can_be_undone() -> None:
    model = make_model("llama", attention="sdpa")
    attend_by_example(model)
    attend_by_row(model)
    assert model.config._attn_implementation == "sdpa"
    assert largest_error(model) < 5e-6


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [([0], [1]), ([0, 1, 2], [3]), ([0, 1, 0, 0, 1, 2, 0], [2, 1, 3, 1]), ([5, 6, 0, 1], [2, 2])],
)
def test_examples_begin_where_positions_do_not_go_on(positions: list[int], lengths: list[int]) -> None:
    assert lengths_in(torch.tensor(positions)) == lengths


@pytest.mark.parametrize(
    ("model_type", "asked", "device", "expected"),
    [
        ("llama", "auto", "cpu", ("flattened", True)),
        ("llama", "flattened", "cpu", ("flattened", True)),
        ("llama", "packed", "cpu", ("packed", False)),
        ("llama", "grouped", "cpu", ("grouped", False)),
        ("llama", "auto", "cuda", ("packed", False)),
        ("llama", "auto", None, ("packed", False)),
        ("gpt_bigcode", "auto", "cpu", ("packed", False)),
        ("gemma2", "auto", "cpu", ("packed", False)),
        ("qwen2_moe", "auto", "cpu", ("packed", False)),  # which tells the mask alone of a sliding window
        ("bloom", "auto", "cpu", ("grouped", False)),
    ],
)
def test_it_is_chosen_on_a_cpu(model_type: str, asked: Any, device: str | None, expected: Any, tmp_path: Path) -> None:
    known = AutoConfig.for_model(model_type)
    settings = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    AutoConfig.for_model(model_type, **settings).save_pretrained(str(tmp_path))
    choice = choose_row_layout("data.row_layout", asked, base=str(tmp_path), adapter=None, device=device)
    assert (choice.layout, choice.by_example) == expected
    eager = choose_row_layout(
        "data.row_layout", "auto", base=str(tmp_path), adapter=None, device=device, attention="eager"
    )
    assert not eager.by_example


def test_transformers_still_takes_a_prepared_mask() -> None:
    """What shared prefixes and others rely on: a mask that is given is used as it is."""
    model = make_model("llama", attention="sdpa")
    ids = torch.arange(3, 9)[None]
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    mask[..., 0] = False
    mask[..., 0, 0] = True
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        attend_by_example(model)
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(found, expected)


WINDOWED = sorted(
    name
    for name in EXACT_FAMILIES - {"gemma2"}  # which has no sdpa
    if not name.startswith("ift_") and hasattr(AutoConfig.for_model(name), "sliding_window")
)


@pytest.mark.parametrize("model_type", WINDOWED)
def test_every_family_keeps_its_sliding_window(model_type: str) -> None:
    """Some code tells the mask of a window, and not the attention function: there, no mask means no window."""
    known = AutoConfig.for_model(model_type)
    window = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 0}
    window["layer_types"] = ["sliding_attention"] * SIZES["num_hidden_layers"]
    settings = {key: value for key, value in {**SIZES, **window}.items() if hasattr(known, key)}
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        attend_by_example(model)
        found = model(input_ids=ids, use_cache=False).logits
    same = bool((found - expected).abs().max() < 1e-5)
    assert same == (model_type not in WINDOW_IN_MASK)
