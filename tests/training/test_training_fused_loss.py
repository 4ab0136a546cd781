"""Invariant 7: head and cross-entropy fused in tiles give the loss of the plain head, gradients included."""

from typing import Any

import peft
import pytest
import torch
from families import VOCABULARY, make_model
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ift.data.encoding import IGNORE_INDEX
from ift.data.micro_batches import MicroBatch
from ift.models import fused_cross_entropy as fused_module
from ift.models.calling import Calling, _same_loss, calling_of, with_fused_head
from ift.models.fused_cross_entropy import Buffers, fused_cross_entropy
from ift.models.fused_head import FUSED_FAMILIES, FusedHead
from ift.training.objective import loss_sum, shifted_targets

WIDTH, WORDS = 24, 133


def head_inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    hidden, weight, bias = (
        (torch.randn(*size, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for size, scale in (((rows, WIDTH), 1.0), ((WORDS, WIDTH), 0.5), ((WORDS,), 1.0))
    )
    return hidden, weight, bias, torch.randint(0, WORDS, (rows,), generator=generator)


def in_float64(
    tensors: list[torch.Tensor | None], targets: torch.Tensor, scale: float
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return the loss and its gradients with the plain formula in float64."""
    exact = [t.detach().double().requires_grad_(t.requires_grad) if t is not None else None for t in tensors]
    loss = F.cross_entropy(F.linear(exact[0], exact[1], exact[2]), targets, reduction="sum")  # type: ignore[arg-type]
    (loss * scale).backward()
    return loss.detach(), [t.grad if t is not None else None for t in exact]


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 30])
@pytest.mark.parametrize("trained", ["hidden", "all", "weight", "bias"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_tiles_give_the_plain_loss_and_gradients(
    rows: int, trained: str, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trained == "bias" and not with_bias:
        pytest.skip("there is none")
    monkeypatch.setattr(fused_module, "TILE_POSITIONS", 7)
    hidden, weight, bias, targets = head_inputs(rows)
    tensors: list[torch.Tensor | None] = [hidden, weight, bias if with_bias else None]
    for name, tensor in zip(("hidden", "weight", "bias"), tensors, strict=True):
        if tensor is not None and trained in (name, "all"):
            tensor.requires_grad_()
    expected, gradients = in_float64(tensors, targets, 0.37)
    buffers = Buffers()
    for _ in range(2):  # the second time in used buffers
        for tensor in tensors:
            if tensor is not None:
                tensor.grad = None
        loss = fused_cross_entropy(hidden, weight, tensors[2], targets=targets, buffers=buffers)
        (loss * 0.37).backward()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=0)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if tensor is None or not tensor.requires_grad:
                assert tensor is None or tensor.grad is None
                continue
            assert tensor.grad is not None and gradient is not None
            largest = float(gradient.abs().max())
            torch.testing.assert_close(tensor.grad.double(), gradient, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("tile_bytes", [1, 4 * WORDS * 3, 2**27])
def test_the_size_of_a_tile_changes_nothing(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused_module.TILE_BYTES, "cpu", tile_bytes)
    hidden, weight, bias, targets = head_inputs(40)
    expected, (gradient, *_) = in_float64([hidden.requires_grad_(), weight, bias], targets, 1.0)
    buffers = Buffers()
    loss = fused_cross_entropy(hidden, weight, bias, targets=targets, buffers=buffers)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert hidden.grad is not None and gradient is not None
    torch.testing.assert_close(hidden.grad.double(), gradient, rtol=1e-5, atol=1e-6)
    rows = next(iter(buffers._held.values())).numel() // WORDS
    assert rows == {1: 1, 4 * WORDS * 3: 3, 2**27: 40}[tile_bytes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_plain_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "TILE_POSITIONS", 7)
    hidden, weight, bias, targets = head_inputs(50, dtype)
    tensors: list[torch.Tensor | None] = [t.requires_grad_() for t in (hidden, weight, bias)]
    exact, gradients = in_float64(tensors, targets, 1.0)

    def errors(loss: torch.Tensor) -> list[float]:
        loss.backward()
        found = [abs(float(loss.detach().double() - exact)) / float(exact)]
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert tensor is not None and gradient is not None and tensor.grad is not None
            assert tensor.grad.dtype == dtype
            found.append(float((tensor.grad.double() - gradient).norm() / gradient.norm()))
            tensor.grad = None
        return found

    plain = errors(F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum"))
    fused = errors(fused_cross_entropy(hidden, weight, bias, targets=targets, buffers=Buffers()))
    assert max(plain) > 1e-5  # or there would be nothing to compare
    assert all(one <= 1.1 * other + 1e-6 for one, other in zip(fused, plain, strict=True)), (fused, plain)


def test_a_target_of_next_to_no_probability_has_its_exact_loss() -> None:
    hidden, weight, _, targets = head_inputs(6)
    weight, hidden = weight * 400, hidden.requires_grad_()
    expected, (gradient, *_) = in_float64([hidden, weight, None], targets, 1.0)
    assert expected > 600  # of 6 positions: probabilities below the smallest float32
    loss = fused_cross_entropy(hidden, weight, None, targets=targets, buffers=Buffers())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert hidden.grad is not None and gradient is not None
    torch.testing.assert_close(hidden.grad.double(), gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_no_position_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    hidden, weight, bias, targets = (tensor[:0] if len(tensor) == 6 else tensor for tensor in head_inputs(6))
    weight.requires_grad_()
    loss = fused_cross_entropy(hidden.requires_grad_(), weight, bias, targets=targets, buffers=Buffers())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and hidden.grad.shape == (0, WIDTH)


def test_a_graph_serves_once() -> None:
    hidden, weight, bias, targets = head_inputs(6)
    loss = fused_cross_entropy(hidden.requires_grad_(), weight, bias, targets=targets, buffers=Buffers())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_number_that_is_none_is_told() -> None:
    hidden, weight, bias, targets = head_inputs(6)
    hidden[2, 3] = float("nan")
    assert fused_cross_entropy(hidden, weight, bias, targets=targets, buffers=Buffers()).isnan()


def make_batch() -> MicroBatch:
    torch.manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (3, 19))
    labels = torch.where(torch.rand(ids.shape) < 0.5, ids, IGNORE_INDEX)
    return MicroBatch(ids, labels, None, ((19,), (19,), (19,)))


def loss_and_gradients(model: Any, calling: Calling, scale: float = 0.1) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = loss_sum(model, make_batch(), calling=calling)
    (loss * scale).backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_plain(model: Any, *, tolerance: float = 2e-6) -> Calling:
    """Compare the fused head with the plain one; returns the fused calling."""
    plain = calling_of(model)
    calling = with_fused_head(plain, model)
    assert calling.head is not None
    expected, gradients = loss_and_gradients(model, plain)
    loss, found = loss_and_gradients(model, calling)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert found.keys() == gradients.keys() and gradients
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest > 0
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * largest, name
    return calling


def without_dropout(model: Any) -> None:
    for name in [name for name in model.config.to_dict() if "drop" in name]:
        setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


WITHOUT_BLOCK = frozenset(["deepseek_v2", "deepseek_v3", "falcon", "mixtral", "opt", "qwen2_moe", "qwen3_moe"])
"""Experts; a linear layer of a class of its own; no block of its own."""


@pytest.mark.parametrize("model_type", sorted(FUSED_FAMILIES))
def test_every_family_has_the_plain_loss_and_gradients(model_type: str) -> None:
    model = make_model(model_type)
    without_dropout(model)
    calling = assert_equal_to_plain(model)
    assert (calling.block is None) == (model_type in WITHOUT_BLOCK)
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_()  # where head and embedding are tied, the head is trained
    assert_equal_to_plain(model)


def test_the_loss_is_that_of_transformers() -> None:
    model = make_model("llama")
    batch = make_batch()
    expected = model(input_ids=batch.input_ids, labels=batch.labels).loss
    count = int((shifted_targets(batch.labels) != IGNORE_INDEX).sum())
    found = loss_sum(model, batch, calling=with_fused_head(calling_of(model), model))
    assert float(found.detach()) == pytest.approx(float(expected.detach()) * count, rel=1e-6)


@pytest.mark.parametrize("model_type", ["cohere", "cohere2", "gemma2", "granite"])
def test_heads_whose_logits_are_changed_afterwards_are_not_fused(model_type: str) -> None:
    model = make_model(model_type)
    plain = calling_of(model)
    assert with_fused_head(plain, model) is plain
    for name, value in (("final_logit_softcapping", 3.0), ("logits_scaling", 4.0), ("logit_scale", 0.3)):
        if hasattr(model.config, name):
            setattr(model.config, name, value)
            setattr(model, name, value)
    forced = Calling(True, head=FusedHead(model.get_output_embeddings()))
    assert not _same_loss(model, model.get_input_embeddings().weight, plain, forced)


def test_the_trial_overrules_the_list() -> None:
    model = make_model("llama")
    plain_forward = model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0.9)
    assert with_fused_head(calling_of(model), model).head is None
    plain_forward.remove()
    assert with_fused_head(calling_of(model), model).head is not None


ADAPTERS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "saved_head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_dropout=0.0),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_have_the_plain_loss_and_gradients(name: str) -> None:
    config = ADAPTERS[name]()
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(make_model("llama"), config)
    assert_equal_to_plain(model)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
        peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5, 6]}),
    ],
)
def test_an_adapted_head_is_not_fused(config: Any) -> None:
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(make_model("llama"), config)
    assert with_fused_head(calling_of(model), model).head is None


def small_llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes, **settings)).train()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_tied_heads_and_checkpointing(tied: bool, checkpointed: bool) -> None:
    model = small_llama(tie_word_embeddings=tied)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_equal_to_plain(model)


def test_a_head_with_a_bias() -> None:
    model = small_llama()
    model.lm_head = nn.Linear(32, VOCABULARY)
    assert_equal_to_plain(model)
    assert model.lm_head.bias.grad.abs().max() > 0


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_is_no_worse_than_the_plain_way(way: str) -> None:
    model = small_llama()
    exact_loss, exact = loss_and_gradients(model, calling_of(model))
    exact_norm = sum(float(gradient.norm()) ** 2 for gradient in exact.values()) ** 0.5
    model = model.to(torch.bfloat16 if way == "weights" else torch.float32)
    plain = calling_of(model)
    fused = with_fused_head(plain, model)
    assert fused.head is not None
    errors = []
    for calling in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss, found = loss_and_gradients(model, calling)
        error = sum(float((found[name].float() - exact[name]).norm()) ** 2 for name in exact) ** 0.5
        errors.append((abs(loss - exact_loss) / exact_loss, error / exact_norm))
    assert errors[0][1] > 1e-3
    assert errors[1][0] < errors[0][0] + 1e-6 and errors[1][1] < 1.05 * errors[0][1], errors


def test_a_loss_that_is_returned_in_half_precision_stays_exact() -> None:
    """Sharding strategies cast what the outermost module returns."""
    model = small_llama()
    calling = with_fused_head(calling_of(model), model)
    expected, gradients = loss_and_gradients(model, calling)

    def cast(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits.bfloat16()
        return output

    hook = model.register_forward_hook(cast)
    loss, found = loss_and_gradients(model, calling, scale=0.125)
    hook.remove()
    assert loss == expected
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient * 1.25, rtol=1e-5, atol=1e-7)


def test_weights_that_are_elsewhere_are_left_to_the_head_itself() -> None:
    """A head that holds its weight in pieces outside of its own call, or in another dtype, is called as it is."""

    class Elsewhere(torch.Tensor):
        pass

    model = small_llama()
    calling = with_fused_head(calling_of(model), model)
    assert calling.head is not None
    expected, _ = loss_and_gradients(model, calling)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Elsewhere))
    assert not calling.head._fits(torch.zeros(1, 32))
    assert loss_and_gradients(model, calling)[0] == pytest.approx(expected, rel=1e-6)


def test_the_head_is_itself_again_afterwards() -> None:
    model = small_llama()
    calling = with_fused_head(calling_of(model), model)
    loss_and_gradients(model, calling)
    assert "forward" not in vars(model.lm_head)
    assert model(input_ids=make_batch().input_ids).logits.shape == (3, 19, VOCABULARY)
    with pytest.raises(IndexError):
        loss_sum(model, MicroBatch(torch.tensor([[VOCABULARY]]), torch.tensor([[1]]), None, ((1,),)), calling=calling)
    assert "forward" not in vars(model.lm_head)


def test_what_the_head_returns_is_no_view() -> None:
    head = nn.Linear(WIDTH, WORDS)
    fused = FusedHead(head)
    with fused.giving_loss(torch.tensor([3, 5])):
        returned = head(torch.randn(1, 2, WIDTH))
    assert returned.shape == (1, 1) and returned.requires_grad and not returned._is_view()
