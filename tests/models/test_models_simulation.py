"""Memory found by running on shapes, against what torch really keeps when it computes."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from ift.errors import UserError
from ift.models.adapters import attach, attach_empty
from ift.models.base_weights import LastLayers
from ift.models.calling import calling_of, with_fused_head
from ift.models.live_memory import LiveMemory
from ift.models.methods import Method, as_method, lora
from ift.models.simulation import (
    Course,
    MicroBatchShape,
    Moment,
    Simulation,
    continued,
    simulate,
)

SIZES: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPE = MicroBatchShape(rows=2, length=24, supervised=20)
METHODS = {
    "full": as_method(None),
    "lora": lora(r=4, lora_dropout=0.1),
    "last layer": Method("freeze", LastLayers(1)),
}


def without_weights(method: Method, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **sizes}), dtype=dtype)
    return attach_empty(method, model)


def computed(method: Method, *, checkpointing: bool, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Return the most bytes beside weights, and those of the gradients, of the same step really computed.

    What is alive is looked for by another way than in the simulation: after each operation, all tensors that Python's
    autograd graph and variables refer to are those whose storages were made since, and are not freed yet.
    """
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=dtype)
    model = attach(model.train(), copy.deepcopy(method), seed=0, num_steps=None)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    calling = with_fused_head(calling_of(model), model)
    ids = torch.randint(0, 301, (SHAPE.rows, SHAPE.length))
    keep = torch.zeros(SHAPE.rows, SHAPE.length, dtype=torch.bool)
    keep[:, : SHAPE.supervised // SHAPE.rows] = True
    live = LiveMemory()
    live.ignore([*model.parameters(), *model.buffers(), ids, keep])
    with live:
        loss = calling.loss_sum(model, {"input_ids": ids, "use_cache": False}, keep, targets=ids[keep])
        loss.backward()
    gradients = sum(one.grad.numel() * one.grad.element_size() for one in model.parameters() if one.grad is not None)
    return live.moments()[-1].activations, gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_step_holds_is_what_it_holds_when_computed(name: str, checkpointing: bool) -> None:
    predicted = simulate(without_weights(METHODS[name]), SHAPE, checkpointing=checkpointing)
    most, gradients = computed(METHODS[name], checkpointing=checkpointing)
    assert predicted.gradients == gradients
    # The mask of kept positions, and what turns it into places, is not in the prediction.
    assert predicted.peak() == pytest.approx(most, rel=0.01)


def test_bfloat16_holds_about_half_and_recomputation_less() -> None:
    full = simulate(without_weights(METHODS["full"]), SHAPE, checkpointing=False)
    half = simulate(without_weights(METHODS["full"], torch.bfloat16), SHAPE, checkpointing=False)
    again = simulate(without_weights(METHODS["full"]), SHAPE, checkpointing=True)
    assert 0.45 < half.activations / full.activations < 0.75
    assert again.activations < 0.7 * full.activations
    assert half.gradients == full.gradients / 2


def test_an_optimizer_that_uses_gradients_up_at_once_holds_few() -> None:
    kept = simulate(without_weights(METHODS["full"]), SHAPE, checkpointing=True)
    freed = simulate(without_weights(METHODS["full"]), SHAPE, checkpointing=True, frees_gradients=True)
    assert freed.gradients == 0
    assert freed.peak() < kept.peak() - 0.5 * kept.gradients


def test_layers_left_out_are_taken_on_in_a_straight_line() -> None:
    for name in ("full", "lora"):
        for checkpointing in (False, True):
            two, four, nine = (
                simulate(without_weights(METHODS[name], num_hidden_layers=number), SHAPE, checkpointing=checkpointing)
                for number in (2, 4, 9)
            )
            found = continued(two, four, by=(9 - 2) / (4 - 2))
            assert found.gradients == nine.gradients
            assert found.activations == pytest.approx(nine.activations, rel=0.01)
            for options in ({}, {"num_micro_batches": 2}, {"share": 0.25}):
                assert found.peak(**options) == pytest.approx(nine.peak(**options), rel=0.02), (name, options)
            for one, other in ((found.flops.token, nine.flops.token), (found.flops.pair[None], nine.flops.pair[None])):
                assert one.forward == pytest.approx(other.forward) and one.backward == pytest.approx(other.backward)


def test_from_the_second_micro_batch_on_all_gradients_are_there() -> None:
    course = Course((Moment(100, 0), Moment(60, 30), Moment(10, 50)), gradients=50, logits=5)
    simulation = Simulation(
        ((1.0, course),), simulate(without_weights(METHODS["lora"]), SHAPE, checkpointing=False).flops
    )
    assert simulation.peak() == 100 and simulation.peak(num_micro_batches=2) == 150
    assert simulation.peak(num_micro_batches=2, share=0.5) == 125


def test_live_memory_counts_what_is_alive() -> None:
    live = LiveMemory()
    with live:
        one = torch.zeros(1000)
        view = one.view(10, 100)
        assert live.activations == 4000
        other = one + 1
        del one
        assert live.activations == 8000  # the view keeps it
        del view, other
        assert live.activations == 0
        F.relu(torch.ones(500))
    assert live.moments()[-1].activations == 8000


def test_what_depends_on_values_is_refused() -> None:
    model = without_weights(METHODS["full"])
    plain = model.forward

    def forward(*args: Any, **options: Any) -> Any:
        result = plain(*args, **options)
        return result if float(result.logits.detach().sum()) > 0 else None

    model.forward = forward
    with pytest.raises(UserError, match="cannot be predicted"):
        simulate(model, SHAPE, checkpointing=False)
