"""What PEFT, transformers and bitsandbytes do wrong without a word: each is refused, or shown to be right here."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from quantized_twins import load
from torch.nn import functional as F
from training.families import VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from ift.errors import UserError
from ift.models.adapters import attach, check_method, count_trainable
from ift.models.calling import Calling, calling_of
from ift.models.initial_adapters import save_adapter, save_initial
from ift.models.mergeability import check_mergeable
from ift.models.merging import merge, merge_adapters
from ift.models.methods import METHODS, Method, as_method, trained
from ift.models.quantization import Quantization
from ift.models.support import check_supported
from ift.models.trained_adapters import MergedAdapter, load_adapter
from ift.training.module import InstructionModule

IDS = torch.arange(3, 83).reshape(2, 40)[:, :14]
VIRTUAL = {"num_virtual_tokens": 4}


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Of the text, without those of virtual tokens."""
    found = calling_of(model).logits(model.eval(), {"input_ids": ids, "use_cache": False}, torch.ones_like(ids).bool())
    return found.view(*ids.shape, -1)


def tied_model(family: str, *, tied: bool = True) -> Any:
    config = copy.deepcopy(make_model(family).config)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def stirred(model: Any, seed: int = 1) -> Any:
    """Give what is trained weights that matter."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def adapted(config: Any, model: Any, num_steps: int | None = None) -> Any:
    return attach(model, config if isinstance(config, Method) else as_method(config), seed=0, num_steps=num_steps)


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **settings})


def empty(family: str = "llama") -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_model(family).config)


# What is trained and how


def test_every_module_is_in_training_mode(base: Path, tmp_path: Path) -> None:
    """Trap: from_pretrained leaves evaluation mode, without dropout and without gradient checkpointing."""
    model = load(base)
    assert all(module.training for module in model.modules())
    adapted(lora(), model).save_pretrained(str(tmp_path))
    for method in ("lora", "prefix", "p_tuning", "adalora", "sadapter_h", "ia3", "full"):
        assert all(module.training for module in adapted(METHODS[method](), load(base)).modules())
    trainable = load_adapter("model.adapter", load(base), tmp_path, trainable=True)
    assert all(module.training for module in trainable.modules())
    merged = merge_adapters("model.merged_adapters", load(base), [MergedAdapter(str(tmp_path), {})], "float32")
    assert all(module.training for module in merged.modules())


@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"bitfit", "embeddings", "full", "freeze", "lisa", "ln_tuning"})
)
def test_adapters_of_a_bfloat16_base_are_in_float32(method: str) -> None:
    """Trap: small updates would vanish in bfloat16."""
    model = adapted(METHODS[method](**({"r": 4} if method == "pissa" else {})), make_model("llama").to(torch.bfloat16))
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    assert {one.dtype for one in make_model("llama").to(torch.bfloat16).parameters()} == {torch.bfloat16}
    F.cross_entropy(logits_with_gradient(model).float(), IDS.flatten()).backward()


@pytest.mark.parametrize(
    "config",
    [
        METHODS["ln_tuning"](),
        METHODS["embeddings"](),
        lora(modules_to_save=["embed_tokens"]),
        peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1),
    ],
    ids=["norms", "embeddings", "modules_to_save", "adaption_prompt"],
)
def test_what_stays_in_bfloat16_is_told(config: Any) -> None:
    """Trap: PEFT leaves copies of the base model's weights in its dtype, where small updates vanish."""
    with pytest.warns(UserWarning, match=r"model\.dtype: .* tensors that model\.adapter trains are in bfloat16"):
        adapted(config, make_model("llama").to(torch.bfloat16))
    with warnings.catch_warnings(record=True) as told:
        adapted(config, make_model("llama"))
    assert not any("rounded" in str(one.message) for one in told)


def logits_with_gradient(model: Any) -> torch.Tensor:
    keep = torch.ones_like(IDS).bool()
    return calling_of(model).logits(model.train(), {"input_ids": IDS, "use_cache": False}, keep)


SETTINGS_OF_TYPES: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "BOTTLENECK": {"bottleneck_size": 4},
    "C3A": {"block_size": 8},
    "CPT": {
        "task_type": "CAUSAL_LM",
        "cpt_token_ids": [3, 4, 5],
        "cpt_mask": [1] * 3,
        "cpt_tokens_type_mask": [1] * 3,
    },
    "FOURIERFT": {"n_frequency": 50},
    "MISS": {"r": 8},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [4, 5]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}
"""What types need on a model that is small; others go with their defaults."""


def config_of_type(name: str) -> Any:
    if name == "ADAMSS":
        pytest.importorskip("sklearn")
    known: Any = PEFT_TYPE_TO_CONFIG_MAPPING
    kind = {str(getattr(one, "value", one)): config for one, config in known.items()}[name]
    settings = SETTINGS_OF_TYPES.get(name, {})
    return kind(**settings, **(VIRTUAL if "num_virtual_tokens" in kind.__dataclass_fields__ and name != "CPT" else {}))


def all_types() -> list[str]:
    import ift.models.bottleneck  # noqa: F401 (PEFT then knows its type)

    known: Any = PEFT_TYPE_TO_CONFIG_MAPPING
    return sorted({str(getattr(one, "value", one)) for one in known} - {"XLORA", "LILY"})  # mixes adapters; see below


@pytest.mark.parametrize("name", all_types())
def test_no_adapter_sees_later_tokens_or_other_rows(name: str) -> None:
    """Trap: Lily's experts are weighed by a mean over the batch. Every type of PEFT that is here, now and later."""
    model = stirred(adapted(config_of_type(name), make_model("llama")))
    before = logits(model)
    assert float((before - logits(make_model("llama"))).abs().max()) > 1e-2, "the adapter changes nothing"
    later = IDS.clone()
    later[:, 10:] = 7
    torch.testing.assert_close(logits(model, later)[:, :10], before[:, :10], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model, IDS[:1]), before[:1], atol=2e-5, rtol=0)


def test_adalora_on_other_numbers_of_steps_is_refused() -> None:
    """Trap: AdaLoRA's course of ranks needs the number of steps of the run, which PEFT only takes on trust."""
    with pytest.raises(UserError, match=r"model\.adapter\.total_step: 10, and this run has 20 steps"):
        adapted(peft.AdaLoraConfig(total_step=10, target_modules="all-linear"), make_model("llama"), num_steps=20)
    model = adapted(METHODS["adalora"](warmup_share=0.2, final_share=0.4), make_model("llama"), num_steps=20)
    config = model.active_peft_config
    assert (config.total_step, config.tinit, config.tfinal) == (20, 4, 8)


def test_adalora_with_a_matrix_of_no_rank_comes_back_and_merges(tmp_path: Path) -> None:
    """Trap: nothing is saved of a matrix whose last rank was taken away."""
    from ift.models.adapters import RankBudget

    method = METHODS["adalora"](init_r=2, target_r=1, interval=1, target_modules=["q_proj", "v_proj", "down_proj"])
    model = adapted(method, make_model("llama"), num_steps=20)
    budget = RankBudget(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for step in range(20):
        (model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss + budget.penalty()).backward()
        optimizer.step()
        budget.after_update(step)
        optimizer.zero_grad()
    ranks = [sum(kept) for kept in model.active_peft_config.rank_pattern.values()]
    assert min(ranks) == 0 and sum(ranks) == 6
    model.save_pretrained(str(tmp_path))
    again = load_adapter("model.adapter", make_model("llama"), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(merge("RUN", again, "float32")), logits(model), atol=2e-5, rtol=0)


# Beginnings that change the base


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}], ids=str)
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "OLoRA"])
def test_an_adapter_that_changed_the_base_fits_the_untouched_one(
    start: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Trap: saved plainly, it would be computed anew when loaded, another one for other random numbers."""
    model = adapted(lora(init_lora_weights=start, **settings), make_model("llama"))
    torch.testing.assert_close(logits(model), logits(make_model("llama")), atol=2e-5, rtol=0)
    save_initial(model, tmp_path / "initial")
    expected = logits(stirred(model))
    save_adapter(model, tmp_path / "adapter", initial=tmp_path / "initial")
    torch.manual_seed(77)
    found = logits(load_adapter("model.adapter", make_model("llama"), tmp_path / "adapter"))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    assert float((expected - logits(make_model("llama"))).abs().max()) > 1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_such_an_adapter_is_not_saved_with_dora(start: str) -> None:
    """Trap: the difference of two LoRA holds no magnitudes; what was saved was off by 2.5."""
    with pytest.raises(UserError, match=r"model\.adapter\.use_dora: .* Take one of the two"):
        count_trainable(as_method(lora(init_lora_weights=start, use_dora=True)), empty())


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
def test_beginnings_from_data_are_refused(start: str) -> None:
    """Trap: without their data, EVA and LoRA-GA are plain LoRA, and nothing says so."""
    with pytest.raises(UserError, match=rf"'LoraConfig {start}' is not supported: it begins with a pass over the data"):
        supported(lora(init_lora_weights=start))


def supported(config: Any, **circumstances: Any) -> None:
    """Refuse what `ift fit` refuses on a Llama."""
    llama = make_model("llama").config
    check_supported("model.adapter", as_method(config), config, config=llama, **circumstances)


@pytest.mark.parametrize("start", ["pissa", "OLoRA"])
def test_an_unconverted_adapter_is_not_merged(start: str, tmp_path: Path) -> None:
    """Trap: it belongs to weights that nobody has; in any letter case."""
    model = adapted(lora(), make_model("llama"))
    model.active_peft_config.init_lora_weights = start
    model.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="was saved unconverted"):
        check_mergeable("RUN", tmp_path, config=make_model("llama").config)


def test_layers_that_share_their_weights_are_not_merged(tmp_path: Path) -> None:
    """Trap: PEFT's own check looks in the wrong place; each merge would change the others' layers."""
    adapted(lora(layer_replication=[[0, 2], [1, 2]]), make_model("llama")).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="layer_replication, several of its layers share"):
        check_mergeable("RUN", tmp_path, config=make_model("llama").config)


# Settings that PEFT takes for something else


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: peft.LNTuningConfig(target_modules="all-linear"), r"target_modules: 'all-linear' would train whole"),
        (lambda: peft.ShadowConfig(target_modules=["q_proj"]), "SHADOW runs with its own places only"),
        (lambda: lora(arrow_config=peft.ArrowConfig()), r"model\.adapter: LoraConfig cannot be applied to this model"),
    ],
    ids=["norms", "shadow", "arrow"],
)
def test_settings_that_would_train_something_else_are_refused(config: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(config(), make_model("llama"))


@pytest.mark.parametrize("family", ["bloom", "gpt_neox"])
def test_llama_adapters_of_other_families_are_refused(family: str) -> None:
    """Trap: adaption prompts know the attention of few families."""
    config = peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1)
    with pytest.raises(UserError, match="Unsupported model type for adaption prompt"):
        count_trainable(as_method(config), empty(family))


def test_prefixes_have_the_heads_of_the_keys(tmp_path: Path) -> None:
    """Trap: PEFT does not know Falcon's name for its heads of keys, and the first step would fail."""
    make_model("falcon").config.save_pretrained(str(tmp_path))
    assert check_method(METHODS["prefix"](**VIRTUAL), str(tmp_path)) == 4 * 2 * 2 * 8
    logits(adapted(METHODS["prefix"](**VIRTUAL), make_model("falcon")))


REFUSED_CHECKPOINTING = ("CARTRIDGE", "POLY", "PREFIX_TUNING")


@pytest.mark.parametrize("name", sorted({*all_types()} - {*REFUSED_CHECKPOINTING}))
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    """Trap: a layer that is computed again must find all that the adapter gave it."""
    found = []
    for checkpointing in (False, True):
        model = adapted(config_of_type(name), make_model("llama").train())
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        stirred(model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(2)  # PVeRA draws
        F.cross_entropy(logits_with_gradient(model), IDS.flatten()).backward()
        found.append({key: one.grad for key, one in model.named_parameters() if one.grad is not None})
    assert found[0] and found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED_CHECKPOINTING)
def test_gradient_checkpointing_is_refused_where_it_would_fail(name: str, base: Path) -> None:
    """Trap: the cache that holds the prefix is dropped, and so is Poly's task."""

    def module(checkpointing: bool) -> InstructionModule:
        adapter = config_of_type(name)
        return InstructionModule(str(base), torch.optim.SGD, adapter, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"model\.gradient_checkpointing: true does not work with"):
        module(True).check()
    module(False).check()


# Embedding and head


NAMES = {"llama": "embed_tokens", "bloom": "word_embeddings", "gpt2": "wte"}


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("end", ["embedding", "head"])
@pytest.mark.parametrize("tying", [False, True])
def test_an_adapter_on_a_shared_matrix_is_refused(family: str, end: str, tying: bool) -> None:
    """Trap: merged, it would change the other end too; off by 1.6 to 5.4, and Bloom's even when only loaded."""
    name = NAMES[family] if end == "embedding" else "lm_head"
    config = lora(target_modules=[name], ensure_weight_tying=tying)
    with pytest.raises(UserError, match=r"model\.adapter\.target_modules: this model's embedding and head are one"):
        adapted(config, tied_model(family))
    adapted(config, tied_model(family, tied=False))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("way", ["both", "both tied", "embedding", "tokens", "tokens of both", "tokens alone"])
def test_trained_vocabularies_come_back(family: str, way: str, tied: bool, tmp_path: Path) -> None:
    """Trap: what is trained of a shared matrix must be saved once, and be loaded at both ends."""
    name = NAMES[family]
    ways: dict[str, Callable[[], Any]] = {
        "both": lambda: lora(modules_to_save=[name, "lm_head"]),
        "both tied": lambda: lora(modules_to_save=[name, "lm_head"], ensure_weight_tying=True),
        "embedding": lambda: lora(modules_to_save=[name]),
        "tokens": lambda: lora(trainable_token_indices=[5, 6]),
        "tokens of both": lambda: lora(trainable_token_indices={name: [5, 6], "lm_head": [5, 6]}),
        "tokens alone": lambda: peft.TrainableTokensConfig(token_indices=[5, 6], target_modules=[name]),
    }
    model = stirred(adapted(ways[way](), tied_model(family, tied=tied)))
    model.save_pretrained(str(tmp_path))
    torch.manual_seed(9)
    again = load_adapter("model.adapter", tied_model(family, tied=tied), tmp_path)
    assert torch.equal(logits(again), logits(model))
    if way != "embedding" or not tied:
        torch.testing.assert_close(logits(merge("RUN", again, "float32")), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", NAMES)
def test_going_on_keeps_the_ends_together_or_is_refused(family: str, tmp_path: Path) -> None:
    """Trap: PEFT forgets the head's name when it saves, and of some families then trains the embedding alone."""
    config = lora(modules_to_save=[NAMES[family], "lm_head"], ensure_weight_tying=True)
    adapted(config, tied_model(family)).save_pretrained(str(tmp_path))
    if family != "llama":
        with pytest.raises(UserError, match="ensure_weight_tying: true, and only one of embedding and head"):
            adapted(trained(str(tmp_path)), tied_model(family))
        return
    model = adapted(trained(str(tmp_path)), tied_model(family)).get_base_model()
    one, two = (end.modules_to_save["default"] for end in (model.get_input_embeddings(), model.get_output_embeddings()))
    assert one.weight is two.weight and one.weight.requires_grad


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_ties_are_not_cut_against_the_settings(family: str) -> None:
    """Trap: of these families PEFT trains a copy of the embedding alone, whatever ensure_weight_tying says."""
    config = lora(modules_to_save=[NAMES[family]], ensure_weight_tying=True)
    with pytest.raises(UserError, match=r"model\.adapter\.ensure_weight_tying: true, .* Name both modules"):
        adapted(config, tied_model(family))


@pytest.mark.parametrize("way", ["modules", "tokens"])
def test_an_adapter_of_a_larger_vocabulary_is_refused(way: str, tmp_path: Path) -> None:
    """Trap: PEFT says 'size mismatch', or that an index is out of bounds."""
    larger = make_model("llama", vocabulary=VOCABULARY + 6)
    settings = {"modules": {"modules_to_save": ["embed_tokens"]}, "tokens": {"trainable_token_indices": [VOCABULARY]}}
    adapted(lora(**settings[way]), larger).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"model\.adapter: the adapter '.*' does not fit the base model"):
        load_adapter("model.adapter", make_model("llama"), tmp_path)


# Logits at supervised positions


@pytest.mark.parametrize(
    "config",
    [
        METHODS["prompt"](**VIRTUAL),
        METHODS["p_tuning"](**VIRTUAL, encoder_hidden_size=8),
        METHODS["prefix"](**VIRTUAL),
        peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1),
        lora(target_modules=["q_proj", "lm_head"]),
        lora(modules_to_save=["lm_head"]),
        lora(trainable_token_indices={"embed_tokens": [5], "lm_head": [5, 20]}),
    ],
    ids=["prompt", "p_tuning", "prefix", "adaption_prompt", "lora on the head", "saved head", "tokens"],
)
def test_logits_kept_only_are_those_of_the_whole_text(config: Any) -> None:
    """Trap: with virtual tokens the mask is shifted, and a head with an adapter is no plain matrix."""
    model = stirred(adapted(config, make_model("llama"))).eval()
    calling, inputs = calling_of(model), {"input_ids": IDS, "use_cache": False}
    keep = torch.zeros_like(IDS).bool()
    keep[0, 3:9], keep[1, 12:] = True, True
    with torch.no_grad():
        kept = calling.logits(model, inputs, keep)
        whole = Calling(False, calling.num_virtual_tokens).logits(model, inputs, keep)
        alone = model(**inputs).logits[:, -IDS.shape[1] :][keep]
    assert calling.keep_only
    torch.testing.assert_close(kept, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, alone, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2", "gemma3_text"])
def test_scaled_and_capped_logits_are_the_models(family: str) -> None:
    """Trap: these families change logits behind the head, which a shortcut around their forward would miss."""
    model = make_model(family)
    for key, value in {"logit_scale": 0.25, "logits_scaling": 3.0, "final_logit_softcapping": 2.0}.items():
        if hasattr(model.config, key):
            setattr(model.config, key, value)
            if hasattr(model, key):
                setattr(model, key, value)
    keep = torch.zeros_like(IDS).bool()
    keep[:, 5:] = True
    with torch.no_grad():
        found = calling_of(model).logits(model, {"input_ids": IDS, "use_cache": False}, keep)
        raw = model.get_output_embeddings()(model.model(input_ids=IDS, use_cache=False).last_hidden_state)[keep]
        expected = model(input_ids=IDS, use_cache=False).logits[keep]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((raw - expected).abs().max()) > 1e-2


# Quantized weights


@pytest.mark.parametrize("name", all_types())
def test_types_that_may_train_beside_4_bits_do(name: str, folders: dict[str, Path]) -> None:
    """Trap: UniLoRA gets a gradient of zero there, and nothing says so; others fail."""
    config = config_of_type(name)
    try:
        supported(config, quantization=Quantization("nf4"))
    except UserError:
        return
    model = stirred(adapted(config, load(folders["llama"], Quantization("nf4"))))
    torch.manual_seed(2)  # PVeRA draws
    before = F.cross_entropy(logits_with_gradient(model), IDS.flatten())
    before.backward()
    gradients = [(one, one.grad) for one in model.parameters() if one.requires_grad and one.grad is not None]
    assert sum(bool(gradient.any()) for _, gradient in gradients) >= len(gradients) / 2 and gradients
    with torch.no_grad():
        squares = sum(float(gradient.pow(2).sum()) for _, gradient in gradients)
        for one, gradient in gradients:
            one.add_(gradient, alpha=-1e-3 / squares)
        torch.manual_seed(2)
        after = F.cross_entropy(logits_with_gradient(model), IDS.flatten())
    # The step would lower the loss by 0.001 if it were linear; CPT scales its tokens down after the step.
    assert float(before - after) == pytest.approx(1e-3, rel=0.8 if name == "CPT" else 0.2)


def test_lily_is_refused() -> None:
    """Trap: it looks ahead, and at the other rows."""
    with pytest.raises(UserError, match="'LilyConfig' is not supported: it takes a mean over all tokens of a batch"):
        supported(peft.LilyConfig(target_modules=["q_proj"]))


def test_unilora_is_refused_on_4_bits() -> None:
    """Trap: its gradient is zero there."""
    with pytest.raises(UserError, match="'UniLoraConfig' does not train beside weights quantized with nf4"):
        supported(peft.UniLoraConfig(), quantization=Quantization("nf4"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "OLoRA", "orthogonal", "mica"])
def test_beginnings_that_read_weights_are_refused_on_4_bits(start: str) -> None:
    """Trap: they would compute with packed numbers, or fail when the weights are there; in any letter case."""
    with pytest.raises(UserError, match="does not train beside weights quantized with nf4"):
        supported(lora(init_lora_weights=start), quantization=Quantization("nf4"))
