"""Settings of the 2023 checkpoints: of later releases, left out, or such that cannot be read exactly."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import CHECKPOINTS, Checkpoint, Sizes, write_checkpoint
from original_forwards import forward

from ift.errors import UserError
from ift.models.base_conversion import BaseConversion
from ift.models.conversion_source import ConversionSettings, open_source
from ift.models.loading import load_base_model, read_config

IDS = torch.tensor([3, 17, 55, 8, 29, 29, 40, 61, 5, 12, 33])
SECOND, THIRD = "THUDM/chatglm2-6b-32k", "THUDM/chatglm3-6b-32k"


def with_keys(checkpoint: Checkpoint, **keys: Any) -> Checkpoint:
    return replace(checkpoint, config={**checkpoint.config, **keys})


@torch.no_grad()
def distance(folder: Path, checkpoint: Checkpoint) -> float:
    model = load_base_model("model.base", str(folder), "float32").eval()
    found = model(input_ids=IDS[None], use_cache=False).logits[0]
    return float((found - forward(checkpoint, IDS)).abs().max())


@pytest.mark.parametrize("name", [SECOND, THIRD])
def test_a_stretched_rotation_is_that_of_its_release(name: str, tmp_path: Path) -> None:
    checkpoint = with_keys(CHECKPOINTS["chatglm2"](3), rope_ratio=16, _name_or_path=name)
    other = with_keys(checkpoint, _name_or_path=SECOND if name == THIRD else THIRD)
    assert (forward(checkpoint, IDS) - forward(other, IDS)).abs().max() > 0.05
    folder = write_checkpoint(checkpoint, tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # certain, so that no doubt is told
        assert distance(folder, checkpoint) < 5e-5


def test_a_stretched_rotation_of_no_certain_release_is_told(tmp_path: Path) -> None:
    checkpoint = with_keys(CHECKPOINTS["chatglm2"](3), rope_ratio=16, _name_or_path="mine")
    with pytest.warns(UserWarning, match=f"divides positions by it: if it is that, state .*{SECOND}"):
        assert distance(write_checkpoint(checkpoint, tmp_path / "base"), checkpoint) < 5e-5


def test_a_divided_rotation_goes_to_native_and_back(tmp_path: Path) -> None:
    checkpoint = with_keys(CHECKPOINTS["chatglm2"](3), rope_ratio=16, _name_or_path=SECOND)
    before = write_checkpoint(checkpoint, tmp_path / "base")
    for layout in ("native", "original"):
        settings = ConversionSettings(tmp_path / layout, layout=layout, family="chatglm2", tokenizer=False)
        (before / "conversion.json").unlink(missing_ok=True)  # so that nothing else tells what it was
        BaseConversion(open_source(layout, before, settings), settings, report=lambda _: None).convert()
        before = settings.output
        assert distance(before, checkpoint) < 5e-5


@pytest.mark.parametrize(
    "changes", [{"rope_ratio": None}, {"multi_query_group_num": None}, {"layernorm_epsilon": None}]
)
def test_a_key_that_is_left_out_is_as_in_the_originals_code(changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"](2, Sizes(groups=1))
    assert distance(write_checkpoint(checkpoint, tmp_path / "base", changes=changes), checkpoint) < 5e-5


def test_the_width_of_a_head_is_stated_null_or_128(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["chatglm2"]()
    empty = write_checkpoint(with_keys(checkpoint, kv_channels=None), tmp_path / "null")
    assert distance(empty, checkpoint) < 5e-5
    config: Any = read_config(str(write_checkpoint(checkpoint, tmp_path / "base", changes={"kv_channels": None})))
    assert config.head_dim == 128


def test_queries_keys_and_values_head_by_head_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(CHECKPOINTS["chatglm2"](), tmp_path / "base", changes={"multi_query_attention": False})
    with pytest.raises(UserError, match="multi_query_attention false"):
        load_base_model("model.base", str(folder), "float32")


@pytest.mark.parametrize("stated", ["torch.float16", "auto"])
@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "baichuan_13b", "moss"])
def test_any_writing_of_the_dtype_is_read(name: str, stated: str, tmp_path: Path) -> None:
    folder = write_checkpoint(CHECKPOINTS[name](), tmp_path / "base", changes={"torch_dtype": stated})
    model = load_base_model("model.base", str(folder), "float32")
    assert {one.dtype for one in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "key"), [("internlm", "bias"), ("chatglm2", "add_qkv_bias")])
def test_biases_that_the_config_denies_are_told(name: str, key: str, tmp_path: Path) -> None:
    folder = write_checkpoint(CHECKPOINTS[name](), tmp_path / "base", changes={key: False})
    with pytest.warns(UserWarning, match=r"tensors in the files of .* have no place .* first '.*bias'"):
        load_base_model("model.base", str(folder), "float32")
