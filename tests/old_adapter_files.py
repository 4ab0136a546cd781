"""Adapters as PEFT wrote them in 2023, beside the original modules of a checkpoint, and the same merged by hand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from original_families import Checkpoint, Tensors

MODULES: dict[str, tuple[str, ...]] = {
    "baichuan_7b": ("W_pack",),
    "baichuan2_7b": ("W_pack", "o_proj"),
    "baichuan_13b": ("W_pack", "down_proj"),
    "baichuan2_13b": ("W_pack",),
    "chatglm2": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
"""Targets of an old adapter, of the families whose modules are called otherwise here."""


@dataclass(frozen=True)
class OldAdapter:
    """An old adapter in memory, with the checkpoint that it makes of another when it is merged."""

    settings: dict[str, Any]
    tensors: Tensors
    merged: Checkpoint


def targets(checkpoint: Checkpoint, ends: Sequence[str]) -> list[str]:
    """Return the modules of a checkpoint that end with one of some names."""
    modules = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    return [module for module in modules if module.rpartition(".")[2] in ends]


def old_lora(checkpoint: Checkpoint, ends: Sequence[str], *, dora: bool = False, **settings: Any) -> OldAdapter:
    """Return a random LoRA.

    Args:
        checkpoint: beside which it was trained.
        ends: its `target_modules`.
        dora: whether it has magnitudes.
        settings: of its configuration; rank and alpha of patterns go by the last part of a module's name.
    """
    draw = torch.Generator().manual_seed(7)
    stated: dict[str, Any] = {"r": 4, "lora_alpha": 6, **settings}
    merged, tensors = dict(checkpoint.tensors), {}
    for module in targets(checkpoint, ends):
        weight = checkpoint.tensors[f"{module}.weight"]
        rank = _of(stated.get("rank_pattern"), module, default=stated["r"])
        alpha = _of(stated.get("alpha_pattern"), module, default=stated["lora_alpha"])
        first = torch.randn(rank, weight.shape[1], generator=draw) * 0.3
        second = torch.randn(weight.shape[0], rank, generator=draw) * 0.3
        scaling = alpha / rank**0.5 if stated.get("use_rslora") else alpha / rank
        changed = weight.double() + scaling * (second.double() @ first.double())
        name = f"base_model.model.{module}"
        tensors |= {f"{name}.lora_A.weight": first, f"{name}.lora_B.weight": second}
        if dora:
            magnitude = weight.norm(dim=1) * (1 + 0.2 * torch.randn(weight.shape[0], generator=draw))
            changed = magnitude.double()[:, None] * changed / changed.norm(dim=1, keepdim=True)
            tensors[f"{name}.lora_magnitude_vector"] = magnitude
        merged[f"{module}.weight"] = changed.float()
    config = {
        "base_model_name_or_path": "somewhere/else",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.1,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "target_modules": list(ends),
        "task_type": "CAUSAL_LM",
        **({"use_dora": True} if dora else {}),
        **stated,
    }
    return OldAdapter(config, tensors, replace(checkpoint, tensors=merged))


def old_ia3(checkpoint: Checkpoint, ends: Sequence[str], *, feedforward: Sequence[str]) -> OldAdapter:
    """Return a random (IA)3.

    Args:
        checkpoint: beside which it was trained.
        ends: its `target_modules`.
        feedforward: those of them whose input is scaled, not their output.
    """
    draw = torch.Generator().manual_seed(8)
    merged, tensors = dict(checkpoint.tensors), {}
    for module in targets(checkpoint, ends):
        weight, bias = f"{module}.weight", f"{module}.bias"
        rows, columns = checkpoint.tensors[weight].shape
        into = module.rpartition(".")[2] in feedforward
        scale = 1 + 0.5 * torch.randn(*((1, columns) if into else (rows, 1)), generator=draw)
        merged[weight] = checkpoint.tensors[weight] * scale
        if bias in merged and not into:
            merged[bias] = checkpoint.tensors[bias] * scale[:, 0]
        tensors[f"base_model.model.{module}.ia3_l"] = scale
    settings = {
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "feedforward_modules": list(feedforward),
        "inference_mode": True,
        "init_ia3_weights": True,
        "modules_to_save": None,
        "peft_type": "IA3",
        "target_modules": list(ends),
        "task_type": "CAUSAL_LM",
    }
    return OldAdapter(settings, tensors, replace(checkpoint, tensors=merged))


def with_values(adapter: OldAdapter, values: Tensors, **settings: Any) -> OldAdapter:
    """Return an adapter that sets tensors of the checkpoint as a whole, too: biases, or modules that it saves."""
    tensors = {**adapter.tensors, **{f"base_model.model.{name}": value for name, value in values.items()}}
    merged = replace(adapter.merged, tensors={**adapter.merged.tensors, **values})
    return OldAdapter({**adapter.settings, **settings}, tensors, merged)


def write_adapter(adapter: OldAdapter, folder: Path, *, pickled: bool = True) -> Path:
    """Write `adapter_config.json` and `adapter_model.bin`, or `.safetensors`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.settings), encoding="utf-8")
    if pickled:
        torch.save(adapter.tensors, folder / "adapter_model.bin")
    else:
        save_file(adapter.tensors, folder / "adapter_model.safetensors")
    return folder


def _of(pattern: dict[str, Any] | None, module: str, *, default: Any) -> Any:
    return (pattern or {}).get(module.rpartition(".")[2], default)
