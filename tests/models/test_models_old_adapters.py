"""Adapters of 2023 on the original modules: converted, they compute what they did where they were trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import IDS, convert
from old_adapter_files import MODULES, OldAdapter, old_ia3, old_lora, with_values, write_adapter
from original_checkpoints import CHECKPOINTS, Checkpoint, write_checkpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import ift.models.families.normalized_head as normalized_head
from ift.errors import UserError
from ift.models.adapter_conversion import convert_adapter
from ift.models.conversion_record import RECORD
from ift.models.loading import load_base_model
from ift.models.merging import merge_adapters
from ift.models.trained_adapters import MergedAdapter, load_adapter

LAYER = {"chatglm2": "transformer.encoder.layers", "baichuan_7b": "model.layers"}


def logits(model: Any) -> torch.Tensor:
    """Return logits in float64, in which two ways to add up the same are told from two different sums."""
    with torch.no_grad():
        found: torch.Tensor = model.eval().double()(IDS).logits
    return found


def by_hand(adapter: OldAdapter, folder: Path) -> torch.Tensor:
    """Return the logits of the original with the adapter added to its fused matrices."""
    return base_logits(str(write_checkpoint(adapter.merged, folder)))


def base_logits(base: str) -> torch.Tensor:
    return logits(load_base_model("model.base", base, "float32"))


def noise(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9))


def base_folder(checkpoint: Checkpoint, folder: Path) -> str:
    return str(write_checkpoint(checkpoint, folder))


def loaded(base: str, adapter: Path) -> Any:
    return load_adapter("model.adapter", load_base_model("model.base", base, "float32"), adapter)


def check_exact(adapter: OldAdapter, base: str, folder: Path) -> Path:
    """Check both ways to use an old adapter against the merge by hand; return the converted folder."""
    expected = by_hand(adapter, folder / "by_hand")
    assert (base_logits(base) - expected).abs().max() > 1e-2  # else nothing is shown below
    old = write_adapter(adapter, folder / "old")
    converted = folder / "converted"
    convert_adapter(old, converted, base=base, family=None)
    for used in (converted, old):
        assert (logits(loaded(base, used)) - expected).abs().max() < 1e-5, used.name
    return converted


@pytest.mark.parametrize("family", MODULES)
def test_a_converted_adapter_computes_the_same(family: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[family](seed=20)
    adapter = old_lora(checkpoint, MODULES[family])
    converted = check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)
    settings = json.loads((converted / "adapter_config.json").read_text(encoding="utf-8"))
    assert {"q_proj", "k_proj", "v_proj"} <= set(settings["target_modules"])
    assert not set(MODULES[family]) & set(settings["target_modules"]) - {"o_proj", "down_proj"}


def test_every_part_has_the_whole_of_one_matrix_and_its_rows_of_the_other(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"](seed=21)
    adapter = old_lora(checkpoint, ["query_key_value"])
    base = base_folder(checkpoint, tmp_path / "base")
    convert_adapter(write_adapter(adapter, tmp_path / "old"), tmp_path / "new", base=base, family=None)
    found = load_file(tmp_path / "new" / "adapter_model.safetensors")
    name = "base_model.model.transformer.encoder.layers.1.self_attention.query_key_value"
    first, second = adapter.tensors[f"{name}.lora_A.weight"], adapter.tensors[f"{name}.lora_B.weight"]
    for part, rows in {"q": second[:32], "k": second[32:48], "v": second[48:]}.items():
        place = f"base_model.model.model.layers.1.self_attn.{part}_proj"
        assert torch.equal(found[f"{place}.lora_A.weight"], first)
        assert torch.equal(found[f"{place}.lora_B.weight"], rows)
    assert len(found) == 2 * 3 * 2


def test_peft_alone_loads_the_result_onto_a_converted_base(tmp_path: Path) -> None:
    """Nothing of this project is needed from then on."""
    checkpoint = CHECKPOINTS["chatglm2"](seed=22)
    adapter = old_lora(checkpoint, MODULES["chatglm2"])
    source = write_checkpoint(checkpoint, tmp_path / "base")
    convert(source, tmp_path / "native")
    old = write_adapter(adapter, tmp_path / "old", pickled=False)
    convert_adapter(old, tmp_path / "new", base=str(tmp_path / "native"), family=None)
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path / "native"))
    model: Any = PeftModel.from_pretrained(plain, str(tmp_path / "new"))
    assert (logits(model) - by_hand(adapter, tmp_path / "by_hand")).abs().max() < 1e-5


SETTINGS: dict[str, dict[str, Any]] = {
    "own ranks": {"rank_pattern": {"W_pack": 6, "o_proj": 2}, "alpha_pattern": {"W_pack": 16}},
    "rank-stabilised": {"use_rslora": True, "r": 9},
    "magnitudes": {"dora": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_keep_their_meaning(name: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["baichuan_7b"](seed=23)
    adapter = old_lora(checkpoint, ["W_pack", "o_proj", "down_proj"], **SETTINGS[name])
    check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)


def test_a_part_of_the_layers_stays_a_part(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["baichuan_7b"](seed=24)
    whole = old_lora(checkpoint, ["W_pack"], layers_to_transform=[1], layers_pattern="layers")
    left = {name: one for name, one in whole.merged.tensors.items() if ".layers.0." not in name}
    merged = Checkpoint("baichuan_7b", checkpoint.config, {**checkpoint.tensors, **left}, {}, "baichuan")
    tensors = {name: one for name, one in whole.tensors.items() if ".layers.1." in name}
    adapter = OldAdapter(whole.settings, tensors, merged)
    converted = check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)
    settings = json.loads((converted / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["target_modules"] == [f"model.layers.1.self_attn.{part}_proj" for part in "kqv"]


def test_trained_biases_are_cut_as_the_rows_are(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"](seed=25)
    biases = {name: one + 0.5 * noise(one) for name, one in checkpoint.tensors.items() if "bias" in name}
    adapter = with_values(old_lora(checkpoint, ["query_key_value"]), biases, bias="lora_only")
    check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("chatglm2", {"word_embeddings": "transformer.embedding", "output_layer": "transformer"}),
        ("baichuan_7b", {"embed_tokens": "model"}),
        ("baichuan2_13b", {"lm_head": ""}),
    ],
)
def test_saved_modules_are_found_again(family: str, names: dict[str, str], tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[family](seed=26)
    full = [f"{place}.{name}.weight".lstrip(".") for name, place in names.items()]
    values = {name: checkpoint.tensors[name] + 0.1 * noise(checkpoint.tensors[name]) for name in full}
    adapter = with_values(old_lora(checkpoint, MODULES[family]), values, modules_to_save=list(names))
    check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)


def test_a_trained_head_is_divided_for_a_base_whose_head_was(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["baichuan2_7b"](seed=27)
    head = {"lm_head.weight": checkpoint.tensors["lm_head.weight"] * 3 + 0.1}
    adapter = with_values(old_lora(checkpoint, ["W_pack"]), head, modules_to_save=["lm_head"])
    expected = by_hand(adapter, tmp_path / "by_hand")
    convert(write_checkpoint(checkpoint, tmp_path / "base"), tmp_path / "native")
    old, native = write_adapter(adapter, tmp_path / "old"), str(tmp_path / "native")
    convert_adapter(old, tmp_path / "new", base=native, family=None)
    assert (logits(loaded(native, tmp_path / "new")) - expected).abs().max() < 1e-5
    # In memory, a plain Llama does not say whose head it has.
    with pytest.raises(UserError, match="ift convert ADAPTER DST --base BASE --family NAME"):
        loaded(native, old)
    (tmp_path / "native" / RECORD).unlink()
    with pytest.raises(UserError, match="--family"):
        convert_adapter(old, tmp_path / "unknown", base=native, family=None)
    convert_adapter(old, tmp_path / "named", base=native, family="baichuan2_7b")
    assert (logits(loaded(native, tmp_path / "named")) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["baichuan_7b", "chatglm2"])
def test_vectors_of_ia3_are_cut_or_repeated(family: str, tmp_path: Path) -> None:
    ends = {"baichuan_7b": ["W_pack", "down_proj"], "chatglm2": ["query_key_value", "dense_4h_to_h"]}[family]
    checkpoint = CHECKPOINTS[family](seed=28)
    adapter = old_ia3(checkpoint, ends, feedforward=ends[1:])
    check_exact(adapter, base_folder(checkpoint, tmp_path / "base"), tmp_path)
    # Scaling what goes into a fused matrix is scaling what goes into each of its parts.
    adapter = old_ia3(checkpoint, ends, feedforward=ends)
    check_exact(adapter, str(tmp_path / "base"), tmp_path / "into")


def test_an_old_adapter_is_merged_and_trained_on(tmp_path: Path) -> None:
    """Directly, as `model.merged_adapters` and `model.adapter` name it."""
    checkpoint = CHECKPOINTS["baichuan2_7b"](seed=29)
    adapter = old_lora(checkpoint, ["W_pack"])
    base, old = base_folder(checkpoint, tmp_path / "base"), write_adapter(adapter, tmp_path / "old")
    expected = by_hand(adapter, tmp_path / "by_hand")
    model = load_base_model("model.base", base, "float32")
    merged = merge_adapters("model.merged_adapters", model, [MergedAdapter(str(old), {})], "float32")
    assert (logits(merged) - expected).abs().max() < 1e-5
    model = load_adapter("model.adapter", load_base_model("model.base", base, "float32"), old, trainable=True)
    normalized_head.settle_heads(model)
    assert (logits(model) - expected).abs().max() < 1e-5
    model.float()(IDS, labels=IDS).loss.backward()
    trained = [name for name, one in model.named_parameters() if one.grad is not None]
    assert len(trained) == 2 * 3 * 2
    model.save_pretrained(str(tmp_path / "again"))
    assert (logits(loaded(base, tmp_path / "again")) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["moss", "internlm", "chatglm"])
def test_adapters_of_families_that_keep_their_names_load_as_they_are(family: str, tmp_path: Path) -> None:
    ends = {"moss": ["qkv_proj", "fc_out"], "internlm": ["q_proj"], "chatglm": ["query_key_value"]}[family]
    checkpoint = CHECKPOINTS[family](seed=30)
    adapter = old_lora(checkpoint, ends)
    base, old = base_folder(checkpoint, tmp_path / "base"), write_adapter(adapter, tmp_path / "old")
    assert (logits(loaded(base, old)) - by_hand(adapter, tmp_path / "by_hand")).abs().max() < 1e-5
    with pytest.raises(UserError, match="nothing to convert"):
        convert_adapter(old, tmp_path / "new", base=base, family=None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups of the first PEFT": ({"enable_lora": [True, False, True]}, "enable_lora"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "changed base weights": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "another kind": ({"peft_type": "ADALORA"}, "ADALORA"),
    "repeated layers": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "another rank": ({"r": 5}, "rank 5.*rank 4"),
    "a module without weights": ({"modules_to_save": ["lm_head"]}, "lm_head"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_counterpart_is_refused(name: str, tmp_path: Path) -> None:
    settings, told = REFUSED[name]
    checkpoint = CHECKPOINTS["baichuan_7b"](seed=31)
    adapter = old_lora(checkpoint, ["W_pack"])
    base = base_folder(checkpoint, tmp_path / "base")
    changed = OldAdapter({**adapter.settings, **settings}, adapter.tensors, adapter.merged)
    old = write_adapter(changed, tmp_path / "old")
    with pytest.raises(UserError, match=told):
        convert_adapter(old, tmp_path / "new", base=base, family=None)
    with pytest.raises(UserError, match=told):
        loaded(base, old)
    assert not (tmp_path / "new").exists()


def test_adapters_of_other_sizes_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    from original_families import Sizes

    other = CHECKPOINTS["baichuan_7b"](sizes=Sizes(hidden=40, heads=5))
    base = base_folder(CHECKPOINTS["baichuan_7b"](seed=32), tmp_path / "base")
    old = write_adapter(old_lora(other, ["W_pack"]), tmp_path / "old")
    with pytest.raises(UserError, match=r"120 rows.*another model"):
        convert_adapter(old, tmp_path / "new", base=base, family=None)
    adapter = old_lora(CHECKPOINTS["baichuan_7b"](seed=32), ["W_pack"])
    prefix = {"transformer.prefix_encoder.embedding.weight": torch.zeros(2, 2)}
    old = write_adapter(with_values(adapter, prefix), tmp_path / "prefix")
    with pytest.raises(UserError, match="p-tuning v2"):
        convert_adapter(old, tmp_path / "new", base=base, family=None)


def test_a_pickle_with_more_than_tensors_is_not_read(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (tmp_path / "EXECUTED", "x"))

    base = base_folder(CHECKPOINTS["baichuan_7b"](), tmp_path / "base")
    old = write_adapter(old_lora(CHECKPOINTS["baichuan_7b"](), ["W_pack"]), tmp_path / "old")
    torch.save({"base_model.model.x": Planted()}, old / "adapter_model.bin")
    with pytest.raises(UserError, match="cannot be read as an adapter"):
        convert_adapter(old, tmp_path / "new", base=base, family=None)
    with pytest.raises(UserError, match="does not fit"):
        loaded(base, old)
    assert not (tmp_path / "EXECUTED").exists()
