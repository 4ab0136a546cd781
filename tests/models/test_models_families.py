"""The 2023 checkpoints, tiny and random, in the original layout: recognised, read exactly, refused, never executed."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import CHECKPOINTS, every_layout, was_executed, write_checkpoint
from original_forwards import forward
from peft import LoraConfig, TrainableTokensConfig
from transformers import AutoModelForCausalLM

from ift.errors import UserError
from ift.models.adapters import attach
from ift.models.families import FAMILIES
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.initial_adapters import save_adapter
from ift.models.loading import family_of, load_base_model, max_positions, read_config
from ift.models.merging import merge_adapters
from ift.models.methods import as_method
from ift.models.quantization import Quantization
from ift.models.trained_adapters import MergedAdapter, load_adapter

NAMES = sorted(CHECKPOINTS)
LEFT_TO_RIGHT = [name for name in NAMES if name != "chatglm"]  # whose own test is test_models_chatglm
NATIVE = [family.name for family in FAMILIES if family.native is not None]
IDS = torch.tensor([3, 17, 55, 8, 29, 29, 40, 61, 5, 12, 33])


def load(folder: Path, **options: Any) -> Any:
    return load_base_model("model.base", str(folder), "float32", **options)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.eval()(input_ids=ids[None], use_cache=False).logits[0]


def test_every_family_has_a_checkpoint_here() -> None:
    assert {family.name for family in FAMILIES} == set(CHECKPOINTS)


@pytest.mark.parametrize(("files", "shards", "dtype"), list(every_layout()))
@pytest.mark.parametrize("name", LEFT_TO_RIGHT)
def test_every_file_layout_has_the_originals_logits(
    name: str, files: Any, shards: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = CHECKPOINTS[name](seed=shards).in_dtype(dtype)
    folder = write_checkpoint(checkpoint, tmp_path / "base", files=files, shards=shards)
    family = family_of(str(folder))
    assert family is not None and family.name == name
    found = logits(load(folder))
    exact = {key: tensor.float() for key, tensor in checkpoint.tensors.items()}
    expected = forward(type(checkpoint)(name, checkpoint.config, exact, {}, ""), IDS)
    assert expected.std() > 0.3  # or nothing would be compared
    assert (found - expected).abs().max() < 5e-5
    assert not was_executed(folder)


@pytest.mark.parametrize("name", LEFT_TO_RIGHT)
def test_left_padding_and_the_cache_change_nothing(name: str, tmp_path: Path) -> None:
    model = load(write_checkpoint(CHECKPOINTS[name](), tmp_path / "base")).eval()
    short = IDS[:6]
    ids = torch.stack([IDS, torch.cat([torch.zeros(5, dtype=torch.int64), short])])
    mask = torch.stack([torch.ones(11, dtype=torch.int64), torch.tensor([0] * 5 + [1] * 6)])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **settings)
    for row, alone in enumerate((IDS, short)):
        for use_cache in (True, False):
            own = model.generate(
                input_ids=alone[None], attention_mask=torch.ones_like(alone[None]), use_cache=use_cache, **settings
            )
            assert torch.equal(own[0, len(alone) :], together[row, 11:])
    # Greedy by the reference: every step from the start.
    checkpoint, text = CHECKPOINTS[name](), IDS
    for _ in range(6):
        text = torch.cat([text, forward(checkpoint, text)[-1].argmax()[None]])
    assert torch.equal(text[11:], together[0, 11:])


@pytest.mark.parametrize("name", NATIVE)
def test_what_was_read_is_a_plain_model_of_transformers(name: str, tmp_path: Path) -> None:
    """Saved, it loads anywhere, with the logits that it had; nothing of ours is in the folder."""
    model = load(write_checkpoint(CHECKPOINTS[name](), tmp_path / "base"))
    expected = logits(model)
    settle_heads(model, trained=True)
    model.save_pretrained(str(tmp_path / "saved"))
    assert "ift" not in (tmp_path / "saved" / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"), dtype=torch.float32)
    assert type(again) is type(model)
    torch.testing.assert_close(logits(again), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["baichuan_13b", "baichuan2_13b"])
def test_a_model_without_a_native_class_is_saved_in_the_original_layout(name: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[name]()
    model = load(write_checkpoint(checkpoint, tmp_path / "base"))
    expected = logits(model)
    model.save_pretrained(str(tmp_path / "saved"))
    from safetensors.torch import load_file

    stored = load_file(str(tmp_path / "saved" / "model.safetensors"))
    assert stored.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(stored[key], tensor) for key, tensor in checkpoint.tensors.items())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    stated = {key for key in config.keys() & checkpoint.config.keys() if key != "transformers_version"}
    assert len(stated) > 12
    assert {key: config[key] for key in stated} == {key: checkpoint.config[key] for key in stated}
    assert torch.equal(logits(load(tmp_path / "saved")), expected)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"init_lora_weights": "pissa", "r": 4, "lora_alpha": 4}, {}], ids=str
)
def test_an_adapter_begins_with_the_rows_of_a_normalised_head(settings: dict[str, Any], tmp_path: Path) -> None:
    """DoRA takes their lengths and PiSSA a part of them, and neither may change a logit."""
    folder = write_checkpoint(CHECKPOINTS["baichuan2_7b"](), tmp_path / "base")
    method = as_method(LoraConfig(target_modules=["q_proj", "lm_head"], **settings))
    model = attach(load(folder), method, seed=0, num_steps=None)
    settle_heads(model)
    assert (logits(model) - logits(load(folder))).abs().max() < 1e-5
    rows = as_method(TrainableTokensConfig(target_modules=["lm_head"], token_indices=[5]))
    kept = attach(load(folder), rows, seed=0, num_steps=None)
    assert any(type(module) is NormalizedHead for module in kept.modules())  # its rows are trained as they are


@pytest.mark.parametrize("first", [None, "saved", "adapted"])
def test_a_head_that_is_trained_on_top_of_merged_adapters_divides(first: str | None, tmp_path: Path) -> None:
    """It is the original's again, unless an adapter was added to its rows."""
    folder = write_checkpoint(CHECKPOINTS["baichuan2_7b"](), tmp_path / "base")
    given: dict[str, Any] = {"modules_to_save": ["lm_head"]} if first == "saved" else {}
    targets = ["q_proj", "lm_head"] if first == "adapted" else ["q_proj"]
    method = as_method(LoraConfig(target_modules=targets, init_lora_weights=False, **given))
    model = attach(load(folder), method, seed=0, num_steps=None)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(load_adapter("adapter", load(folder), tmp_path / "adapter"))
    merged = merge_adapters("adapter", load(folder), [MergedAdapter(str(tmp_path / "adapter"), {})], "float32")
    assert (logits(merged) - expected).abs().max() < 1e-4
    top = attach(
        merged, as_method(LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])), seed=0, num_steps=None
    )
    settle_heads(top)
    assert (logits(top) - expected).abs().max() < 1e-4
    (head,) = [one for name, one in top.named_modules() if name.endswith("lm_head.modules_to_save.default")]
    assert (type(head) is NormalizedHead) == (first != "adapted")


@pytest.mark.parametrize("name", ["baichuan2_7b", "baichuan2_13b"])
def test_a_normalised_head_divides_in_every_pass_until_it_is_settled(name: str, tmp_path: Path) -> None:
    model = load(write_checkpoint(CHECKPOINTS[name](), tmp_path / "base"))
    assert type(model.lm_head) is NormalizedHead
    raw = model.lm_head.weight.detach().clone()
    settle_heads(model)
    assert type(model.lm_head) is NormalizedHead  # it requires gradients
    before = logits(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    model.lm_head.weight.requires_grad_(False)
    settle_heads(model)
    assert type(model.lm_head) is torch.nn.Linear
    torch.testing.assert_close(model.lm_head.weight, raw / raw.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_quantized_weights_are_those_of_the_parts(name: str, tmp_path: Path) -> None:
    """NF4 while a fused matrix is split: the same values as quantizing each part on its own."""
    import bitsandbytes.functional as bnb
    from bitsandbytes.nn import Linear4bit

    folder = write_checkpoint(CHECKPOINTS[name](), tmp_path / "base")
    plain, quantized = load(folder), load(folder, quantization=Quantization("nf4"))
    compared = 0
    for key, module in quantized.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        weight = plain.get_submodule(key).weight
        packed, state = bnb.quantize_4bit(weight.detach(), quant_type="nf4", compress_statistics=True)
        expected = bnb.dequantize_4bit(packed, state)
        found = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        torch.testing.assert_close(found, expected.to(found.dtype))
        compared += 1
    assert compared >= 8


def test_lengths_and_sizes_stand_in_the_native_config(tmp_path: Path) -> None:
    for name in NAMES:
        checkpoint = CHECKPOINTS[name]()
        folder = write_checkpoint(checkpoint, tmp_path / name)
        length = checkpoint.config.get("seq_length") or checkpoint.config.get("n_positions")
        length = length or checkpoint.config.get("max_sequence_length") or checkpoint.config.get("model_max_length")
        assert max_positions(str(folder)) == (length or checkpoint.config.get("max_position_embeddings"))
        config = read_config(str(folder))
        assert config is not None and config.num_hidden_layers == 2
        assert not was_executed(folder)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("chatglm2", {"rmsnorm": False}, "rmsnorm false"),
        ("chatglm2", {"post_layer_norm": False}, "post_layer_norm false"),
        ("chatglm2", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("chatglm2", {"add_bias_linear": True}, "add_bias_linear true"),
        ("chatglm2", {"original_rope": False}, "original_rope false"),
        ("chatglm2", {"pre_seq_len": 128}, "pre_seq_len 128"),
        ("chatglm2", {"quantization_bit": 4}, "quantization_bit 4"),
        ("chatglm", {"quantization_bit": 8}, "quantization_bit 8"),
        ("chatglm", {"pre_seq_len": 128}, "pre_seq_len"),
        ("moss", {"wbits": 4, "groupsize": 128}, "wbits 4"),
        ("baichuan2_7b", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("baichuan2_7b", {"z_loss_weight": 1e-4}, "z_loss_weight"),
        ("internlm", {"rotary": {"base": 10000, "type": "linear"}}, "rotary type 'linear'"),
        ("internlm", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling type 'linear'"),
        ("baichuan_7b", {"architectures": ["OtherForCausalLM"], "auto_map": None}, "is of none of the known families"),
        ("chatglm", {"padded_vocab_size": 130528}, "could be of more than one family"),
        ("baichuan_7b", {"ift_family": "baichuan_7"}, "Did you mean 'baichuan_7b'"),
        ("baichuan_7b", {"architectures": None, "auto_map": "modeling_baichuan.Model"}, "is of none of the known"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_with_the_reason(
    name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(CHECKPOINTS[name](), tmp_path / "base", changes=changes)
    (folder / "model.safetensors").unlink()  # refused before weights are read
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert str(caught.value).startswith("model.base: config.json of '")
    assert not was_executed(folder)


def test_a_family_that_is_named_needs_no_other_key(tmp_path: Path) -> None:
    """A 13B whose vocabulary was resized says no more which generation it is."""
    first = CHECKPOINTS["baichuan_13b"]()
    plain = write_checkpoint(first, tmp_path / "first")
    named = write_checkpoint(first, tmp_path / "named", changes={"ift_family": "baichuan2_13b"})
    with pytest.warns(UserWarning, match=r"taken for a Baichuan-13B. If it is a Baichuan2-13B, write"):
        assert type(load(plain).lm_head) is torch.nn.Linear
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(load(named).lm_head) is NormalizedHead
    unclear = {"tokenizer_class": None, "z_loss_weight": None, "_name_or_path": "someone/Baichuan2-13B-Chat"}
    second = write_checkpoint(CHECKPOINTS["baichuan2_13b"](), tmp_path / "second", changes=unclear)
    assert type(load(second).lm_head) is NormalizedHead


def test_internlm_rotations_of_later_revisions(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["internlm"]()
    for number, (stated, kind, theta) in enumerate(
        [
            ({"rotary": {"base": 1000000, "type": "dynamic"}}, "dynamic", 1e6),
            ({"rotary": {"base": 5000, "type": "origin"}}, "default", 5e3),
            ({"rope_theta": 20000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic", 2e4),
        ]
    ):
        config = read_config(str(write_checkpoint(checkpoint, tmp_path / str(number), changes=stated)))
        assert config is not None
        assert (config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]) == (kind, theta)
    assert config.rope_parameters["factor"] == 2.0


def test_an_internlm_without_biases_has_none(tmp_path: Path) -> None:
    from original_families import internlm

    checkpoint = internlm(bias=False)
    model = load(write_checkpoint(checkpoint, tmp_path / "base"))
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert (logits(model) - forward(checkpoint, IDS)).abs().max() < 5e-5
