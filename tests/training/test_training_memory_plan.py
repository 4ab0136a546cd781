"""Memory of a rank under each strategy: shares that add up, and torch's own tracker."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ift.models.flops import FlopsModel, Products
from ift.models.simulation import (
    Course,
    MicroBatchShape,
    Moment,
    Simulation,
    _give_fake_weights,
    _told_of_packing,
    simulate,
)
from ift.training.memory_plan import BUCKET_BYTES, PLANNED, RankMemory
from ift.training.optimizer_memory import OptimizerMemory
from ift.training.planned_model import Weights

N = 10**9
"""Weights of a model that is trained as a whole, in bfloat16."""


def memory(*, moments: tuple[Moment, ...] = (Moment(5 * N, 0), Moment(N, 2 * N)), batches: int = 1) -> RankMemory:
    weights = Weights(
        N, N, frozen=0, trained=2 * N, largest_layer=N // 10, largest_layer_trained=N // 20, outside=N // 5
    )
    course = Course(moments, gradients=2 * N, logits=N // 2)
    flops = FlopsModel(Products(), Products(), {None: Products()})
    state = OptimizerMemory(4 * N, temporary=N // 100)
    return RankMemory(weights, Simulation(((1.0, course),), flops), batches, state, float32_state=8 * N)


def test_one_device_holds_everything() -> None:
    parts = memory().parts("one device", 1)
    assert (parts.weights, parts.optimizer) == (2 * N, 4 * N)
    assert parts.activations + parts.logits + parts.gradients == 5 * N and parts.logits == N / 2
    # From the second micro-batch on, gradients are there while activations rise.
    assert memory(batches=2).parts("one device", 1).total == parts.total + 2 * N


def test_the_update_is_the_peak_where_little_is_computed() -> None:
    small = memory(moments=(Moment(N // 10, 0), Moment(N // 100, 2 * N)))
    small = replace(small, optimizer=OptimizerMemory(4 * N, temporary=3 * N))
    parts = small.parts("one device", 1)
    assert parts.total == 2 * N + 4 * N + 2 * N + 3 * N and parts.activations == 0


def test_what_is_shared_out_shrinks_with_the_ranks() -> None:
    def totals(strategy: str) -> list[float]:
        return [memory(batches=2).parts(strategy, ranks).total for ranks in (2, 4, 64)]

    for strategy in PLANNED[2:]:
        two, four, many = totals(strategy)
        # With offload, all that is shared out is off the device.
        assert two == four == many if strategy.endswith("_offload") else two > four > many
    assert len(set(totals("ddp"))) == 1
    one = memory(batches=2).parts("one device", 1).total
    assert totals("ddp")[0] == one + 2 * N  # buckets
    for strategy in ("fsdp", "deepspeed_3"):
        # Of 64 ranks, what is left are activations, gathered weights and buckets.
        assert totals(strategy)[-1] < 5 * N + (2 * N // 10 + N // 5) + max(2 * BUCKET_BYTES, 4 * N // 20) + 0.3 * N


def test_deepspeed_updates_float32_copies() -> None:
    parts = memory().parts("deepspeed_1", 4)
    assert parts.optimizer == (4 * N + 8 * N) / 4
    assert parts.gradients == 2 * N and memory().parts("deepspeed_2", 4).gradients == 4 * N / 4


def test_offload_moves_to_main_memory_what_it_takes_from_the_device() -> None:
    for stage in (2, 3):
        here, away = (memory().parts(f"deepspeed_{stage}{name}", 4) for name in ("", "_offload"))
        assert away.host == pytest.approx(here.total - away.total)
        assert away.optimizer == 0 < here.optimizer
    assert memory().parts("deepspeed_3_offload", 4).weights == 0


SHAPE = MicroBatchShape(rows=1, length=1024, supervised=512)


def small_llama(*, trains_all: bool) -> Any:
    """Return a small Llama without data, with its method."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from ift.models.adapters import attach_empty
    from ift.models.methods import as_method, lora

    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6}
    config = LlamaConfig(vocab_size=8000, num_attention_heads=8, num_key_value_heads=8, **sizes)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return attach_empty(as_method(None) if trains_all else lora(r=8, lora_dropout=0.0), plain).train()


def planned_memory(*, checkpointing: bool, trains_all: bool) -> RankMemory:
    """Return the plan, without the optimizer's state."""
    model = small_llama(trains_all=trains_all)
    layers = [list(layer.parameters()) for layer in _layers(model)]
    inside = {id(one) for layer in layers for one in layer}
    trained = [one for one in model.parameters() if one.requires_grad]
    weights = Weights(
        num_parameters=sum(one.numel() for one in model.parameters()),
        num_trainable=sum(one.numel() for one in trained),
        frozen=sum(4 * one.numel() for one in model.parameters() if not one.requires_grad),
        trained=sum(4 * one.numel() for one in trained),
        largest_layer=max(sum(4 * one.numel() for one in layer) for layer in layers),
        largest_layer_trained=max(sum(one.numel() for one in layer if one.requires_grad) for layer in layers),
        outside=sum(4 * one.numel() for one in model.parameters() if id(one) not in inside),
    )
    simulated = simulate(small_llama(trains_all=trains_all), SHAPE, checkpointing=checkpointing)
    return RankMemory(weights, simulated, 1, OptimizerMemory(0, 0), 0)


def tracked_peak(ranks: int, *, checkpointing: bool, trains_all: bool) -> float:
    """Return the peak that torch's tracker sees of one of several ranks."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (ranks,))
    with FakeTensorMode(allow_non_fake_inputs=True), _told_of_packing(SHAPE):
        model = _sharded(small_llama(trains_all=trains_all), mesh, checkpointing=checkpointing)
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3, foreach=False)
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((torch.zeros(1, 1024, dtype=torch.int64),))
        with tracker:
            ids = torch.zeros(1, 1024, dtype=torch.int64)
            keep = torch.zeros(512, dtype=torch.int64)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
            targets = torch.zeros(512, dtype=torch.int64)
            torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum").backward()
        peak = tracker.get_tracker_snapshot("peak")
    return float(max(values["Total"] for values in peak.values()))


def _sharded(model: Any, mesh: Any, *, checkpointing: bool) -> Any:
    from torch.distributed.fsdp import fully_shard

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    _give_fake_weights(model)
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _layers(model: Any) -> Any:
    from ift.models.base_weights import decoder_layers

    return decoder_layers(model.get_base_model() if hasattr(model, "get_base_model") else model)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("trains_all", [True, False], ids=["full", "lora"])
def test_a_sharded_rank_holds_what_torchs_tracker_sees(checkpointing: bool, trains_all: bool) -> None:
    """Eight ranks of a pretended process group; without the optimizer's state, which the tracker cannot see made."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        peak = tracked_peak(8, checkpointing=checkpointing, trains_all=trains_all)
    finally:
        torch.distributed.destroy_process_group()
    parts = planned_memory(checkpointing=checkpointing, trains_all=trains_all).parts("fsdp", 8)
    # Here logits are not fused with the loss: a float32 copy, and the gradients of both.
    without_head = parts.total - parts.logits
    assert without_head <= 1.1 * peak
    assert parts.total + 3 * 512 * 8000 * 4 >= 0.9 * peak
