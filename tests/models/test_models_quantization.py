"""Quantized base models compute what the papers say, and the same in training, evaluation, and after a round trip."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_llama

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from bitsandbytes.nn import Linear4bit, Linear8bitLt  # noqa: E402
from peft import AdaLoraConfig, LoraConfig, UniLoraConfig  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, Qwen3MoeConfig  # noqa: E402

from ift.errors import UserError  # noqa: E402
from ift.models.loading import attach_adapter, load_base_model, read_config  # noqa: E402
from ift.models.quantization import (  # noqa: E402
    Quantization,
    check_quantization,
    check_trainable_on,
    loading_options,
    modules_to_skip,
)
from ift.models.quantized_layers import EightBitLinear, dequantized, dequantized_weight, prepare_quantized  # noqa: E402

# QLoRA (Dettmers et al. 2023), appendix E.
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on
# One sign, two exponent and one mantissa bit, as bitsandbytes documents them: these twelfths, by code.
FP4 = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
FP4 = torch.cat([FP4, -FP4])
TABLES = {"nf4": NF4, "fp4": FP4}

QUANTIZATIONS = [Quantization("nf4"), Quantization("nf4", double=False), Quantization("fp4"), Quantization("int8")]
NAMES = ["nf4-double", "nf4", "fp4-double", "int8"]
every_scheme = pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=NAMES)
IDS = torch.arange(48).reshape(2, 24) * 7 % 90


def families() -> Iterator[tuple[str, Any]]:
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {"num_key_value_heads": 2, "intermediate_size": 48, "attention_bias": True, "mlp_bias": True}
    yield "llama", AutoConfig.for_model("llama", **sizes, **llama)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    yield "gpt2", GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64, **still)
    yield "gpt_neox", GPTNeoXConfig(**sizes, intermediate_size=48)


FAMILIES = [name for name, _ in families()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models with weights and biases that matter, of families with linear layers of either kind."""
    root = tmp_path_factory.mktemp("families")
    for name, config in families():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(str(root / name))
    return {name: root / name for name in FAMILIES}


def load(folder: Path, quantization: Quantization | None = None, dtype: Any = "float32") -> Any:
    return load_base_model("model.base", str(folder), dtype, quantization=quantization)


def quantized_layers(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


def written_out(layer: Any) -> torch.Tensor:
    """The weight of a quantized layer from its stored parts, by the formulas of the papers."""
    if isinstance(layer, Linear8bitLt):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return layer.weight.data.float() * (scales / 127)[:, None]
    state = layer.weight.quant_state
    packed = layer.weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    scales = state.absmax
    if state.nested:
        per_scale = torch.arange(len(scales)) // 256
        scales = state.state2.code[state.absmax.long()] * state.state2.absmax[per_scale] + state.offset
    number = layer.in_features * layer.out_features
    values = TABLES[state.quant_type][codes[:number]] * scales.repeat_interleave(64)[:number]
    return values.reshape(layer.out_features, layer.in_features)


def dense_twin(folder: Path, quantized: Any) -> Any:
    """The unquantized model with the weights that the quantized one stands for."""
    model = load(folder)
    for name, layer in quantized_layers(quantized).items():
        plain = model.get_submodule(name)
        weight = written_out(layer)
        plain.weight.data = weight.T.contiguous() if type(plain).__name__ == "Conv1D" else weight
    return model


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


def with_lora(model: Any, **settings: Any) -> Any:
    model = attach_adapter(model, LoraConfig(r=2, target_modules="all-linear", **settings), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # else the gradients of lora_A are zero
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


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
    # Prepared as one that was quantized here.
    first, second = (loss_and_gradients(with_lora(one.eval().train())) for one in (model, again))
    assert first[0] == second[0] and all(torch.equal(value, second[1][name]) for name, value in first[1].items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
@every_scheme
def test_a_dequantized_model_is_plain_and_computes_the_same(
    folders: dict[str, Path], tmp_path: Path, family: str, quantization: Quantization, dtype: Any
) -> None:
    model = load(folders[family], quantization, dtype)
    logits = model(input_ids=IDS).logits
    expected = {name: written_out(layer) for name, layer in quantized_layers(model).items()}
    plain = dequantized(model)
    assert plain is model and not quantized_layers(plain) and torch.equal(plain(input_ids=IDS).logits, logits)
    for name, weight in expected.items():
        found = plain.get_submodule(name).weight
        found = found.T if type(plain.get_submodule(name)).__name__ == "Conv1D" else found
        tolerance = {"atol": 1e-7, "rtol": 1e-6} if dtype == "float32" else {"atol": 0, "rtol": 2**-7}
        torch.testing.assert_close(found.float(), weight, **tolerance)
    plain.save_pretrained(str(tmp_path / "plain"))
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    reloaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "plain"), dtype=getattr(torch, dtype))
    assert {type(module) for module in reloaded.modules()} == {
        type(module) for module in load(folders[family]).modules()
    }
    assert torch.equal(reloaded(input_ids=IDS).logits, logits)


def test_only_a_model_without_an_adapter_is_dequantized(folders: dict[str, Path]) -> None:
    plain = load(folders["llama"])
    assert dequantized(plain) is plain
    with pytest.raises(ValueError, match="before an adapter"):
        dequantized(with_lora(load(folders["llama"], Quantization("nf4"))))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_skipped_modules_stay_as_they_are(folders: dict[str, Path], scheme: Any) -> None:
    skipped = ["q_proj", "layers.1.mlp", "model.layers.0.self_attn.o_proj"]
    model = load(folders["llama"], Quantization(scheme, skip_modules=skipped))
    found = quantized_layers(model)
    wanted = {
        f"model.layers.{layer}.{name}"
        for layer in (0, 1)
        for name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    } | {"model.layers.0.mlp.down_proj"}
    wanted -= {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.o_proj"}
    assert set(found) == wanted


def test_the_output_embedding_is_never_quantized(tmp_path: Path) -> None:
    for tied in (False, True):
        folder = make_llama(tmp_path / str(tied), 90, tie_word_embeddings=tied)
        for skipped in (None, [], ["q_proj"]):
            model = load(folder, Quantization("nf4", skip_modules=skipped))
            assert type(model.lm_head) is torch.nn.Linear
            assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_skipped_modules_must_be_there(folders: dict[str, Path]) -> None:
    config = read_config(str(folders["llama"]))
    with pytest.raises(UserError, match=r"model\.quantization\.skip_modules: unknown name 'q_porj'.*'q_proj'"):
        modules_to_skip(config, ["q_porj"])
    with pytest.raises(UserError, match=r"nearest full name is 'model\.layers\.1\.mlp"):
        modules_to_skip(config, ["model.layers.7.mlp"])
    with pytest.raises(UserError, match="leaves no layer to quantize"):
        modules_to_skip(config, ["model"])
    with pytest.raises(UserError, match="unknown name 'proj'"):  # transformers would take it for any end
        modules_to_skip(config, ["proj"])


def test_a_mixture_of_experts_is_hardly_quantized_and_says_so(folders: dict[str, Path]) -> None:
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    experts = {"num_experts": 16, "moe_intermediate_size": 64, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    with pytest.warns(UserWarning, match=r"model\.quantization: only \d+% of the weights"):
        modules_to_skip(Qwen3MoeConfig(**sizes, **experts), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modules_to_skip(read_config(str(folders["gpt2"])), None)


@every_scheme
def test_missing_weights_are_refused(folders: dict[str, Path], tmp_path: Path, quantization: Quantization) -> None:
    shutil.copytree(folders["llama"], tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    weights = load_file(str(file))
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        save_file({key: value for key, value in weights.items() if key != name}, str(file), {"format": "pt"})
        with pytest.raises(UserError, match=f"1 weights of the model are not in the files.*{name}"):
            load(tmp_path / "torn", quantization)


def stored(folder: Path, source: Path, **settings: Any) -> Path:
    """A folder whose config says that it is quantized; its weights are never reached."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, r"(optimum|gptqmodel)"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, r"gptqmodel"),
        ({"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}, r"(?i)hqq"),
        ({"quant_method": "aqlm"}, r"aqlm"),
        ({"quant_method": "eetq"}, r"(kernels|GPU)"),
        ({"quant_method": "quanto", "weights": "int8"}, r"quanto"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, r"."),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, r"compressed"),
        ({"quant_method": "of-tomorrow"}, r"of-tomorrow"),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else "",
)
def test_what_cannot_be_loaded_here_is_refused_before_loading(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any], needed: str
) -> None:
    folder = stored(tmp_path / "stored", folders["llama"], **settings)
    config = read_config(str(folder))
    for check in (
        lambda: load(folder),
        lambda: check_quantization("model.base", str(folder), config=config, quantization=None),
    ):
        with pytest.raises(UserError, match=needed) as caught:
            check()
        message = str(caught.value)
        assert message.startswith(f"model.base: '{folder}' is quantized with {settings['quant_method']}, and")
        assert "model.quantization" in message and "\n" not in message


def test_nothing_is_quantized_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["llama"], Quantization("nf4")).save_pretrained(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"model\.quantization: .* is quantized already, with bitsandbytes"):
        load(tmp_path / "saved", Quantization("nf4"))


def test_settings_without_effect_or_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.quantization\.compute_dtype: 'bfloat16' has no effect on int8"):
        Quantization("int8", compute_dtype="bfloat16")
    scheme: Any = "nf5"
    with pytest.raises(UserError, match=r"model\.quantization\.scheme: unknown name 'nf5'.*'nf4'"):
        Quantization(scheme)
    half: Any = "float16"
    with pytest.raises(UserError, match=r"model\.quantization\.compute_dtype: unknown name 'float16'"):
        Quantization("nf4", compute_dtype=half)


def test_only_adapters_that_can_train_on_a_quantized_base(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = read_config(str(folders["llama"]))
    load(folders["llama"], Quantization("int8")).save_pretrained(str(tmp_path / "saved"))
    saved = read_config(str(tmp_path / "saved"))
    for config, quantization in ((plain, Quantization("nf4")), (saved, None), (None, Quantization("int8"))):
        options: dict[str, Any] = {"config": config, "quantization": quantization}
        for adapter in (LoraConfig(), AdaLoraConfig(total_step=10), LoraConfig(init_lora_weights="gaussian")):
            check_trainable_on("model.adapter", adapter, **options)
        with pytest.raises(UserError, match=r"model\.adapter: null trains the base model's own weights"):
            check_trainable_on("model.adapter", None, **options)
        with pytest.raises(UserError, match=r"model\.adapter: UNILORA adapters do not train"):
            check_trainable_on("model.adapter", UniLoraConfig(), **options)
        with pytest.raises(UserError, match=r"init_lora_weights 'pissa_niter_4'"):
            check_trainable_on("model.adapter", LoraConfig(init_lora_weights="pissa_niter_4"), **options)
    check_trainable_on("model.adapter", None, config=plain, quantization=None)
    check_trainable_on("model.adapter", UniLoraConfig(), config=plain, quantization=None)


def test_weights_go_to_the_default_device(folders: dict[str, Path]) -> None:
    """Lightning makes the device of the rank the default while the model is built."""
    config, base = read_config(str(folders["llama"])), str(folders["llama"])
    with torch.device("cpu", 0):
        options = loading_options("model.base", base, dtype="float32", config=config, quantization=Quantization("nf4"))
    assert options["device_map"] == {"": "cpu:0"}
    assert loading_options("model.base", base, dtype="float32", config=config, quantization=None) == {}


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
