"""Folders of ChatGLM-6B: recognised and refused, every layout of the hub, nothing executed, saved as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_reference import CONFIG, SOP, TEXT, Weights, load, reference_logits, weights, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from ift.models.families.chatglm import ChatGLMConfig, ChatGLMForCausalLM, native_config, recognises, refusals, register

EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
LIMIT = 5e-5


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.tensor([TEXT])).logits[0]
    return result


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_layout_of_the_hub(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in weights().items()}
    model = load(write_checkpoint(tmp_path / "base", stored, kind=kind))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (logits(model) - reference_logits(stored, TEXT)).abs().max() <= LIMIT


@pytest.mark.parametrize("absent", [EMBEDDING, HEAD])
@pytest.mark.parametrize("kind", ["safetensors", "sharded bin"])
def test_one_of_the_two_tied_matrices_is_enough(tmp_path: Path, absent: str, kind: str) -> None:
    stored = {name: tensor for name, tensor in weights().items() if name != absent}
    model = load(write_checkpoint(tmp_path / "base", stored, kind=kind))
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert (logits(model) - reference_logits(weights(), TEXT)).abs().max() <= LIMIT


def test_of_two_different_matrices_the_embedding_counts_as_with_the_original(tmp_path: Path) -> None:
    stored = weights() | {HEAD: weights(seed=1)[HEAD]}
    model = load(write_checkpoint(tmp_path / "base", stored))
    assert (logits(model) - reference_logits(weights(), TEXT)).abs().max() <= LIMIT
    untied = load(write_checkpoint(tmp_path / "untied", stored, config={"tie_word_embeddings": False}))
    assert (logits(untied) - reference_logits(stored, TEXT)).abs().max() <= LIMIT


def stored_names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def test_a_saved_folder_is_the_originals_again(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path / "base"))
    model.save_pretrained(str(tmp_path / "saved"), max_shard_size="20KB")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert recognises(written) and refusals(written) is None
    dropped = {"auto_map", "torch_dtype"}
    assert {key: written[key] for key in CONFIG.keys() - dropped} == {
        key: value for key, value in CONFIG.items() if key not in dropped
    }
    assert written["torch_dtype"] == "float32" and "auto_map" not in written
    original = {name for name in weights() if "inv_freq" not in name}
    assert stored_names(tmp_path / "saved") == original - {HEAD}
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(str(tmp_path / "twice"))
    assert json.loads((tmp_path / "twice" / "config.json").read_text()) == written


def test_a_resized_and_an_untied_model_come_back_as_they_were(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path / "base"))
    model.resize_token_embeddings(120)
    model.save_pretrained(str(tmp_path / "resized"))
    assert torch.equal(logits(load(tmp_path / "resized")), logits(model))

    untied = load(write_checkpoint(tmp_path / "two", weights(), config={"tie_word_embeddings": False}))
    with torch.no_grad():
        untied.lm_head.weight.add_(1.0)
    untied.save_pretrained(str(tmp_path / "untied"))
    assert stored_names(tmp_path / "untied") >= {HEAD, EMBEDDING}
    assert torch.equal(logits(load(tmp_path / "untied")), logits(untied))


def test_nothing_in_the_folder_is_executed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base")
    canary = tmp_path / "executed"
    for name in ("modeling_chatglm", "configuration_chatglm", "tokenization_chatglm", "quantization"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').write('yes')\n")
    model = load(folder)
    model.generate(torch.tensor([TEXT[:6]]), max_new_tokens=2)
    model.save_pretrained(str(tmp_path / "saved"))
    assert not canary.exists()
    assert not list((tmp_path / "saved").glob("*.py"))


def test_transformers_knows_the_model_once_registered() -> None:
    register()
    register()
    config = native_config(CONFIG)
    assert isinstance(AutoConfig.for_model("ift_chatglm"), type(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, ChatGLMForCausalLM)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_which_configs_are_of_this_model() -> None:
    assert recognises({"model_type": "chatglm", "inner_hidden_size": 16384})
    assert recognises({"model_type": "chatglm", "position_encoding_2d": False})
    assert not recognises({"model_type": "chatglm", "padded_vocab_size": 65024, "multi_query_attention": True})
    assert not recognises({"model_type": "glm", "inner_hidden_size": 16384})
    assert not recognises({})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "packed in 4 bits": ({"quantization_bit": 4}, "quantization_bit is 4"),
    "packed in 8 bits": ({"quantization_bit": 8}, "quantization_bit is 8"),
    "P-tuning v2 inside": ({"pre_seq_len": 128, "prefix_projection": False}, "pre_seq_len is 128"),
    "one position per token": ({"position_encoding_2d": False}, "position_encoding_2d is false"),
    "heads that cannot be halved twice": ({"num_attention_heads": 16}, "multiple of 4 x num_attention_heads"),
    "unknown ids": ({"gmask_token_id": None, "bos_token_id": None}, "bos_token_id, gmask_token_id not stated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(case: str) -> None:
    change, reason = REFUSED[case]
    assert refusals(CONFIG) is None
    assert reason in str(refusals(CONFIG | change))


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [(150528, (150004, 150005, 20003, 150000, 150001)), (130528, (130004, 130005, 3, 130000, 130001))],
)
def test_special_ids_by_the_vocabulary_unless_stated(vocabulary: int, expected: tuple[int, ...]) -> None:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
    bare = {key: value for key, value in CONFIG.items() if key not in names} | {"vocab_size": vocabulary}
    assert refusals(bare) is None
    config = native_config(bare)
    assert tuple(getattr(config, name) for name in names) == expected
    assert native_config(bare | {"bos_token_id": SOP}).bos_token_id == SOP


def test_the_config_answers_to_the_names_of_transformers() -> None:
    config = native_config({key: value for key, value in CONFIG.items() if key != "use_cache"})
    assert (config.num_hidden_layers, config.intermediate_size) == (CONFIG["num_layers"], CONFIG["inner_hidden_size"])
    assert (config.max_position_embeddings, config.head_dim) == (64, 16)
    assert config.tie_word_embeddings is True and config.use_cache is True


def test_the_config_class_reads_an_original_folder_by_itself(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", config={"bos_token_id": None, "vocab_size": 130528})
    read, expected = (one.to_dict() for one in (ChatGLMConfig.from_pretrained(str(folder)), native_config(CONFIG)))
    assert read == expected | {"bos_token_id": 130004, "vocab_size": 130528}


def test_loading_needs_every_weight(tmp_path: Path) -> None:
    stored: Weights = {name: tensor for name, tensor in weights().items() if "layers.1.mlp" not in name}
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp"):
        load(write_checkpoint(tmp_path / "base", stored))
