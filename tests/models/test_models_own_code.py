"""Checkpoints that would have code executed: read where transformers has the class, else refused in clear words."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import CHECKPOINTS, plant_code, was_executed, write_checkpoint

from ift.errors import UserError
from ift.hub import has_encoder
from ift.models.loading import family_of, load_base_model, read_config

OWN = {
    "AutoConfig": "configuration_canary.CanaryConfig",
    "AutoModel": "modeling_canary.CanaryModel",
    "AutoModelForCausalLM": "modeling_canary.CanaryForCausalLM",
}


def with_canary(base: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps({key: one for key, one in config.items() if one is not None}))
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    plant_code(folder, "canary")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_base_model("model.base", str(folder), "float32")
    assert not was_executed(folder)
    return str(caught.value)


def test_code_beside_a_model_that_transformers_knows_is_left_alone(base: Path, tmp_path: Path) -> None:
    folder = with_canary(base, tmp_path / "canary", auto_map=OWN)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_bytes((folder / "modeling_canary.py").read_bytes())
    found = load_base_model("model.base", str(folder), "float32").state_dict()
    expected = load_base_model("model.base", str(base), "float32").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not has_encoder(str(folder))
    assert not was_executed(folder)


@pytest.mark.parametrize("model_type", ["wonder", None])
def test_a_model_of_nothing_but_code_is_refused_without_the_advice_to_run_it(
    model_type: str | None, base: Path, tmp_path: Path
) -> None:
    folder = with_canary(base, tmp_path / "canary", auto_map=OWN, model_type=model_type)
    text = refusal(folder)
    assert f"model_type {model_type!r}, which transformers does not know" in text
    assert "which ift never executes" in text and "ChatGLM-6B" in text and "trust_remote_code" not in text


def test_attention_that_is_code_on_the_hub_is_refused(base: Path, tmp_path: Path) -> None:
    folder = with_canary(base, tmp_path / "canary", attn_implementation="someone/kernel")
    assert "asks for 'someone/kernel', which is code on the hub" in refusal(folder)
    assert load_base_model("model.base", str(folder), "float32", attention="sdpa") is not None


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["internlm"]()
    folder = write_checkpoint(checkpoint, tmp_path / "base", files="bin")

    class Canary:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {folder / 'EXECUTED'}",)

    torch.save({**checkpoint.tensors, "canary": Canary()}, folder / "pytorch_model.bin")
    assert "holds more than tensors, and is not executed" in refusal(folder)


def test_values_of_another_type_are_named(base: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(CHECKPOINTS["internlm"](), tmp_path / "old", changes={"use_cache": "yes"})
    assert "is not that of a InternLM-7B" in refusal(folder) and "use_cache" in refusal(folder)
    native = with_canary(base, tmp_path / "native", hidden_size="wide")
    assert read_config(str(native)) is None and not has_encoder(str(native))
    assert "hidden_size" in refusal(native)


@pytest.mark.parametrize("name", ["baichuan_7b", "baichuan2_7b", "baichuan_13b"])
def test_any_class_that_a_baichuan_names_tells_its_generation(name: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[name]()
    prefix = "BaiChuan" if name == "baichuan_7b" else "Baichuan"
    stated: list[dict[str, Any]] = [
        {"architectures": [f"{prefix}Model"], "auto_map": None},
        {"architectures": None, "auto_map": {"AutoConfig": f"someone/repo--configuration_baichuan.{prefix}Config"}},
    ]
    for number, changes in enumerate(stated):
        folder = write_checkpoint(checkpoint, tmp_path / str(number), changes=changes)
        family = family_of(str(folder))
        assert family is not None and family.name == name
