"""Invariant 7: the last feed-forward block, computed where the loss is only, changes neither loss nor gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from families import VOCABULARY, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from ift.checks.findings import largest_of
from ift.data.encoding import IGNORE_INDEX
from ift.data.micro_batches import MicroBatch
from ift.models.calling import Calling, calling_of, with_fused_head
from ift.models.last_layer import last_block
from ift.training.objective import loss_sum, shifted_targets

LENGTHS = (2, 13)


def small_llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).train()


def adapted(**settings: Any) -> Any:
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | settings
    torch.manual_seed(1)
    return peft.get_peft_model(small_llama(), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).train()


def batch_of(share: float) -> MicroBatch:
    torch.manual_seed(3)
    ids = torch.randint(3, VOCABULARY, LENGTHS)
    labels = torch.where(torch.rand(LENGTHS) < share, ids, IGNORE_INDEX)
    return MicroBatch(ids, labels, None, ((LENGTHS[1],),) * LENGTHS[0])


def num_labels(batch: MicroBatch) -> int:
    return int((shifted_targets(batch.labels) != IGNORE_INDEX).sum())


@contextmanager
def rows_of(module: Any) -> Iterator[list[int]]:
    """Collect how many positions a module computes, call by call."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    yield seen
    handle.remove()


def gradients(model: Any, batch: MicroBatch, calling: Calling) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = loss_sum(model, batch, calling=calling)
    (loss * 0.1).backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_only_labelled_positions_are_computed(share: float, checkpointed: bool) -> None:
    model = small_llama()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch, calling = batch_of(share), with_fused_head(calling_of(model), model)
    expected, plain = gradients(model, batch, calling_of(model))
    with rows_of(model.model.layers[-1].mlp.up_proj) as last, rows_of(model.model.layers[0].mlp.up_proj) as first:
        loss, found = gradients(model, batch, calling)
    total = LENGTHS[0] * LENGTHS[1]
    times = 2 if checkpointed else 1  # once more in the backward pass, and again at these positions only
    assert first == [total] * times
    assert last == [num_labels(batch) or total] * times
    assert loss == pytest.approx(expected, rel=2e-6)
    for name, gradient in plain.items():
        assert float((found[name] - gradient).abs().max()) <= 2e-6 * float(gradient.abs().max()), name


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}])
def test_lora_in_the_block_has_the_plain_gradients(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    calling = with_fused_head(calling_of(model), model)
    assert calling.block is not None
    expected, plain = gradients(model, batch_of(0.5), calling_of(model))
    with rows_of(model.base_model.model.model.layers[-1].mlp.up_proj) as rows:
        loss, found = gradients(model, batch_of(0.5), calling)
    assert rows == [num_labels(batch_of(0.5))]
    assert loss == pytest.approx(expected, rel=2e-6)
    largest = max(float(one.abs().max()) for one in plain.values())
    assert plain.keys() == found.keys()
    assert largest_of(float((found[name] - plain[name]).abs().max()) for name in plain) < 2e-6 * largest


@pytest.mark.parametrize("where", ["adapter", "model"])
def test_with_dropout_all_positions_are_computed(where: str) -> None:
    """Where blocks are compiled or sharded, all positions draw random numbers; the same ones here."""
    if where == "adapter":
        assert last_block(adapted(lora_dropout=0.3).get_base_model()) is None
        beside = adapted(lora_dropout=0.3, target_modules=["q_proj"])
        assert last_block(beside.get_base_model()) is not None
    else:
        model = make_model("bloom")
        assert last_block(model) is not None
        model.config.hidden_dropout = 0.1
        assert last_block(model) is None


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(target_modules=["up_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
        peft.OFTConfig(target_modules=["up_proj"], oft_block_size=4, task_type="CAUSAL_LM"),
        peft.PolyConfig(target_modules=["up_proj"], r=2, n_tasks=1, task_type="CAUSAL_LM"),
    ],
)
def test_what_may_read_other_positions_computes_all(config: Any) -> None:
    model = peft.get_peft_model(small_llama(), config)
    assert last_block(model.get_base_model()) is None
    beside = peft.get_peft_model(small_llama(), type(config)(**config.to_dict() | {"target_modules": ["q_proj"]}))
    assert last_block(beside.get_base_model()) is not None  # it is for what stands in the block


def test_what_a_compiler_has_seen_is_left_as_it_is() -> None:
    model = small_llama()
    assert with_fused_head(calling_of(model), model, compiled=True).block is None


def test_the_block_is_itself_again_afterwards() -> None:
    model = make_model("bloom")  # whose block takes what it adds to as well
    calling = with_fused_head(calling_of(model), model)
    gradients(model, batch_of(0.5), calling)
    block = model.transformer.h[-1].mlp
    assert "forward" not in vars(block)
    wrong = MicroBatch(torch.tensor([[VOCABULARY, 1]]), torch.tensor([[1, 1]]), None, ((2,),))
    with pytest.raises(IndexError):
        loss_sum(model, wrong, calling=calling)
    assert "forward" not in vars(block)


def test_where_hidden_states_of_all_positions_are_read_all_are_computed() -> None:
    """X-LoRA's classifier chooses by them."""
    model = adapted(target_modules=["q_proj"])
    assert with_fused_head(calling_of(model), model).block is not None
    model.active_peft_config.peft_type = peft.PeftType.XLORA
    assert with_fused_head(calling_of(model), model).block is None


def test_dropout_is_seen_in_nested_settings() -> None:
    model = make_model("mpt")
    for name in ("resid_pdrop", "emb_pdrop"):
        setattr(model.config, name, 0.0)
    model.config.attn_config.attn_pdrop = 0
    assert last_block(model) is not None
    model.config.attn_config.attn_pdrop = 1
    assert last_block(model) is None
