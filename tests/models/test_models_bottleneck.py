"""Bottleneck adapters: places, widths, the papers' formulas, and everything PEFT does with an adapter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import ROOT
from torch.nn import functional as F

sys.path.insert(0, str(ROOT / "tests" / "training"))  # the factories of tiny models
from families import make_model

from ift.errors import UserError
from ift.models.bottleneck import BottleneckConfig
from ift.models.bottleneck_layer import BottleneckLayer
from ift.models.bottleneck_sites import SITES
from ift.models.loading import count_parameters
from ift.models.packing import keeps_examples_apart

VARIANTS = ("houlsby", "pfeiffer", "parallel")
FEW = ("llama", "bloom", "gpt2", "glm4")
WIDTH, SIZE, LAYERS = 32, 6, 2
IDS = torch.arange(3, 83).reshape(2, 40)[:, :12]


def has_variant(family: str, variant: str) -> bool:
    return SITES[family].of(variant) is not None  # type: ignore[arg-type]


CASES = [(family, variant) for family in sorted(SITES) for variant in VARIANTS if has_variant(family, variant)]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.eval()
    result: torch.Tensor = model(input_ids=IDS, use_cache=False).logits.float()
    return result


def adapted(family: str, variant: str = "houlsby", *, fresh: bool = False, **settings: Any) -> Any:
    """Return a tiny model with an adapter, whose weights are drawn wide so that it matters."""
    config = BottleneckConfig(variant=variant, bottleneck_size=SIZE, **settings)  # type: ignore[arg-type]
    model = get_peft_model(make_model(family), config)
    if not fresh:
        stir(model)
    return model


def stir(model: Any, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def by_hand(family: str, folder: Path) -> torch.Tensor:
    """Compute from the saved files alone, with hooks on the plain model, what the adapted one should give."""
    from safetensors.torch import load_file

    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = {
        key.removeprefix("base_model.model."): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    places = {key.partition(".bottleneck_")[0] for key in tensors}
    model = make_model(family)

    def hook_of(place: str) -> Any:
        part = {
            key.rpartition(place + ".bottleneck_")[2]: value
            for key, value in tensors.items()
            if key.startswith(place + ".")
        }

        def hook(module: Any, args: Any, kwargs: Any, result: Any) -> Any:
            output = result[0] if isinstance(result, tuple) else result
            given = args[0] if args else kwargs["hidden_states"]
            source = given if settings["variant"] == "parallel" else output
            hidden = torch.tanh(source @ part["down.weight"].T + part["down.bias"])
            change = (hidden @ part["up.weight"].T + part["up.bias"]) * settings["scaling"]
            return (output + change, *result[1:]) if isinstance(result, tuple) else output + change

        return hook

    for place in places:
        model.get_submodule(place).register_forward_hook(hook_of(place), with_kwargs=True)
    return logits(model)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_every_family_begins_unchanged_has_the_formulas_size_and_computes_as_by_hand(
    family: str, variant: str, tmp_path: Path
) -> None:
    plain = make_model(family)
    model = adapted(family, variant, fresh=True, scaling=2.0)
    assert torch.equal(logits(model), logits(plain))
    per_layer = 2 if variant == "houlsby" else 1
    assert count_parameters(model)["trainable"] == LAYERS * per_layer * (2 * WIDTH * SIZE + SIZE + WIDTH)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".bottleneck_" in name for name in trained)
    stir(model)
    changed = logits(model)
    assert (changed - logits(plain)).abs().max() > 0.01
    model.save_pretrained(str(tmp_path))
    reloaded = PeftModel.from_pretrained(plain, str(tmp_path))
    assert torch.equal(logits(reloaded), changed)
    assert (by_hand(family, tmp_path) - changed).abs().max() <= 1e-6 * changed.abs().max().clamp(min=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "settings", [{"new_decoder_architecture": True}, {"parallel_attn": False}, {"alibi": True}], ids=str
)
def test_falcons_of_all_builds_begin_unchanged_and_train(settings: dict[str, bool], variant: Any) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"vocab_size": 90, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    base = FalconForCausalLM(FalconConfig(**sizes, num_kv_heads=2, **settings))
    plain = logits(base)
    model = get_peft_model(base, BottleneckConfig(variant=variant, bottleneck_size=SIZE, init="near_identity"))
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert not torch.equal(logits(model), plain)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_two_adapters_at_once_follow_one_another() -> None:
    layer = BottleneckLayer(torch.nn.Linear(5, 4), "one", config=BottleneckConfig(init="near_identity"), hidden_size=0)
    layer.update_layer("two", BottleneckConfig(variant="parallel", init="near_identity", bottleneck_size=3))
    layer.set_adapter(["one", "two"])
    x = torch.randn(3, 5)
    downs, ups = layer.bottleneck_down, layer.bottleneck_up
    expected = layer.base_layer(x)
    expected = expected + ups["one"](torch.tanh(downs["one"](expected)))
    expected = expected + ups["two"](torch.tanh(downs["two"](x)))
    torch.testing.assert_close(layer(x), expected)


def test_one_adapter_per_example_is_refused() -> None:
    with pytest.raises(UserError, match="adapter_names: .*set_adapter"):
        adapted("llama")(input_ids=IDS, adapter_names=["default", "__base__"])


def test_the_first_gradient_reaches_every_adapter() -> None:
    for variant in VARIANTS:
        model = adapted("llama", variant, fresh=True)
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        ups = [p.grad for n, p in model.named_parameters() if "bottleneck_up" in n and n.endswith("weight")]
        assert ups and all(grad is not None and grad.abs().max() > 0 for grad in ups)


def test_widths_are_those_of_each_target() -> None:
    model = adapted("llama", "parallel", target_modules=["q_proj", "k_proj", "v_proj", "gate_proj"])
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BottleneckLayer) and ".0." in name}
    shapes = {name.rpartition(".")[2]: tuple(m.bottleneck_up["default"].weight.shape) for name, m in layers.items()}
    assert shapes == {"q_proj": (32, 6), "k_proj": (16, 6), "v_proj": (16, 6), "gate_proj": (48, 6)}
    expected = sum(SIZE * WIDTH + SIZE + out * SIZE + out for out in (32, 16, 16, 48)) * LAYERS
    assert count_parameters(model)["trainable"] == expected
    sequential = adapted("llama", "pfeiffer", target_modules=["k_proj", "gate_proj"], use_bias=False)
    assert count_parameters(sequential)["trainable"] == LAYERS * 2 * SIZE * (16 + 48)
    assert torch.isfinite(logits(sequential)).all()


@pytest.mark.parametrize("target", ["self_attn", "mlp", "input_layernorm"])
@pytest.mark.parametrize("variant", ["houlsby", "parallel"])
def test_whole_sublayers_can_be_named(target: str, variant: str, tmp_path: Path) -> None:
    model = adapted("llama", variant, target_modules=[target])
    model.save_pretrained(str(tmp_path))
    assert (by_hand("llama", tmp_path) - logits(model)).abs().max() < 1e-5


def test_layers_and_exclusions_are_kept_to() -> None:
    model = adapted("llama", layers_to_transform=[1], exclude_modules=["o_proj"])
    places = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    assert places == ["base_model.model.model.layers.1.mlp.down_proj"]


def test_a_learned_scale_is_trained_and_saved(tmp_path: Path) -> None:
    model = adapted("llama", "parallel", scaling="learned")
    assert count_parameters(model)["trainable"] == LAYERS * (2 * WIDTH * SIZE + SIZE + WIDTH + 1)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(make_model("llama"), str(tmp_path))), logits(model))


@pytest.mark.parametrize("non_linearity", ["tanh", "relu", "gelu", "silu", "sigmoid"])
def test_non_linearities_and_dropout(non_linearity: Any) -> None:
    config = BottleneckConfig(non_linearity=non_linearity, bottleneck_size=SIZE, dropout=0.5, init="near_identity")
    layer = BottleneckLayer(torch.nn.Linear(5, 4), "default", config=config, hidden_size=0)
    x = torch.randn(3, 5)
    base, down, up = layer.base_layer, layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    assert 0 < up.weight.abs().max() < 0.2
    expected = base(x) + up(getattr(F, non_linearity)(down(base(x))))
    torch.testing.assert_close(layer.eval()(x), expected)
    torch.manual_seed(0)
    assert not torch.equal(layer.train()(x), expected)


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
    model = adapted("llama", variant)
    before = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match="non-linearity.*LoRA, which can be merged"):
            merge()
    with pytest.raises(UserError, match="non-linearity"):
        next(m for m in model.modules() if isinstance(m, BottleneckLayer)).merge()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("family", "variant"), [("llama", "houlsby"), ("bloom", "parallel"), ("codegen", "pfeiffer")])
def test_twenty_steps_lower_the_loss_of_the_adapter_alone(family: str, variant: str) -> None:
    model = adapted(family, variant, fresh=True, dropout=0.1).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(20):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


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


def test_parameters_are_counted_on_a_model_without_weights() -> None:
    model = get_peft_model(make_model("llama").to("meta"), BottleneckConfig(bottleneck_size=SIZE))
    assert count_parameters(model)["trainable"] == LAYERS * 2 * (2 * WIDTH * SIZE + SIZE + WIDTH)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "houlsbi"}, "variant: unknown name 'houlsbi'. Did you mean 'houlsby'"),
        ({"non_linearity": "tan"}, "non_linearity: unknown name 'tan'. Did you mean 'tanh'"),
        ({"init": "zero"}, "init: unknown name 'zero'"),
        ({"bottleneck_size": 0}, "bottleneck_size: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"scaling": "learnt"}, "scaling: 'learnt'"),
        ({"scaling": 0}, "scaling: 0"),
        ({"target_modules": "all-linear"}, "target_modules: 'all-linear' is for methods"),
        ({"target_modules": ".*mlp", "layers_to_transform": 1}, "layers_to_transform: goes with a list"),
        ({"layers_pattern": "layers"}, "layers_pattern: needs layers_to_transform"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BottleneckConfig(**settings)


def test_models_without_a_place_are_refused_with_what_to_name() -> None:
    with pytest.raises(UserError, match=r"variant: 'parallel' has no place in 'opt' models.*self_attn.out_proj.*fc2"):
        adapted("opt", "parallel")
    with pytest.raises(UserError, match=r"target_modules: no places.*'biogpt'.*self_attn.out_proj.*Known families"):
        adapted("biogpt")
    named = adapted("biogpt", target_modules=["self_attn.out_proj", "fc2"], fresh=True)
    assert torch.equal(logits(named), logits(make_model("biogpt")))
    with pytest.raises(UserError, match="target_modules: a SiLUActivation can have no"):
        adapted("llama", target_modules=["act_fn"])


def test_bloom_that_reads_its_matrices_past_the_adapter_is_refused() -> None:
    model = make_model("bloom")
    model.config.slow_but_exact, model.config.pretraining_tp = True, 2
    with pytest.raises(UserError, match="slow_but_exact"):
        get_peft_model(model, BottleneckConfig())
