"""Liger's own kernels against torch: loss and all gradients, of every family that gets them.

Needs liger-kernel and triton, which are no part of the test environment. Without a GPU, Triton's interpreter runs them,
slowly, on NumPy: `TRITON_INTERPRET=1 python -m pytest tests/training/test_training_liger.py`.
"""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from families import VOCABULARY, make_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from ift.models import kernels
from ift.models.kernels import KERNEL_FAMILIES, KernelChoice, use_liger, verify_kernels

if find_spec("liger_kernel") is None or find_spec("triton") is None:
    pytest.skip("liger-kernel or triton is not installed", allow_module_level=True)
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, set TRITON_INTERPRET=1", allow_module_level=True)

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
POSITIONS = torch.tensor([[*range(3), *range(6)], [*range(7), *range(2)]])
"""Of two rows with two examples each."""


@pytest.fixture(scope="module", autouse=True)
def triton_here() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            from triton_interpreter import complete

            patch.setattr(kernels, "DEVICE", "cpu")
            complete(patch)
        yield


def loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.arange(POSITIONS.numel(), device=DEVICE).view_as(POSITIONS) * 7 % VOCABULARY
    model.zero_grad()
    logits = model(input_ids=ids, position_ids=POSITIONS.to(DEVICE), use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def compare(model: Any, method: Any, *, checkpointing: bool) -> None:
    """Compare a model before and after its kernels are replaced, in training mode."""
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_liger(model)
    model = method(model).to(DEVICE).train()
    loss, gradients = loss_and_gradients(model)
    rotary, forwards = kernels._undo(model)
    assert forwards
    expected_loss, expected = loss_and_gradients(model)
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    assert gradients.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert float((gradients[name] - gradient).norm()) <= 2e-5 * float(gradient.norm()), name
    kernels._redo(model, rotary, forwards)
    choice = KernelChoice("liger", "asked for")
    assert verify_kernels("liger", choice, model) is choice
    kernels._undo(model)  # what is left is the file's function for rotary positions


def lora(model: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


@pytest.mark.parametrize("model_type", sorted(KERNEL_FAMILIES))
def test_all_weights_get_torchs_gradients(model_type: str) -> None:
    compare(make_model(model_type), lambda model: model, checkpointing=model_type == "llama")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2"])
def test_adapters_on_frozen_weights_get_torchs_gradients(model_type: str, checkpointing: bool) -> None:
    compare(make_model(model_type), lora, checkpointing=checkpointing)


def test_rotary_positions_are_ligers(monkeypatch: pytest.MonkeyPatch) -> None:
    from liger_kernel.transformers import monkey_patch

    calls = []
    plain = monkey_patch.liger_rotary_pos_emb
    monkeypatch.setattr(
        monkey_patch, "liger_rotary_pos_emb", lambda *args, **more: calls.append(1) or plain(*args, **more)
    )
    model = make_model("qwen3").to(DEVICE)
    use_liger(model)
    loss_and_gradients(model)
    kernels._undo(model)
    assert len(calls) == 2  # one for each layer


@pytest.mark.parametrize("model_type", ["llama", "gemma", "qwen3"])
def test_the_gradient_that_a_norm_is_given_is_left_as_it_is(model_type: str) -> None:
    model = make_model(model_type).to(DEVICE)
    use_liger(model)
    norm = model.model.norm
    hidden = torch.randn(3, 32, device=DEVICE, requires_grad=True)
    given = torch.randn(3, 32, device=DEVICE)
    before = given.clone()
    torch.autograd.grad(norm(hidden), hidden, given)
    kernels._undo(model)
    assert torch.equal(given, before)
