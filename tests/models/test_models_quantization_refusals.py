"""What is quantized and what not, and what is refused before any weight is read."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_twins import every_scheme, load, quantized_layers
from safetensors.torch import load_file, save_file
from tiny import make_llama
from transformers import Qwen3MoeConfig, ViTConfig

from ift.errors import UserError
from ift.models.loading import read_config
from ift.models.quantization import (
    Quantization,
    check_quantization,
    loading_options,
    modules_to_skip,
)


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


def test_only_causal_language_models_are_quantized() -> None:
    with pytest.raises(UserError, match=r"model\.quantization: .* makes no causal language model: Unrecognized"):
        modules_to_skip(ViTConfig(), None)


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


def test_weights_go_to_the_default_device(folders: dict[str, Path]) -> None:
    """Lightning makes the device of the rank the default while the model is built."""
    config, base = read_config(str(folders["llama"])), str(folders["llama"])
    with torch.device("cpu", 0):
        options = loading_options("model.base", base, dtype="float32", config=config, quantization=Quantization("nf4"))
    assert options["device_map"] == {"": "cpu:0"}
    assert loading_options("model.base", base, dtype="float32", config=config, quantization=None) == {}
