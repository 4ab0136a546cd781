"""`model.attention`: refused where it cannot be, before weights load; used where it can; the rows follow it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ift.artifacts import flat_decisive
from ift.errors import UserError
from ift.inference.module import PredictionModule
from ift.models.attention import check_attention, model_class
from ift.models.loading import load_base_model
from ift.models.packing import choose_row_layout


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a GPU with its package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)


def refusal(attention: Any, model_type: str = "llama", *, dtype: str = "bfloat16", device: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_attention(attention, config=AutoConfig.for_model(model_type), dtype=dtype, device=device)
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["codegen", "gptj", "bloom", "gemma2"])
def test_sdpa_is_refused_where_the_class_has_none(model_type: str) -> None:
    text = refusal("sdpa", model_type)
    assert text.startswith(f"model.attention: {model_class(AutoConfig.for_model(model_type)).__name__} has no 'sdpa'")  # type: ignore[union-attr]
    assert "Set it to eager" in text


@pytest.mark.usefixtures("gpu")
def test_flash_attention_is_refused_where_the_class_has_none() -> None:
    assert "CodeGenForCausalLM has no 'flash_attention_2'" in refusal("flash_attention_2", "codegen")
    assert "Set it to eager" in refusal("flash_attention_2", "bloom")
    # Its class names other kernels, which transformers would fetch and run without a word.
    assert "has no 'flash_attention_2'" in refusal("flash_attention_2", "granite_swa")
    for model_type in ("llama", "qwen3", "gptj"):
        check_attention("flash_attention_2", config=AutoConfig.for_model(model_type), dtype="bfloat16", device="cuda")


@pytest.mark.usefixtures("gpu")
def test_flash_attention_is_refused_with_float32_and_away_from_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal("flash_attention_2", dtype="float32")
    assert "model.dtype is float32" in text and "Set model.dtype to bfloat16" in text
    assert "is to be on 'cpu'" in refusal("flash_attention_2", device="cpu")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    assert "needs the package flash-attn" in refusal("flash_attention_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a GPU, and none is here" in refusal("flash_attention_2")


def test_no_weights_are_loaded_before_it_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(UserError, match="model.attention: flash_attention_2 computes in bfloat16"):
        load_base_model("model.base", str(base), "float32", attention="flash_attention_2")
    with pytest.raises(UserError, match="model.attention: flash_attention_2 computes in bfloat16"):
        PredictionModule(str(base), attention="flash_attention_2")


def test_models_are_loaded_with_it_and_compute_the_same(base: Path) -> None:
    ids = torch.arange(3, 20)[None]
    models = {name: load_base_model("base", str(base), "float32", attention=name) for name in ("eager", "sdpa", None)}  # type: ignore[arg-type]
    assert {name: model.config._attn_implementation for name, model in models.items()} == {
        "eager": "eager",
        "sdpa": "sdpa",
        None: "sdpa",
    }
    logits = [model.eval()(input_ids=ids).logits for model in models.values()]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=1e-5)
    assert torch.equal(logits[1], logits[2])


def test_the_row_layout_follows_it(tmp_path: Path) -> None:
    for model_type in ("llama", "gptj"):
        AutoConfig.for_model(model_type).save_pretrained(str(tmp_path / model_type))

    def layout(model_type: str, attention: Any) -> str:
        folder = str(tmp_path / model_type)
        return choose_row_layout("data.row_layout", "auto", base=folder, adapter=None, attention=attention).layout

    assert [layout("llama", one) for one in (None, "eager", "sdpa", "flash_attention_2")] == ["packed"] * 3 + [
        "flattened"
    ]
    assert [layout("gptj", one) for one in ("eager", "flash_attention_2")] == ["packed", "grouped"]


def test_a_run_may_go_on_with_another() -> None:
    begun = {"model": {"base": "b", "attention": "sdpa", "compile": True, "rope": {"type": "linear", "factor": 2.0}}}
    assert flat_decisive(begun) == {"model.base": "b", "model.rope.type": "linear", "model.rope.factor": 2.0}
