"""A merged model computes what base model and adapter compute; what cannot be merged is known before weights load."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_llama

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import peft  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from ift.errors import UserError  # noqa: E402
from ift.models.certificate import Logits, PromptSample, compare, computing_in_float32  # noqa: E402
from ift.models.loading import read_config  # noqa: E402
from ift.models.mergeability import check_mergeable  # noqa: E402
from ift.models.merging import files_dtype, merge, write_model  # noqa: E402

VOCABULARY = 90
LINEAR = ["q_proj", "v_proj", "down_proj"]
IDS = torch.arange(2, 40)[None]
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "qwen3": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
    },
}
METHODS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=LINEAR),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=LINEAR),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=LINEAR),
    "lora with embeddings": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "modules_to_save": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, modules_to_save=["lm_head"]),
    "lora with tied embeddings": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "embed_tokens", "lm_head"], ensure_weight_tying=True
    ),
    "token indices": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, trainable_token_indices=[3, 5, 8]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=LINEAR),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=LINEAR),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=["q_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=LINEAR),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=LINEAR),
    "miss": lambda: peft.MissConfig(r=4, target_modules=LINEAR),
    "adalora": lambda: peft.AdaLoraConfig(total_step=100, target_modules=LINEAR),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
}


def make(folder: Path, model_type: str, **settings: Any) -> Path:
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **FAMILIES[model_type], **settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    return folder


def adapted(base: Path, adapter: Path, config: Any, *, dtype: str = "float32") -> Any:
    """Save an adapter whose weights are all away from their start, and load it anew, as a merge does."""
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    model.save_pretrained(str(adapter))
    again = AutoModelForCausalLM.from_pretrained(str(base), dtype=getattr(torch, dtype))
    return peft.PeftModel.from_pretrained(again, str(adapter)).requires_grad_(False).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def written(model: Any, folder: Path, *, shard_size: str = "1GB") -> Any:
    write_model(model, folder, shard_size=shard_size, stop_token_ids=[2, 7], pad_token_id=0)
    return AutoModelForCausalLM.from_pretrained(str(folder)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", METHODS)
def test_the_written_model_computes_what_base_and_adapter_do(tmp_path: Path, name: str, tied: bool) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY, tie_word_embeddings=tied, initializer_range=0.1)
    model = adapted(base, tmp_path / "adapter", METHODS[name]())
    check_mergeable("RUN", tmp_path / "adapter", config=read_config(str(base)))
    expected = logits(model)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 1e-3, "the adapter changes nothing, so nothing is tested"
    merged = written(merge("RUN", model, "float32"), tmp_path / "merged")
    assert (logits(merged) - expected).abs().max() < 1e-5
    if name == "token indices":
        assert merged.config.tie_word_embeddings == tied


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_of_other_families(tmp_path: Path, family: str, dora: bool) -> None:
    base = make(tmp_path / "base", family)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", use_dora=dora, fan_in_fan_out=family == "gpt2")
    model = adapted(base, tmp_path / "adapter", settings)
    expected = logits(model)
    merged = written(merge("RUN", model, "float32"), tmp_path / "merged")
    assert (logits(merged) - expected).abs().max() < 1e-5


def test_an_adapted_embedding_and_a_head_tied_to_it_become_two_matrices(tmp_path: Path) -> None:
    """Trap: merged in place, the change of the one would be a change of the other."""
    base = make(tmp_path / "base", "bloom", tie_word_embeddings=True)
    model = adapted(base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=["word_embeddings"]))
    expected = logits(model)
    merged = written(merge("RUN", model, "float32"), tmp_path / "merged")
    assert (logits(merged) - expected).abs().max() < 1e-5
    assert merged.config.tie_word_embeddings is False


def test_matrices_are_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY)
    AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16).save_pretrained(str(base))
    assert files_dtype(str(base)) == "bfloat16"
    model = adapted(base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=LINEAR), dtype="bfloat16")
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = (layer.base_layer.weight.float() + product * layer.scaling["default"]).bfloat16()
    merged = written(merge("RUN", model, "bfloat16"), tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged.model.layers[1].mlp.down_proj.weight, expected)


def test_shards_hold_the_whole_model(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY)
    model = adapted(base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=LINEAR))
    expected = logits(model)
    merged = written(merge("RUN", model, "float32"), tmp_path / "merged", shard_size="20KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) >= 3
    assert (logits(merged) - expected).abs().max() < 1e-5
    assert merged.generation_config.eos_token_id == [2, 7] and merged.generation_config.pad_token_id == 0


ENLARGED: dict[str, Any] = {
    "both ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both ends, kept tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "new rows": {"trainable_token_indices": list(range(VOCABULARY, VOCABULARY + 6))},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ENLARGED)
def test_an_enlarged_vocabulary_is_merged(tmp_path: Path, name: str, tied: bool) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY, tie_word_embeddings=tied)
    larger = AutoModelForCausalLM.from_pretrained(str(base))
    larger.resize_token_embeddings(VOCABULARY + 6)
    larger.save_pretrained(str(tmp_path / "larger"))
    settings = peft.LoraConfig(r=4, target_modules=LINEAR, **ENLARGED[name])
    model = adapted(tmp_path / "larger", tmp_path / "adapter", settings)
    ids = torch.arange(VOCABULARY - 10, VOCABULARY + 6)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        merged = written(merge("RUN", model, "float32"), tmp_path / "merged")
        assert merged.config.vocab_size == VOCABULARY + 6
        assert (merged(input_ids=ids).logits - expected).abs().max() < 1e-5
    before = larger.get_input_embeddings().weight[:VOCABULARY]
    if name == "new rows":
        assert torch.equal(merged.get_input_embeddings().weight[:VOCABULARY], before)


def test_not_a_number_is_no_merge(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY)
    model = adapted(base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=LINEAR))
    model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(float("inf"))
    with pytest.raises(UserError, match="NaNs detected"):
        merge("RUN", model, "float32")


def houlsby() -> Any:
    from ift.models.bottleneck import BottleneckConfig

    return BottleneckConfig()


REFUSED: dict[str, tuple[Any, str]] = {
    "prefix": (lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
    "prompt": (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
    "p_tuning": (lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
    "adaption_prompt": (
        lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1),
        "how the model computes",
    ),
    "lily": (lambda: peft.LilyConfig(r=4, target_modules=["q_proj"]), "not supported for Lily"),
    "poly": (lambda: peft.PolyConfig(target_modules=["q_proj"]), "no merge"),
    "shadow": (lambda: peft.ShadowConfig(), "input-dependent"),
    "beft without bias": (lambda: peft.BeftConfig(target_modules=["v_proj"]), "no bias"),
    "lora_bias without bias": (lambda: peft.LoraConfig(lora_bias=True, target_modules=["q_proj"]), "no bias"),
    "bottleneck": (houlsby, r"cannot be merged: a bottleneck adapter [^:]*\(target_modules\)\.$"),
    "unconverted": (
        lambda: peft.LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"]),
        "unconverted",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_its_settings(tmp_path: Path, name: str) -> None:
    """From the configuration alone: there are no weights in the folder."""
    make_config, reason = REFUSED[name]
    base = make_llama(tmp_path / "base", VOCABULARY)
    make_config().save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=reason):
        check_mergeable("RUN", tmp_path / "adapter", config=read_config(str(base)))


def test_beft_merges_where_there_are_biases(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", VOCABULARY, attention_bias=True)
    model = adapted(base, tmp_path / "adapter", peft.BeftConfig(target_modules=["v_proj"]))
    check_mergeable("RUN", tmp_path / "adapter", config=read_config(str(base)))
    expected = logits(model)
    assert (logits(merge("RUN", model, "float32")) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_computing_in_float32_block_by_block_equals_a_float32_model(tmp_path: Path, family: str) -> None:
    base = make(tmp_path / "base", family)
    small = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16).eval()
    names = {name: value.dtype for name, value in small.state_dict().items()}
    rounded = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16).float().eval()
    with computing_in_float32(small):
        found = logits(small)
    assert found.dtype == torch.float32 and torch.equal(found, logits(rounded))
    assert {name: value.dtype for name, value in small.state_dict().items()} == names


def test_comparisons_are_those_of_a_hand_written_loop(tmp_path: Path) -> None:
    one = AutoModelForCausalLM.from_pretrained(str(make_llama(tmp_path / "one", VOCABULARY))).eval()
    other = AutoModelForCausalLM.from_pretrained(str(tmp_path / "one")).eval()
    with torch.no_grad():
        other.lm_head.weight += torch.randn(other.lm_head.weight.shape) * 0.02
    samples = [PromptSample([3, 4, 5], [6, 7, 8, 9]), PromptSample([10, 11], [])]
    measured = [
        Logits(tmp_path / str(number), model, samples, float32=True) for number, model in enumerate((one, other))
    ]
    found = compare(*measured, names=("one", "other"), dtype="float32")
    gaps, divergences, changed = [], [], 0
    # The response's four tokens are predicted at the positions 2 to 5, and the end of the second prompt at 1.
    for ids, positions in (([3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 5]), ([10, 11], [1])):
        with torch.no_grad():
            p, q = (model(input_ids=torch.tensor([ids])).logits[0].double() for model in (one, other))
        for position in positions:
            gaps.append((p[position] - q[position]).abs().max())
            probability = p[position].softmax(-1)
            divergences.append((probability * (probability.log() - q[position].softmax(-1).log())).sum())
            changed += int(p[position].argmax() != q[position].argmax())
    assert found.num_tokens == 5 and found.changed_tokens == changed
    assert found.max_logit_gap == pytest.approx(float(max(gaps)), rel=1e-4)
    assert found.mean_kl == pytest.approx(float(sum(divergences) / 5), rel=1e-4)
    assert found.max_kl == pytest.approx(float(max(divergences)), rel=1e-4)
