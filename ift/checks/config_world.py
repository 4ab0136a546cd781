"""The world of a configuration: a tiny model of its family, its tokenizer and template, and its method, made small."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.checks.tiny_data import training_rows, write_lines
from ift.checks.tiny_world import ADAMW, NUM_ROWS, longest_example, settings, write_random
from ift.checks.workbench import Recipe, World, merged
from ift.data.enlarged_tokenizer import EnlargedTokenizer, enlarged_tokenizer
from ift.data.templates import Template
from ift.errors import UserError

# fmt: off
# Largest values in the small model, by the names of configurations.
_SIZES: Mapping[str, int] = {
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "n_heads"], 4),
    **dict.fromkeys(["head_dim", "d_kv", "kv_channels", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "inner_hidden_size", "n_inner", "ffn_hidden_size"], 64),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 12),
    **dict.fromkeys(["sliding_window", "window_size", "attention_window"], 24),
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "rotary_dim": 4,
    "max_window_layers": 1,
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_METHOD_SIZES: Mapping[str, int] = {
    **dict.fromkeys(["r", "target_r", "bottleneck_size", "num_virtual_tokens", "adapter_len", "u"], 4),
    **dict.fromkeys(["oft_block_size", "boft_block_size", "block_size", "effective_rank"], 4),
    **dict.fromkeys(["encoder_hidden_size", "projection_size", "n_frequency", "num_vectors"], 16),
    "init_r": 6, "num_layers": 1, "period": 2, "interval": 2, "topk": 2, "vector_length": 8,
}
# fmt: on
_WHOLE = ("full", "freeze", "embeddings", "lisa", "bitfit")
"""Methods that train weights of the base model itself."""
_TEXTS = ("template", "template_options", "train_on")
_DATA = {"deduplicate": "none", "benchmarks": None, "text_blocks": False, "mixing": "repeats"}
_MANY_ROWS = 20_000


@dataclass(frozen=True)
class ConfigWorld:
    """What a configuration is checked on."""

    world: World
    recipe: Recipe
    strategy: str
    """That two ranks take."""
    texts: Mapping[str, Any]
    """Settings of the data that decide texts and labels."""
    tokenizer: Path
    """Folder of its tokenizer."""
    notes: tuple[str, ...]
    """What was changed to make it small, or left out."""


def make_config_world(root: Path, config: Mapping[str, Any]) -> ConfigWorld:
    """Make a small world that is like a run.

    Args:
        root: new folder for all of it.
        config: of the run, resolved, as plain values.

    Raises:
        UserError: a base model that is not there, or that cannot be made small.
    """
    notes: list[str] = []
    model, data = config["model"], config["data"]
    base, tokenizer = root / "base", root / "tokenizer"
    num_rows = make_tiny_base(base, str(model["base"]), notes)
    enlarged_tokenizer(str(base), _enlarged(model.get("vocabulary"))).save_pretrained(str(tokenizer))
    texts = {name: data[name] for name in _TEXTS if data.get(name) is not None}
    notes += [f"data.{name} is left out" for name, usual in _DATA.items() if data.get(name, usual) not in (usual, None)]
    rows = write_lines(root / "rows.jsonl", training_rows(NUM_ROWS))
    longest = longest_example(root, tokenizer, rows, **data_options(texts))
    ready = merged(settings(root, base, rows, longest), {"data": texts})
    ready["model"] |= small_model(model, notes)
    if num_rows > _MANY_ROWS:  # the head takes most of the time
        ready["trainer"]["max_epochs"] = 2
    method = small_method(model.get("adapter"), notes)
    name = _name(method)
    recipe = Recipe(
        name,
        {"model": {"adapter": method}},
        quantized=model.get("quantization") is not None or name == "qlora",
        whole=name in _WHOLE,
        resumed_with=model.get("optimizer") or ADAMW,
    )
    world = World(root, ready, longest, {"its own": tokenizer}, {_model_type(base): base})
    return ConfigWorld(world, recipe, _strategy(config.get("trainer", {}), notes), texts, tokenizer, tuple(notes))


def _enlarged(vocabulary: Mapping[str, Any] | None) -> EnlargedTokenizer | None:
    if vocabulary is None:
        return None
    return EnlargedTokenizer(vocabulary.get("tokenizer"), vocabulary.get("special_tokens"))


def data_options(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the data as the data module takes them."""
    template = texts.get("template", "alpaca")
    return {**texts, "template": Template(**template) if isinstance(template, Mapping) else template}


def make_tiny_base(folder: Path, base: str, notes: list[str]) -> int:
    """Write a small model of the same class with the same tokenizer, and return the rows of its embedding."""
    from ift.data.encoding import load_tokenizer
    from ift.hub import check_base
    from ift.models.families import register_own_classes
    from ift.models.loading import read_config

    check_base("model.base", base)
    known = read_config(base)
    if known is None:
        raise UserError(f"model.base: transformers cannot read the config of '{base}'.")
    register_own_classes()
    tokenizer = load_tokenizer("model.base", base)
    described = known.to_dict()
    if described.pop("quantization_config", None) is not None:
        notes.append("the base model's own quantization is left out")
    ids = [value for name, value in described.items() if name.endswith("_token_id") and isinstance(value, int)]
    rows = min(int(known.get_text_config(decoder=True).vocab_size), max(len(tokenizer), *[one + 1 for one in ids], 1))
    try:
        small = type(known).from_dict(smaller(described) | {"vocab_size": rows, "dtype": "float32"})
        write_random(small, folder)
    except Exception as error:  # a class may ask for any relation between its sizes
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.base: no small model could be made of the config of '{base}': {reason}") from error
    tokenizer.save_pretrained(str(folder))
    return rows


def smaller(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with small sizes and all else as it is."""
    layers, heads = (next((config[name] for name in names if config.get(name)), 0) for names in (_LAYERS, _HEADS))
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("_config"):
            result[name] = smaller(value)
        elif name in _KEY_VALUE_HEADS and isinstance(value, int):
            result[name] = 4 if value == heads else 1 if value == 1 else 2
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            result[name] = min(value, _SIZES[name])
        elif isinstance(value, list) and layers and len(value) == layers:
            result[name] = _two_kinds(value)
        else:
            result[name] = copy.deepcopy(value)
    return result


def _two_kinds(layers: list[Any]) -> list[Any]:
    """Return two entries of a list with one for each layer, of different kinds where there are."""
    other = next((one for one in layers if one != layers[0]), layers[-1])
    return [copy.deepcopy(layers[0]), copy.deepcopy(other)]


def small_model(model: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the settings of the model that a check takes over, beside its method."""
    kept = ("quantization", "rope", "vocabulary", "gradient_checkpointing", "attention", "schedule")
    result = {name: copy.deepcopy(model[name]) for name in kept if model.get(name) is not None}
    if str(model.get("attention") or "").startswith("flash"):
        del result["attention"]
        notes.append(f"model.attention {model['attention']} needs a GPU and bfloat16; checked with the default instead")
    if model.get("dtype") not in (None, "float32"):
        notes.append(f"model.dtype {model['dtype']} is float32 here, so that a deviation is a mistake and no rounding")
    for name in ("merged_adapters", "budget", "compile", "kernels"):
        if model.get(name) and model[name] != "auto":
            notes.append(f"model.{name} is left out")
    return result


def small_method(adapter: Any, notes: list[str]) -> Any:
    """Return a method of the same class with small sizes and without dropout, which follows the cut of a step."""
    if adapter is None:
        return None
    if _name(adapter) == "trained":
        adapter = _fresh(adapter["init_args"]["folder"], notes)
    given = {key: copy.deepcopy(value) for key, value in (adapter.get("init_args") or {}).items() if value is not None}
    for key in ("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"):
        if given.pop(key, None):
            notes.append(f"model.adapter.{key} is left out")
    for key, value in given.items():
        if key in _METHOD_SIZES and isinstance(value, int) and not isinstance(value, bool):
            given[key] = min(value, _METHOD_SIZES[key])
        elif key.endswith("dropout"):
            given[key] = 0.0
    return {"class_path": adapter["class_path"], "init_args": given}


def _fresh(folder: str, notes: list[str]) -> dict[str, Any]:
    """Return a fresh adapter of the class of a trained one that is gone on with."""
    from peft import PeftConfig

    from ift.models.trained_adapters import adapter_folder

    before = PeftConfig.from_pretrained(str(adapter_folder("model.adapter", folder)))
    notes.append(f"model.adapter: a fresh {type(before).__name__} stands for the trained one that is gone on with")
    found = {key: getattr(before, key, None) for key in ("r", "lora_alpha", "target_modules")}
    given = {key: sorted(value) if isinstance(value, set) else value for key, value in found.items()}
    return {"class_path": f"{type(before).__module__}.{type(before).__name__}", "init_args": given}


def _strategy(trainer: Mapping[str, Any], notes: list[str]) -> str:
    from ift.training.strategies import STRATEGIES

    named = trainer.get("strategy") or "auto"
    named = named if isinstance(named, str) else str(named["class_path"]).rpartition(".")[2]
    if named in ("auto", "ddp", "DDPStrategy", "SingleDeviceStrategy"):
        return "ddp"
    if named not in STRATEGIES or named.startswith("deepspeed"):
        notes.append(f"trainer.strategy {named} does not run on the CPU; two ranks are checked with ddp instead")
        return "ddp"
    return named


def _name(adapter: Any) -> str:
    return "full" if adapter is None else str(adapter["class_path"]).rpartition(".")[2]


def _model_type(folder: Path) -> str:
    import json

    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
