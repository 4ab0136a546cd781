"""Base models in another layout: what is written is what was there, bit by bit, and back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import IDS, convert, own_logits
from original_checkpoints import CHECKPOINTS, Checkpoint, Sizes, every_layout, was_executed, write_checkpoint
from original_families import Tensors
from safetensors.torch import load_file, save_file
from tiny import ROOT, make_llama
from transformers import AutoModelForCausalLM

import ift.models.base_conversion as base_conversion
from ift.errors import UserError
from ift.models.base_files import base_folder
from ift.models.conversion_record import RECORD
from ift.models.families import FAMILIES
from ift.models.loading import family_of

NATIVE = {
    "baichuan_7b": "LlamaForCausalLM",
    "baichuan2_7b": "LlamaForCausalLM",
    "internlm": "LlamaForCausalLM",
    "chatglm2": "GlmForCausalLM",
    "moss": "CodeGenForCausalLM",
}
NORMALIZED = ("baichuan2_7b", "baichuan2_13b")


def stored(folder: Path) -> Tensors:
    """Return all tensors in a folder's files, read without transformers."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def logits(folder: Path) -> torch.Tensor:
    """Return what plain transformers computes in float32, which knows nothing of this project here."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(IDS).logits


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def without_code(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.config.items() if key != "auto_map"}


def expected_back(checkpoint: Checkpoint) -> Tensors:
    """Return what the way back gives: everything, but for heads whose lengths were divided out."""
    tensors = {**checkpoint.tensors, **checkpoint.buffers}
    if checkpoint.family in NORMALIZED:
        head = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = torch.nn.functional.normalize(head.float()).to(head.dtype)
    return tensors


def test_every_family_has_a_tiny_checkpoint() -> None:
    assert {family.name for family in FAMILIES} == set(CHECKPOINTS)
    assert {family.name for family in FAMILIES if family.native is not None} == set(NATIVE)


@pytest.mark.parametrize(("files", "shards", "dtype"), list(every_layout()))
@pytest.mark.parametrize("family", NATIVE)
def test_to_native_and_back_gives_every_bit(
    family: str, files: Any, shards: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = CHECKPOINTS[family](seed=3).in_dtype(dtype)
    source = write_checkpoint(checkpoint, tmp_path / "source", files=files, shards=shards)
    there = convert(source, tmp_path / "native", shard_size="20KB")
    assert config_of(tmp_path / "native")["architectures"] == [NATIVE[family]]
    assert there.dtype == str(dtype).removeprefix("torch.")
    assert there.left_out == sorted(checkpoint.buffers)
    convert(tmp_path / "native", tmp_path / "back", layout="original")
    assert same(stored(tmp_path / "back"), expected_back(checkpoint))
    assert config_of(tmp_path / "back") == without_code(checkpoint)
    assert not was_executed(source)


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_the_original_layout_is_rewritten_as_it_was(family: str, tmp_path: Path) -> None:
    """From `.bin` to safetensors in other shards: the heads of Baichuan2 keep their lengths here."""
    checkpoint = CHECKPOINTS[family](seed=4).in_dtype(torch.bfloat16)
    source = write_checkpoint(checkpoint, tmp_path / "source", files="bin", shards=2)
    convert(source, tmp_path / "out", layout="original", shard_size="10KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert same(stored(tmp_path / "out"), {**checkpoint.tensors, **checkpoint.buffers})
    assert config_of(tmp_path / "out") == without_code(checkpoint)
    assert family_of(str(tmp_path / "out")) is family_of(str(source))
    assert not was_executed(source)


@pytest.mark.parametrize("family", NATIVE)
def test_a_native_folder_is_plain_transformers(family: str, tmp_path: Path) -> None:
    source = write_checkpoint(CHECKPOINTS[family](seed=5), tmp_path / "source")
    convert(source, tmp_path / "native")
    assert not {"auto_map", "ift_family"} & config_of(tmp_path / "native").keys()
    assert not list((tmp_path / "native").glob("*.py"))
    assert (tmp_path / "native" / "generation_config.json").is_file()
    assert (logits(tmp_path / "native") - own_logits(source)).abs().max() < 1e-5


def test_parts_are_the_rows_that_they_should_be(tmp_path: Path) -> None:
    """The order of the parts, by hand: the way there and back alone could swap them twice."""
    checkpoint = CHECKPOINTS["chatglm2"](seed=6)
    convert(write_checkpoint(checkpoint, tmp_path / "source"), tmp_path / "native")
    found = stored(tmp_path / "native")
    fused = checkpoint.tensors["transformer.encoder.layers.1.self_attention.query_key_value.weight"]
    cut = {"q": fused[:32], "k": fused[32:48], "v": fused[48:64]}  # 4 heads and twice 2 groups, of 8
    for part, rows in cut.items():
        assert torch.equal(found[f"model.layers.1.self_attn.{part}_proj.weight"], rows)
    gate_and_up = checkpoint.tensors["transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"]
    assert torch.equal(found["model.layers.0.mlp.gate_up_proj.weight"], gate_and_up)


def test_heads_are_divided_once(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["baichuan2_7b"](seed=7)
    record = convert(write_checkpoint(checkpoint, tmp_path / "source"), tmp_path / "native")
    head = stored(tmp_path / "native")["lm_head.weight"]
    assert record.baked_head
    assert torch.allclose(head.norm(dim=1), torch.ones(head.shape[0]), atol=1e-6)
    assert "logits are the same" in (tmp_path / "native" / "README.md").read_text(encoding="utf-8")
    assert convert(tmp_path / "native", tmp_path / "back", layout="original").baked_head
    assert not convert(tmp_path / "source", tmp_path / "same", layout="original").baked_head
    assert (own_logits(tmp_path / "back") - own_logits(tmp_path / "source")).abs().max() < 1e-5


@pytest.mark.parametrize("family", NATIVE)
def test_a_named_family_needs_no_record(family: str, tmp_path: Path) -> None:
    """A native folder that says nothing of where it is from, as one that was fine-tuned."""
    checkpoint = CHECKPOINTS[family](seed=8)
    source = write_checkpoint(checkpoint, tmp_path / "source")
    convert(source, tmp_path / "native")
    (tmp_path / "native" / RECORD).unlink()
    with pytest.raises(UserError, match="--family"):
        convert(tmp_path / "native", tmp_path / "back", layout="original")
    convert(tmp_path / "native", tmp_path / "back", layout="original", family=family)
    expected = {name: one for name, one in expected_back(checkpoint).items() if name not in checkpoint.buffers}
    assert same(stored(tmp_path / "back"), expected)
    found = family_of(str(tmp_path / "back"))
    assert found is not None
    assert found.name == family
    assert (own_logits(tmp_path / "back") - own_logits(source)).abs().max() < 1e-5


def test_a_changed_model_is_not_given_the_config_of_the_original(tmp_path: Path) -> None:
    """The record tells what the original was; the native folder may have another vocabulary since."""
    convert(write_checkpoint(CHECKPOINTS["baichuan_7b"](), tmp_path / "source"), tmp_path / "native")
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "native"))
    model.resize_token_embeddings(104)
    model.save_pretrained(str(tmp_path / "native"))
    convert(tmp_path / "native", tmp_path / "back", layout="original")
    assert config_of(tmp_path / "back")["vocab_size"] == 104
    assert stored(tmp_path / "back")["lm_head.weight"].shape[0] == 104


def test_a_family_that_was_taken_for_granted_is_written_only_where_it_was_named(tmp_path: Path) -> None:
    """A vocabulary of neither 13B model: the config cannot tell them apart."""
    source = write_checkpoint(CHECKPOINTS["baichuan_13b"](), tmp_path / "source")
    convert(source, tmp_path / "guessed", layout="original")
    assert "ift_family" not in config_of(tmp_path / "guessed")
    convert(source, tmp_path / "named", layout="original", family="baichuan_13b")
    assert config_of(tmp_path / "named")["ift_family"] == "baichuan_13b"
    convert(tmp_path / "named", tmp_path / "again", layout="original")
    assert config_of(tmp_path / "again")["ift_family"] == "baichuan_13b"


def test_internlm_without_biases_and_with_a_stated_rotation(tmp_path: Path) -> None:
    from original_families import internlm

    checkpoint = internlm(seed=9, bias=False)
    stated = {"rotary": {"base": 20000, "type": "dynamic", "scaling_factor": 2.0}}
    source = write_checkpoint(checkpoint, tmp_path / "source", changes=stated)
    convert(source, tmp_path / "native")
    (tmp_path / "native" / RECORD).unlink()
    convert(tmp_path / "native", tmp_path / "back", layout="original", family="internlm")
    found = config_of(tmp_path / "back")
    assert found["bias"] is False
    assert found["rotary"] == stated["rotary"]


def test_another_dtype_rounds_every_weight_once(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"](seed=10)
    source = write_checkpoint(checkpoint, tmp_path / "source")
    convert(source, tmp_path / "out", layout="original", dtype="float16")
    assert same(stored(tmp_path / "out"), {**checkpoint.in_dtype(torch.float16).tensors, **checkpoint.buffers})
    assert config_of(tmp_path / "out")["torch_dtype"] == "float16"


def test_weights_in_two_dtypes_need_one_to_be_named(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["baichuan_7b"]().in_dtype(torch.float16)
    mixed = {name: one.float() if "norm" in name else one for name, one in checkpoint.tensors.items()}
    source = write_checkpoint(dataclasses.replace(checkpoint, tensors=mixed), tmp_path / "source")
    with pytest.raises(UserError, match=r"float16 and float32.*--dtype"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", layout="original", dtype="float32")
    expected = {name: one.float() for name, one in mixed.items()}
    assert same(stored(tmp_path / "out"), {**expected, **checkpoint.buffers})


def test_a_model_of_today_is_rewritten(tmp_path: Path) -> None:
    make_llama(tmp_path / "llama", 64)
    record = convert(tmp_path / "llama", tmp_path / "out", dtype="bfloat16", shard_size="10KB")
    expected = {name: one.bfloat16() for name, one in stored(tmp_path / "llama").items()}
    assert same(stored(tmp_path / "out"), expected)
    assert record.family is None
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("family", sorted(set(CHECKPOINTS) - set(NATIVE)))
def test_families_without_a_native_class_are_refused(family: str, tmp_path: Path) -> None:
    source = write_checkpoint(CHECKPOINTS[family](), tmp_path / "source")
    with pytest.raises(UserError, match="--layout original"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


def test_what_the_original_code_cannot_compute_is_refused(tmp_path: Path) -> None:
    rotation = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    make_llama(tmp_path / "other", 64, num_key_value_heads=4, **rotation)
    with pytest.raises(UserError, match="rope_parameters"):
        convert(tmp_path / "other", tmp_path / "out", layout="original", family="baichuan_7b")
    make_llama(tmp_path / "grouped", 64)
    with pytest.raises(UserError, match="num_key_value_heads"):
        convert(tmp_path / "grouped", tmp_path / "out", layout="original", family="baichuan_7b")
    with pytest.raises(UserError, match="GlmForCausalLM"):
        convert(tmp_path / "grouped", tmp_path / "out", layout="original", family="chatglm2")
    assert not list(tmp_path.glob("*out*"))


def test_a_family_that_is_not_so_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(CHECKPOINTS["internlm"](), tmp_path / "source")
    with pytest.raises(UserError, match=r"--family: 'moss', and .* is of internlm"):
        convert(source, tmp_path / "out", layout="original", family="moss")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    source = write_checkpoint(CHECKPOINTS["moss"](), tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="nothing is ever overwritten"):
        convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_comes_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one number, as a bad disk would."""
    source = write_checkpoint(CHECKPOINTS["chatglm2"](), tmp_path / "source")
    write = base_conversion.write_shards

    def flipped(tensors: Any, folder: Path, *, shard_size: str) -> None:
        write(tensors, folder, shard_size=shard_size)
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(base_conversion, "write_shards", flipped)
    with pytest.raises(UserError, match="1 of .* tensors came back otherwise"):
        convert(source, tmp_path / "out", layout="original")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    source = write_checkpoint(CHECKPOINTS["moss"](), tmp_path / "source", files="bin", shards=2)
    (source / "pytorch_model-00002-of-00002.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="pytorch_model-00002"):
        convert(source, tmp_path / "out")
    for path in source.glob("pytorch_model*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        convert(source, tmp_path / "out")


def test_tensors_without_a_place_are_not_dropped_in_silence(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"]()
    more = {**checkpoint.tensors, "v_head.weight": torch.ones(1, 32)}
    source = write_checkpoint(dataclasses.replace(checkpoint, tensors=more), tmp_path / "source")
    with pytest.raises(UserError, match=r"1 tensors .* no place for, first 'v_head.weight'"):
        convert(source, tmp_path / "out")
    make_llama(tmp_path / "llama", 64)
    tensors = stored(tmp_path / "llama")
    save_file({**tensors, "mtp.weight": torch.ones(2)}, tmp_path / "llama" / "model.safetensors", {"format": "pt"})
    record = convert(tmp_path / "llama", tmp_path / "plain")
    assert record.left_out == ["mtp.weight"]
    assert not record.kept


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    """Not a zip archive, and not to be mapped."""
    checkpoint = CHECKPOINTS["baichuan_7b"]().in_dtype(torch.float16)
    source = write_checkpoint(checkpoint, tmp_path / "source", files="bin")
    torch.save(checkpoint.tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert convert(source, tmp_path / "out", layout="original").dtype == "float16"
    assert same(stored(tmp_path / "out"), checkpoint.tensors)


def test_what_the_hub_gave_before_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, in the cache of huggingface_hub; without a network."""
    place = tmp_path / "models--someone--old-model"
    write_checkpoint(CHECKPOINTS["internlm"](), place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_folder("SRC", "someone/old-model") == place / "snapshots" / "abc"
    assert base_folder("SRC", str(tmp_path / "models--someone--old-model" / "snapshots" / "abc")).is_dir()
    with pytest.raises(UserError, match="nothing of that name was fetched before"):
        base_folder("SRC", "someone/other-model")


def test_generation_settings_travel_as_they_are(tmp_path: Path) -> None:
    """Also those that contradict each other, which transformers reads and does not write."""
    source = write_checkpoint(CHECKPOINTS["baichuan2_7b"](), tmp_path / "source")
    settings = {"eos_token_id": 2, "pad_token_id": 0, "user_token_id": 9, "temperature": 0.3, "do_sample": False}
    (source / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for layout in ("native", "original"):
        convert(source, tmp_path / layout, layout=layout)
        written = json.loads((tmp_path / layout / "generation_config.json").read_text(encoding="utf-8"))
        assert written == settings
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "native")).generation_config.user_token_id == 9


def test_the_record_says_what_a_folder_was_made_of(tmp_path: Path) -> None:
    import hashlib

    source = write_checkpoint(CHECKPOINTS["internlm"](), tmp_path / "source", shards=2)
    convert(source, tmp_path / "native")
    record = json.loads((tmp_path / "native" / RECORD).read_text(encoding="utf-8"))
    assert set(record["files"]) == {path.name for path in source.glob("*.safetensors")} | {"config.json"}
    for name, digest in record["files"].items():
        assert hashlib.sha256((source / name).read_bytes()).hexdigest() == digest
    assert record["num_tensors"] == len(stored(tmp_path / "native"))


def test_sizes_are_not_assumed(tmp_path: Path) -> None:
    """One group of keys and values for all heads, other widths."""
    sizes = Sizes(vocabulary=71, hidden=40, heads=5, groups=1, layers=3, mlp=28)
    checkpoint = CHECKPOINTS["chatglm2"](seed=11, sizes=sizes)
    source = write_checkpoint(checkpoint, tmp_path / "source")
    convert(source, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back", layout="original")
    assert same(stored(tmp_path / "back"), {**checkpoint.tensors, **checkpoint.buffers})


FIXTURES = ROOT.parent / "shared" / "fixtures" / "architectures"


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["baichuan_7b", "baichuan2_7b", "baichuan_13b", "internlm_7b", "chatglm2_6b", "chatglm_6b", "moss"]
)
def test_the_golden_checkpoints_come_back(name: str, tmp_path: Path) -> None:
    source = FIXTURES / name
    found: Tensors = {}
    for path in sorted(source.glob("model*.safetensors")):
        found |= load_file(path)
    for path in sorted(source.glob("*.bin")):
        found |= torch.load(path, weights_only=True)
    middle = source
    if name not in ("baichuan_13b", "chatglm_6b"):
        middle = tmp_path / "native"
        convert(source, middle)
    record = convert(middle, tmp_path / "back", layout="original")
    if name == "baichuan2_7b":
        found["lm_head.weight"] = torch.nn.functional.normalize(found["lm_head.weight"])
    assert same(stored(tmp_path / "back"), found)
    assert not record.left_out
    config = config_of(source)
    config.pop("auto_map")
    assert config_of(tmp_path / "back") == config
