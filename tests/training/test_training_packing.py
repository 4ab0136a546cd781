"""Invariants 3 and 6: examples that share a row have the logits of each alone, and no layout changes the gradient."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from families import SIZES, VOCABULARY, make_model
from torch.nn import functional as F
from transformers import AttentionInterface, AutoConfig

from ift.checks.findings import largest_of
from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import MicroBatch, RowLayout, RowLayoutChoice, collate, cut
from ift.models.calling import Calling
from ift.models.packing import (
    ATTENTION_WITHOUT_POSITIONS,
    EXACT_FAMILIES,
    WITHOUT_FLASH,
    choose_row_layout,
    keeps_examples_apart,
    row_layout_for,
    verify_row_layout,
)
from ift.training.objective import loss_sum

LENGTHS = (13, 29, 11, 17, 8, 21)
EAGER_ONLY = {"codegen", "gemma2", "gpt_neo", "gptj"}
MIXING = ("bloom", "falcon", "mpt", "opt")


def make_examples() -> list[Example]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, VOCABULARY, length) for length in LENGTHS]
    # Supervised from the very first token, whose label must not count.
    return [Example(one, np.where(np.arange(len(one)) % 3 == 1, IGNORE_INDEX, one)) for one in ids]


def micro_batches(row_layout: RowLayout, budget: int = 96) -> list[MicroBatch]:
    examples = make_examples()
    cuts = cut(np.array(LENGTHS), budget, choice=RowLayoutChoice(row_layout, ""))
    return [collate([[examples[position] for position in row] for row in rows], 0) for rows in cuts]


def two_rows() -> tuple[list[list[int]], MicroBatch]:
    """Two rows of several examples each, the second one padded."""
    rows = [[0, 1, 2, 3], [4, 5]]
    examples = make_examples()
    return rows, collate([[examples[position] for position in row] for row in rows], 0)


@torch.no_grad()
def largest_error(model: Any) -> float:
    """Return the largest difference between packed logits and those of each example alone, relative to the logits."""
    rows, batch = two_rows()
    packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    error = largest = 0.0
    for number, row in enumerate(rows):
        end = 0
        for position in row:
            start, end = end, end + LENGTHS[position]
            alone = model(input_ids=torch.from_numpy(make_examples()[position].input_ids)[None]).logits[0]
            error = largest_of([error, float((packed[number, start:end] - alone).abs().max())])
            largest = max(largest, float(alone.abs().max()))
    return error / largest


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", sorted(EXACT_FAMILIES))
def test_packed_examples_have_the_logits_of_each_alone(model_type: str, attention: str) -> None:
    if attention == "sdpa" and model_type in EAGER_ONLY:
        pytest.skip("transformers has no sdpa attention for it")
    assert row_layout_for(model_type, attention).layout == "packed"
    model = make_model(model_type, attention=attention)
    assert largest_error(model) < 5e-6
    assert keeps_examples_apart(model)


@pytest.mark.parametrize("model_type", MIXING)
def test_families_that_mix_the_examples_of_a_row_are_not_packed(model_type: str) -> None:
    model = make_model(model_type)
    assert largest_error(model) > 0.1
    assert not keeps_examples_apart(model)
    assert row_layout_for(model_type, model.config._attn_implementation).layout == "grouped"


GRADIENT_FAMILIES = ("llama", "bloom", "glm", "codegen", "qwen2", "qwen3", "gpt_neox", "mistral")


def gradients(model: Any, batches: list[MicroBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        loss = loss_sum(model, batch, calling=Calling(True))
        loss.backward()
        total += loss.detach()
    return float(total), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Each example alone, with transformers' own shift and mean."""
    model.zero_grad()
    total = 0.0
    for example in make_examples():
        ids, labels = torch.from_numpy(example.input_ids)[None], torch.from_numpy(example.labels)[None]
        loss = model(input_ids=ids, labels=labels).loss * example.num_supervised
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed"])
@pytest.mark.parametrize("model_type", GRADIENT_FAMILIES)
def test_no_row_layout_changes_the_loss_or_its_gradient(model_type: str, kind: str) -> None:
    model = make_model(model_type)
    if kind == "lora":
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    elif kind == "checkpointed":
        model.train()  # checkpointing does nothing otherwise; these configs have no dropout
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, expected = reference_gradients(model)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    layouts: tuple[RowLayout, ...] = (
        ("packed", "flattened", "grouped") if model_type in EXACT_FAMILIES else ("grouped",)
    )
    for row_layout in layouts:
        for budget in (30, 96, 1000):
            batches = micro_batches(row_layout, budget)
            found_loss, found = gradients(model, batches)
            assert found_loss == pytest.approx(loss, rel=1e-6)
            assert found.keys() == expected.keys()
            error = largest_of(float((found[name] - expected[name]).abs().max()) for name in expected)
            assert error < 2e-6 * scale, (row_layout, budget)


def test_layouts_of_these_examples_differ() -> None:
    """Otherwise the test above would compare a thing with itself."""
    shapes = {
        row_layout: [tuple(batch.input_ids.shape) for batch in micro_batches(row_layout)]
        for row_layout in ("packed", "flattened", "grouped")
    }
    assert len({tuple(shape) for shape in shapes.values()}) == 3
    assert any(batch.position_ids is not None for batch in micro_batches("packed"))


def one_row_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """What FlashAttention's variable-length kernel computes: a row cut where its `position_ids` begin anew."""
    assert attention_mask is None and query.shape[0] == 1
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    borders = [*(options["position_ids"][0] == 0).nonzero().flatten().tolist(), query.shape[2]]
    outputs = []
    for start, end in pairwise(borders):
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        visible = (distance >= 0) & (distance < (options.get("sliding_window") or 10**6))
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        scores = q @ k.transpose(-1, -2) * (scaling or q.shape[-1] ** -0.5)
        if options.get("softcap"):
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        outputs.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("model_type", sorted(EXACT_FAMILIES - ATTENTION_WITHOUT_POSITIONS - WITHOUT_FLASH))
def test_flattened_rows_tell_flash_attention_where_examples_begin(model_type: str) -> None:
    """No GPU here: a stand-in that reads positions as transformers' FlashAttention does gets all it needs."""
    assert row_layout_for(model_type, "flash_attention_2").layout == "flattened"
    calls: list[Any] = []

    def counted(module: Any, *tensors: Any, **options: Any) -> tuple[torch.Tensor, None]:
        calls.append(module)
        return one_row_attention(module, *tensors, **options)

    AttentionInterface.register("one_row", counted)
    model, plain = make_model(model_type), make_model(model_type)
    model.set_attn_implementation("one_row")
    (batch,) = micro_batches("flattened", 1000)
    with torch.no_grad():
        flat = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        expected = plain(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    assert len(calls) == 2  # layers
    torch.testing.assert_close(flat, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", sorted(WITHOUT_FLASH))
def test_families_that_flash_attention_cannot_compute_are_refused_with_it(model_type: str) -> None:
    assert row_layout_for(model_type, "flash_attention_2").layout == "grouped"
    with pytest.raises(ValueError, match=r"does not support Flash Attention|flash"):
        make_model(model_type, attention="flash_attention_2")


@pytest.mark.parametrize("model_type", sorted(ATTENTION_WITHOUT_POSITIONS))
def test_families_without_positions_in_attention_are_grouped_for_flash(model_type: str) -> None:
    assert row_layout_for(model_type, "flash_attention_2").layout == "grouped"
    seen: list[bool] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
        seen.append(options.get("position_ids") is not None)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    model = make_model(model_type)
    model.set_attn_implementation("spy")
    (batch,) = micro_batches("flattened", 1000)
    model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    assert not any(seen)


ADAPTERS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj", "v_proj"]),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"]),
    "layer_norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "llama_adapter": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1),
}
MIXING_ADAPTERS: dict[str, Any] = {
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4),
    "cartridge": lambda: peft.CartridgeConfig(num_virtual_tokens=4),
    "lily": lambda: peft.LilyConfig(target_modules=["q_proj", "v_proj"]),
}


def adapted(config: Any) -> Any:
    """Return a llama with an adapter that is no longer what it began with, which changes nothing."""
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(make_model("llama"), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_weights_are_packed_exactly(name: str) -> None:
    config = ADAPTERS[name]()
    assert row_layout_for("llama", "sdpa", adapter=config).layout == "packed"
    model = adapted(config)
    assert largest_error(model) < 5e-6
    assert keeps_examples_apart(model)


@pytest.mark.parametrize("name", MIXING_ADAPTERS)
def test_adapters_that_mix_the_examples_of_a_row_are_not_packed(name: str) -> None:
    config = MIXING_ADAPTERS[name]()
    choice = row_layout_for("llama", "sdpa", adapter=config)
    assert choice.layout == "grouped" and config.peft_type.value in choice.reason
    model = adapted(config)
    _, batch = two_rows()
    with torch.no_grad():
        row = model(input_ids=batch.input_ids[:1], position_ids=batch.position_ids[:1], use_cache=False).logits[0]  # type: ignore[index]
        second = torch.from_numpy(make_examples()[1].input_ids)[None]
        alone = model(input_ids=second, use_cache=False).logits[0]
    virtual = len(row) - batch.input_ids.shape[1]  # logits of virtual tokens come first
    found = row[virtual + LENGTHS[0] :][: LENGTHS[1]]
    assert float((found - alone[-LENGTHS[1] :]).abs().max()) > 1e-2


def test_an_adapter_that_begins_at_a_phrase_is_not_packed() -> None:
    config = peft.LoraConfig(r=4, alora_invocation_tokens=[5, 6])
    assert row_layout_for("llama", "sdpa", adapter=config).layout == "grouped"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_the_trial_allows_for_rounding(dtype: torch.dtype, spread: float) -> None:
    model = make_model("llama", spread=spread).to(dtype)
    for training in (True, False):
        model.train(training)
        assert keeps_examples_apart(model)
        assert model.training is training


def test_the_trial_overrules_the_table() -> None:
    model = make_model("opt")
    choice = RowLayoutChoice("packed", "a table said so")
    with pytest.warns(UserWarning, match=r"data\.row_layout: rows are grouped, not packed: in a trial"):
        assert verify_row_layout("data.row_layout", "auto", choice=choice, model=model).layout == "grouped"
    with pytest.raises(ValueError, match=r"data\.row_layout: 'packed' is not exact here: in a trial"):
        verify_row_layout("data.row_layout", "packed", choice=choice, model=model)
    for kept in (RowLayoutChoice("grouped", ""), choice):
        checked = make_model("llama") if kept is choice else model
        assert verify_row_layout("data.row_layout", "auto", choice=kept, model=checked) == kept


class TestChoice:
    @pytest.fixture
    def folder(self, tmp_path: Path, request: pytest.FixtureRequest) -> str:
        model_type, attention = request.param
        config = AutoConfig.for_model(model_type, **(SIZES if model_type == "llama" else {}))
        config.save_pretrained(str(tmp_path))
        if attention:
            path = tmp_path / "config.json"
            path.write_text(path.read_text().replace("{", f'{{"_attn_implementation": "{attention}",', 1))
        return str(tmp_path)

    @pytest.mark.parametrize(
        ("folder", "asked", "layout"),
        [
            (("llama", ""), "auto", "packed"),
            (("llama", ""), "flattened", "flattened"),
            (("llama", ""), "grouped", "grouped"),
            (("llama", "flash_attention_2"), "auto", "flattened"),
            (("llama", "flash_attention_2"), "grouped", "grouped"),
            (("llama", "flex_attention"), "auto", "grouped"),
            (("bloom", ""), "auto", "grouped"),
            (("bloom", ""), "grouped", "grouped"),
        ],
        indirect=["folder"],
    )
    def test_is_the_fastest_exact_one_or_the_asked(self, folder: str, asked: Any, layout: str) -> None:
        choice = choose_row_layout("data.row_layout", asked, base=folder, adapter=None)
        assert choice.layout == layout and choice.reason

    @pytest.mark.parametrize(("width", "length"), [(4096, 16384), (32, 1024)])
    def test_knows_from_the_width_how_dear_long_rows_are(self, width: int, length: int, tmp_path: Path) -> None:
        AutoConfig.for_model("gpt2", n_embd=width).save_pretrained(str(tmp_path))
        choice = choose_row_layout("data.row_layout", "auto", base=str(tmp_path), adapter=None)
        assert choice.square_cost_length == length

    @pytest.mark.parametrize(
        ("folder", "asked", "adapter", "reason"),
        [
            (("bloom", ""), "packed", None, "'packed' is not exact here: 'bloom' models .* Set it to auto or grouped"),
            (("bloom", ""), "flattened", None, "'flattened' is not exact here: 'bloom' models"),
            (("llama", ""), "packed", "prefix", "PREFIX_TUNING adapters .* Set it to auto or grouped"),
            (("llama", "flash_attention_2"), "packed", None, "one row only. Set it to auto or flattened"),
            (("llama", "flex_attention"), "packed", None, "attention 'flex_attention' is not known"),
        ],
        indirect=["folder"],
    )
    def test_refuses_what_is_not_exact(self, folder: str, asked: Any, adapter: str | None, reason: str) -> None:
        config = MIXING_ADAPTERS[adapter]() if adapter else None
        with pytest.raises(ValueError, match=reason):
            choose_row_layout("data.row_layout", asked, base=folder, adapter=config)
