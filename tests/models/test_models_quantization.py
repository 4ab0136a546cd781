"""Quantized base models compute what the papers say, and the same in training, evaluation, and after a round trip."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from quantized_twins import (
    FAMILIES,
    IDS,
    TABLES,
    dense_twin,
    every_scheme,
    load,
    loss_and_gradients,
    quantized_layers,
    with_lora,
    written_out,
)
from transformers import AutoModelForCausalLM

from ift.models.quantization import Quantization
from ift.models.quantized_layers import EightBitLinear, dequantized, dequantized_weight, prepare_quantized


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_four_bit_weights_are_the_nearest_of_the_table(folders: dict[str, Path], scheme: Any) -> None:
    model, original = load(folders["llama"], Quantization(scheme, double=False)), load(folders["llama"])
    table = TABLES[scheme]
    for name, layer in quantized_layers(model).items():
        blocks = original.get_submodule(name).weight.data.reshape(-1, 64)
        scales = blocks.abs().amax(dim=1, keepdim=True)
        nearest = table[(blocks / scales).unsqueeze(-1).sub(table).abs().argmin(dim=-1)] * scales
        # Half way between two values, rounding of the division decides.
        distance = (blocks - written_out(layer).reshape(-1, 64)).abs()
        torch.testing.assert_close(distance, (blocks - nearest).abs(), atol=2e-5, rtol=0)


def test_eight_bit_weights_are_rounded_by_row(folders: dict[str, Path]) -> None:
    model, original = load(folders["llama"], Quantization("int8")), load(folders["llama"])
    for name, layer in quantized_layers(model).items():
        weight = original.get_submodule(name).weight.data
        scales = weight.abs().amax(dim=1, keepdim=True)
        # bitsandbytes rounds to float16 first: 2^-11 of the value, beside half a step.
        assert ((written_out(layer) - weight).abs() <= scales / 254 * 1.001 + weight.abs() / 2048).all()


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (3, 35), (4, 96), (64, 65), (7, 130), (2, 4096)])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_any_shape_of_a_matrix_is_read_as_it_was_written(tmp_path: Path, scheme: Any, rows: int, columns: int) -> None:
    """Rows that are no multiple of the 64 weights of a scale, odd numbers, a last block that is not full."""
    layer: Any = Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32, quant_type=scheme)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    layer.weight.data = weight.clone()
    layer.to("cpu")
    prepare_quantized(layer)
    expected = written_out(layer)
    # No value of either table is further than a sixth of the largest magnitude from a neighbour.
    assert (expected - weight).abs().max() < 0.18 * weight.abs().max()
    torch.testing.assert_close(dequantized_weight(layer, torch.float32), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(torch.eye(columns)), expected.T, atol=1e-6, rtol=0)


def test_double_quantization_changes_scales_only(folders: dict[str, Path]) -> None:
    single, double = (load(folders["llama"], Quantization("nf4", double=on)) for on in (False, True))
    for one, other in zip(quantized_layers(single).values(), quantized_layers(double).values(), strict=True):
        assert torch.equal(one.weight.data, other.weight.data)
        assert other.weight.quant_state.absmax.dtype == torch.uint8
        exact = written_out(one)
        assert 0 < (written_out(other) - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@every_scheme
def test_loss_and_gradients_are_those_of_the_weights_it_stands_for(
    folders: dict[str, Path], family: str, quantization: Quantization
) -> None:
    quantized = load(folders[family], quantization)
    dense = dense_twin(folders[family], quantized)
    (loss, gradients), (expected, wanted) = (loss_and_gradients(with_lora(model)) for model in (quantized, dense))
    assert loss == pytest.approx(expected, abs=1e-6)
    assert wanted
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        assert largest > 1e-6 and float((gradients[name] - gradient).abs().max()) <= 1e-5 * largest, name


@every_scheme
def test_the_norms_of_dora_are_those_of_the_weights_it_stands_for(
    folders: dict[str, Path], quantization: Quantization
) -> None:
    """PEFT asks bitsandbytes for the values, whose rows are no multiple of 64 long here."""
    quantized = load(folders["llama"], quantization)
    dense = dense_twin(folders["llama"], quantized)
    (_, gradients), (_, wanted) = (loss_and_gradients(with_lora(one, use_dora=True)) for one in (quantized, dense))
    assert any("magnitude" in name for name in wanted)
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


@every_scheme
def test_biases_of_quantized_layers_can_be_trained(folders: dict[str, Path], quantization: Quantization) -> None:
    model = load(folders["llama"], quantization)
    results = []
    for one in (model, dense_twin(folders["llama"], model)):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
        results.append(loss_and_gradients(one))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6) and len(results[1][1]) == 2 * 7
    for name, gradient in results[1][1].items():
        # The bias of a key shifts all attention alike, so its gradient is rounding.
        difference = float((results[0][1][name] - gradient).abs().max())
        assert difference <= 1e-5 * float(gradient.abs().max()) or difference < 1e-8, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_scheme
def test_an_evaluation_between_training_steps_changes_nothing(
    folders: dict[str, Path], quantization: Quantization, dtype: Any
) -> None:
    model = with_lora(load(folders["llama"], quantization, dtype))
    before = loss_and_gradients(model)
    trained = model(input_ids=IDS).logits
    model.eval()
    with torch.no_grad():
        evaluated = model(input_ids=IDS).logits
    model.train()
    after = loss_and_gradients(model)
    assert torch.equal(trained, evaluated)
    assert before[0] == after[0]
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    # Where the machine has no AVX512-BF16, nothing above could fail.
    layers = quantized_layers(model).values()
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers if isinstance(layer, Linear4bit))


@every_scheme
def test_gradient_checkpointing_changes_nothing(folders: dict[str, Path], quantization: Quantization) -> None:
    model = with_lora(load(folders["llama"], quantization))
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = loss_and_gradients(model)
    assert again[0] == plain[0]
    assert all(torch.equal(value, again[1][name]) for name, value in plain[1].items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_scheme
def test_a_quantized_model_is_frozen_training_and_otherwise_as_it_was(
    folders: dict[str, Path], quantization: Quantization, dtype: Any
) -> None:
    model, plain = load(folders["llama"], quantization, dtype), load(folders["llama"], None, dtype)
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    layers = quantized_layers(model)
    assert len(layers) == 2 * 7
    values = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in layers:
            assert values[name].dtype == parameter.dtype and torch.equal(values[name], parameter)
    computing = {layer.compute_dtype for layer in layers.values() if isinstance(layer, Linear4bit)}
    assert computing <= {getattr(torch, dtype)}


def test_the_compute_dtype_rounds_products_only(folders: dict[str, Path]) -> None:
    chosen = Quantization("nf4", compute_dtype="bfloat16")
    model, exact = load(folders["llama"], chosen), load(folders["llama"], Quantization("nf4"))
    logits, wanted = (one(input_ids=IDS).logits for one in (model, exact))
    assert logits.dtype == torch.float32
    assert all(parameter.dtype in (torch.float32, torch.uint8) for parameter in model.parameters())
    error = (logits - wanted).abs().max() / wanted.abs().max()
    assert 1e-4 < error < 0.05
    plain = dequantized(model)
    layer = plain.model.layers[0].mlp.up_proj.weight
    assert layer.dtype == torch.float32 and torch.equal(layer, layer.bfloat16().float())


def test_the_other_rows_of_a_batch_change_nothing_in_int8(folders: dict[str, Path]) -> None:
    layer = next(iter(quantized_layers(load(folders["llama"], Quantization("int8"))).values()))
    assert isinstance(layer, EightBitLinear)
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    alone = layer(x[:1])
    x[1] *= 100  # outliers, which bitsandbytes' own layer would look for over the whole batch
    for training in (True, False):
        layer.train(training)
        torch.testing.assert_close(layer(x)[:1], alone, atol=1e-6, rtol=0)


def test_int8_under_autocast_is_a_linear_layer_under_autocast(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], Quantization("int8"))
    name, layer = next(iter(quantized_layers(model).items()))
    plain = dense_twin(folders["llama"], model).get_submodule(name)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for one in (layer, plain):
        x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = one(x)
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
        results.append((y, x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
@every_scheme
def test_a_saved_quantized_model_loads_bit_for_bit(
    folders: dict[str, Path], tmp_path: Path, family: str, quantization: Quantization
) -> None:
    model = load(folders[family], quantization)
    model.save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert quantized_layers(again).keys() == quantized_layers(model).keys()
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(copy.deepcopy(model)(input_ids=IDS).logits, model(input_ids=IDS).logits)
    # Prepared as one that was quantized here.
    first, second = (loss_and_gradients(with_lora(one.eval().train())) for one in (model, again))
    assert first[0] == second[0] and all(torch.equal(value, second[1][name]) for name, value in first[1].items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
@every_scheme
def test_a_dequantized_model_is_plain_and_computes_the_same(
    folders: dict[str, Path], tmp_path: Path, family: str, quantization: Quantization, dtype: Any
) -> None:
    model = load(folders[family], quantization, dtype)
    logits = model(input_ids=IDS).logits
    expected = {name: written_out(layer) for name, layer in quantized_layers(model).items()}
    plain = dequantized(model)
    assert plain is model and not quantized_layers(plain)
    # GPT-2's own layers multiply by another routine, which sums in another order.
    tolerance = 4 * torch.finfo(logits.dtype).eps if family == "gpt2" else 0.0
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits, atol=tolerance, rtol=0)
    for name, weight in expected.items():
        found = plain.get_submodule(name).weight
        found = found.T if type(plain.get_submodule(name)).__name__ == "Conv1D" else found
        relative = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9}[dtype]
        torch.testing.assert_close(found.float(), weight, atol=1e-7, rtol=relative)
    plain.save_pretrained(str(tmp_path / "plain"))
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    reloaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "plain"), dtype=getattr(torch, dtype))
    assert {type(module) for module in reloaded.modules()} == {
        type(module) for module in load(folders[family]).modules()
    }
    assert torch.equal(reloaded(input_ids=IDS).logits, plain(input_ids=IDS).logits)


@every_scheme
def test_a_dequantized_model_in_float32_has_the_weights_of_before(
    folders: dict[str, Path], quantization: Quantization
) -> None:
    half, wide = (
        dequantized(load(folders["llama"], quantization, "bfloat16"), dtype=dtype) for dtype in (None, torch.float32)
    )
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32} and wide.dtype == torch.float32
    assert all(torch.equal(one.float(), other) for one, other in zip(half.parameters(), wide.parameters(), strict=True))


def test_only_a_model_without_an_adapter_is_dequantized(folders: dict[str, Path]) -> None:
    plain = load(folders["llama"])
    assert dequantized(plain) is plain
    with pytest.raises(ValueError, match="before an adapter"):
        dequantized(with_lora(load(folders["llama"], Quantization("nf4"))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_scheme
def test_a_gpu_computes_as_the_dequantized_model(
    folders: dict[str, Path], quantization: Quantization, dtype: Any
) -> None:
    with torch.device("cuda", torch.cuda.current_device()):
        model = load(folders["llama"], quantization, dtype)
    ids = IDS.to("cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    model.to(torch.device("cuda"))  # as Lightning does
    trained = model(input_ids=ids).logits
    model.eval()
    with torch.no_grad():
        evaluated = model(input_ids=ids).logits
    plain = dequantized(model)(input_ids=ids).logits
    tolerance = 1e-4 if dtype == "float32" else 0.05
    torch.testing.assert_close(trained, plain, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(evaluated, plain, atol=tolerance, rtol=tolerance)
