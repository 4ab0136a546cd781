"""Bottleneck adapters in PEFT's hands: saved, loaded, switched, checkpointed, quantized, packed; merging is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_models import IDS, LAYERS, SIZE, VARIANTS, adapted, logits, make_model, stir
from peft import PeftModel, get_peft_model
from tiny import ROOT

from ift.errors import UserError
from ift.models.bottleneck import BottleneckConfig
from ift.models.bottleneck_layer import BottleneckLayer
from ift.models.packing import keeps_examples_apart

FEW = ("llama", "bloom", "gpt2", "glm4")


def test_one_adapter_per_example_is_refused() -> None:
    with pytest.raises(UserError, match="adapter_names: .*set_adapter"):
        adapted("llama")(input_ids=IDS, adapter_names=["default", "__base__"])


@pytest.mark.parametrize("family", FEW)
def test_adapters_are_switched_off_on_exchanged_deleted_and_unloaded(family: str) -> None:
    plain = logits(make_model(family))
    model = adapted(family)
    first = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    model.add_adapter("second", BottleneckConfig(variant="pfeiffer", bottleneck_size=3))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), plain)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".second." in name for name in trained)
    stir(model, seed=2)
    second = logits(model)
    assert not torch.equal(second, plain)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not [name for name, _ in model.named_parameters() if "second" in name]
    assert torch.equal(logits(model.unload()), plain)


def test_several_adapters_are_saved_each_on_its_own(tmp_path: Path) -> None:
    model = adapted("llama")
    model.add_adapter("second", BottleneckConfig(variant="pfeiffer", bottleneck_size=3))
    model.set_adapter("second")
    stir(model, seed=2)
    second = logits(model)
    model.save_pretrained(str(tmp_path))
    reloaded = PeftModel.from_pretrained(make_model("llama"), str(tmp_path / "second"))
    assert torch.equal(logits(reloaded), second)
    reloaded.load_adapter(str(tmp_path), "first")
    reloaded.set_adapter("first")
    model.set_adapter("default")
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize(("one", "other"), [("houlsby", "parallel"), ("parallel", "houlsby")])
def test_adapters_within_one_another_are_refused(one: str, other: str) -> None:
    model = adapted("llama", one)
    before = logits(model)
    with pytest.raises(UserError, match="lies within"):
        model.add_adapter("second", BottleneckConfig(variant=other))  # type: ignore[arg-type]
    assert torch.equal(logits(model), before)
    with pytest.raises(UserError, match="lies within"):
        adapted("llama", target_modules=["mlp", "down_proj"])


def test_a_second_adapter_never_goes_into_the_first() -> None:
    model = adapted("llama", target_modules=r".*(down_proj|bottleneck_up\.default)")
    model.add_adapter("second", BottleneckConfig(target_modules=r".*(down_proj|bottleneck_.*)", bottleneck_size=3))
    layers = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    assert len(layers) == LAYERS and all(name.endswith("mlp.down_proj") for name in layers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_is_refused_and_leaves_the_model_as_it_was(variant: str) -> None:
    model = adapted("llama", variant, modules_to_save=["embed_tokens"])  # which PEFT would unload before it stopped
    before, names = logits(model), list(model.state_dict())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match="non-linearity.*LoRA, which can be merged"):
            merge()
    with pytest.raises(UserError, match="non-linearity"):
        next(m for m in model.modules() if isinstance(m, BottleneckLayer)).merge()
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_no_gradient(variant: str, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = adapted("llama", variant).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for with_it, without in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(with_it, without, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "falcon"])
def test_generation_with_and_without_cache_agree(family: str) -> None:
    model = adapted(family)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached, plain = (model.generate(input_ids=IDS, use_cache=cache, **settings) for cache in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("family", ["llama", "glm4", "codegen", "gemma2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_rows_are_exact(family: str, variant: str) -> None:
    assert keeps_examples_apart(adapted(family, variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_base_has_a_float32_adapter(variant: str, tmp_path: Path) -> None:
    base = make_model("llama").to(torch.bfloat16)
    plain = logits(base)
    model = get_peft_model(base, BottleneckConfig(variant=variant, bottleneck_size=SIZE))  # type: ignore[arg-type]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(logits(model), plain)
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    stir(model)
    model.save_pretrained(str(tmp_path))
    reloaded = PeftModel.from_pretrained(make_model("llama").to(torch.bfloat16), str(tmp_path))
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantized_base(scheme: str, variant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    make_model("llama").save_pretrained(str(tmp_path / "base"))
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if scheme == "nf4" else {"load_in_8bit": True}

    def load() -> Any:
        quantized = AutoModelForCausalLM.from_pretrained(
            str(tmp_path / "base"), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**how)
        )
        for module in quantized.modules():  # else a CPU's own format spoils later training
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return quantized

    base = load()
    plain = logits(base)
    model = get_peft_model(base, BottleneckConfig(variant=variant, bottleneck_size=SIZE))  # type: ignore[arg-type]
    assert torch.equal(logits(model), plain)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    stir(model)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(), str(tmp_path / "adapter"))), logits(model))


def test_a_resized_embedding_is_saved_with_the_adapter(tmp_path: Path) -> None:
    def base() -> Any:
        model = make_model("llama")
        torch.manual_seed(7)
        model.resize_token_embeddings(95)
        return model

    names = ["embed_tokens", "lm_head"]
    model = get_peft_model(base(), BottleneckConfig(bottleneck_size=SIZE, modules_to_save=names))
    stir(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(base(), str(tmp_path))), logits(model))


def test_the_whole_state_loads_strictly_and_without_memory_first(tmp_path: Path) -> None:
    model = adapted("llama")
    other = adapted("llama", fresh=True)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(other), logits(model))
    model.save_pretrained(str(tmp_path))
    lean = PeftModel.from_pretrained(make_model("llama"), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(lean), logits(model))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "BOTTLENECK"
    assert settings["target_modules"] == ["self_attn.o_proj", "mlp.down_proj"]
    assert (settings["bottleneck_size"], settings["non_linearity"]) == (SIZE, "tanh")


def test_a_fresh_process_needs_one_import(tmp_path: Path) -> None:
    model = adapted("llama")
    model.save_pretrained(str(tmp_path / "adapter"))
    make_model("llama").save_pretrained(str(tmp_path / "base"))
    torch.save(logits(model), tmp_path / "logits.pt")
    program = f"""
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
try:
    PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r})
except KeyError as error:
    print(repr(error))
import ift.models.bottleneck
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
ids = torch.arange(3, 83).reshape(2, 40)[:, :12]
with torch.no_grad():
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "KeyError('BOTTLENECK')" in result.stdout
