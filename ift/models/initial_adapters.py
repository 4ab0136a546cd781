"""Adapters that begin with a part of the base model's weights (PiSSA and its like), and what is saved of them.

Such a start is taken out of the weights, so that nothing changes at first. What was trained is the difference from it,
a LoRA of twice the rank on the untouched base model; the start is kept beside the run, to subtract it at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, load_peft_weights

from ift.errors import UserError

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Beginnings of LoRA's `init_lora_weights` that subtract the adapter's first value from the base model's weights."""
_CLOSE = 1e-4
"""Share of a start's size by which another machine may compute it otherwise; rounding is far below."""

_NO_EMBEDDINGS: dict[str, Any] = {"save_embedding_layers": False}
"""PEFT would save whole matrices of the base model where its config states another size than the files' own, as that of
an enlarged vocabulary or of a checkpoint in another layout. The base model is made again as it was instead."""


def changes_base(config: Any) -> bool:
    """Whether attaching a fresh adapter takes its first value out of the base model's weights."""
    start = config.init_lora_weights if isinstance(config, LoraConfig) else None
    return isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE)


def initial_values(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of a fresh adapter's weights on the CPU, before a checkpoint replaces them."""
    values = get_peft_model_state_dict(model, state_dict=model.state_dict())
    return {name: value.detach().to("cpu", copy=True) for name, value in values.items()}


def save_initial(model: Any, folder: Path, *, values: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save a fresh adapter that changed the base model, for `save_adapter`; one that is saved already is only compared.

    Args:
        model: a `PeftModel`.
        folder: where to.
        values: of `initial_values`, where the model's own are no longer those.

    Raises:
        UserError: the folder holds another start than was taken out of this model's weights.
    """
    if (folder / "adapter_config.json").is_file():
        _check_same(folder, values if values is not None else initial_values(model))
        return
    config: Any = model.active_peft_config
    start, config.init_lora_weights = config.init_lora_weights, True
    try:
        state = {} if values is None else {"state_dict": dict(values)}
        model.save_pretrained(str(folder), **_NO_EMBEDDINGS, **state)
    finally:
        config.init_lora_weights = start


def _check_same(folder: Path, values: Mapping[str, torch.Tensor]) -> None:
    """Refuse to go on where an approximate start came out otherwise, as on another kind of device."""
    saved = load_peft_weights(str(folder), device="cpu")
    for name in saved:
        if ".lora_A." not in name:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        # Signs of singular vectors may differ; the product is what was taken out.
        before, now = (one[other].float() @ one[name].float() for one in (saved, values))
        if torch.linalg.norm(now - before) > _CLOSE * torch.linalg.norm(before):
            raise UserError(
                f"--ckpt_path: the adapter of this run began with other weights ('{folder}') than are computed now, so "
                "the base model is not the one that it was trained beside. Resume on the kind of machine where it "
                "began, or begin a new run; without num_iterations (pissa), the start is the same everywhere."
            )


def save_adapter(model: Any, folder: Path, *, initial: Path | None = None) -> None:
    """Save a trained adapter in PEFT's layout, such that it fits the untouched base model.

    Args:
        model: a `PeftModel`.
        folder: new.
        initial: of `save_initial`, where the adapter changed the base model; what is saved is then the difference of
            the two, a LoRA of twice the rank.
    """
    if not changes_base(model.active_peft_config):
        model.save_pretrained(str(folder), **_NO_EMBEDDINGS)
        return
    assert initial is not None
    options: dict[str, Any] = {"path_initial_model_for_weight_conversion": str(initial)}
    model.save_pretrained(str(folder), **_NO_EMBEDDINGS, **options)
