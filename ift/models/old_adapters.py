"""Adapters that were trained on the modules of original code (`W_pack`, `query_key_value`), for the native modules.

Exact: of a fused matrix W + B A, rows belong to queries, keys and values, so each part has its rows of B and the whole
of A; one rank, one scaling. Vectors of (IA)3 and DoRA have an entry per row, biases too, and are cut the same way.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ift.errors import UserError
from ift.models.families import FAMILIES
from ift.models.families.naming import Naming
from ift.models.families.normalized_head import NormalizedHead
from ift.models.mergeability import CONVERTED_STARTS

PREFIX = "base_model.model."
"""Of all names in an adapter's file."""
_NAME = re.compile(r"(?P<module>.+?)\.(?P<rest>(?:lora_|ia3_l|base_layer\.|modules_to_save\.|weight$|bias$).*)")
_WHOLE = ("lora_A.weight", "lora_embedding_A", "lora_embedding_B")
_BY_ROWS = (
    "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight", "base_layer.bias", "bias",
    "weight",
)  # fmt: skip
_OF_TARGETS = ("lora_A.weight", "lora_embedding_A", "ia3_l")
"""One of these stands for each module that is adapted."""
_OF_SAVED = ("weight", "bias")
_UNKNOWN_HERE = (
    "alora_invocation_tokens", "arrow_config", "enable_lora", "fan_in_fan_out", "kasa_config", "layer_replication",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
    "velora_config",
)  # fmt: skip
"""Settings of PEFT that mean something else on parts than on the whole, or that name what the parts do not have."""
_GONE = ("enable_lora", "merge_weights", "layers_to_transform", "layers_pattern", "exclude_modules", "auto_mapping")
"""Settings that the native adapter has no need of: its modules are named one by one where their ends do not do."""

SavedHead = Literal["as it is", "divided", "unknown"]
"""What becomes of a trained head: the rows of a Baichuan2's have to be divided by their lengths for a plain layer."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's folder, read."""

    settings: dict[str, Any]
    """Of `adapter_config.json`."""
    tensors: dict[str, torch.Tensor]


def module_of(name: str) -> str | None:
    """Return the module that a tensor of an adapter's file is for; `None` for names that are not PEFT's."""
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    return match["module"] if match else None


def naming_for(names: Iterable[str], model: nn.Module) -> Naming | None:
    """Return whose original modules an adapter was trained on; `None` where its names are this model's own.

    Args:
        names: of the tensors in its file.
        model: that it is to be put on.
    """
    modules = {module for name in names if (module := module_of(name)) is not None}
    own = {name for name, _ in model.named_modules()}
    for naming in {id(family.naming): family.naming for family in FAMILIES}.values():
        renamed = {module: naming.native(module) for module in modules if naming.native(module) != (module,)}
        if renamed and all(part in own for parts in renamed.values() for part in parts):
            return naming
    return None


def saved_head(model: Any, naming: Naming) -> SavedHead:
    """Return what becomes of a trained head on a model, as far as the model itself can tell."""
    if isinstance(model.get_output_embeddings(), NormalizedHead):
        return "as it is"
    normalized = any(family.normalized_head for family in FAMILIES if family.naming is naming)
    return "unknown" if normalized else "as it is"


def native_adapter(
    key: str, adapter: StoredAdapter, naming: Naming, *, model: nn.Module, head: SavedHead
) -> StoredAdapter:
    """Return an adapter for the native modules that computes the same as one for the original modules.

    Args:
        key: names the adapter, for errors.
        adapter: as it was trained.
        naming: of the original modules.
        model: with the native modules; weights are not looked at.
        head: what becomes of a trained head.

    Raises:
        UserError: a kind or a setting of which no exact counterpart is known, or an adapter of another model.
    """
    _check(key, adapter)
    tensors: dict[str, torch.Tensor] = {}
    targets: dict[str, str] = {}
    saved: dict[str, None] = {}
    for name, tensor in adapter.tensors.items():
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        rest = re.sub(r"\.default(?=\.|$)", "", match["rest"]).removeprefix("modules_to_save.") if match else ""
        if match is None or rest not in (*_WHOLE, *_BY_ROWS, *_OF_TARGETS):
            raise UserError(f"{key}: what '{name}' in its file means is not known, so it is not converted.")
        parts = naming.native(match["module"])
        found = [_module(key, model, part, name) for part in parts]
        for part, piece in zip(parts, _pieces(key, name, rest, tensor, modules=found), strict=True):
            tensors[f"{PREFIX}{part}.{rest}"] = piece
            targets |= {part: match["module"]} if rest in _OF_TARGETS else {}
            saved |= {part: None} if rest in _OF_SAVED and _is_saved(adapter, match["module"]) else {}
    _rename_biases(tensors, targets)
    if "lm_head" in saved:
        _settle_head(key, tensors, head)
    _check_all_saved(key, adapter, naming, saved)
    return StoredAdapter(_settings(key, adapter, tensors, targets=targets, saved=list(saved), model=model), tensors)


def _check(key: str, adapter: StoredAdapter) -> None:
    settings = adapter.settings
    kind = settings.get("peft_type")
    merged = "Merge it with the software that it was trained with, and give the merged folder to ift convert."
    if prefixes := [name for name in adapter.tensors if "prefix_encoder" in name]:
        raise UserError(
            f"{key}: '{prefixes[0]}' is a trained prefix (p-tuning v2) of the original code, not an adapter."
        )
    if kind not in ("LORA", "IA3"):
        raise UserError(f"{key}: a {kind} adapter on modules of the original code has no known counterpart. {merged}")
    for name in _UNKNOWN_HERE:
        if settings.get(name):
            raise UserError(f"{key}: {name} {settings[name]}, which has no exact counterpart on the parts. {merged}")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CONVERTED_STARTS):
        raise UserError(
            f"{key}: it began with init_lora_weights '{start}', which changed the base weights, and was saved without "
            f"being converted to a plain LoRA. {merged}"
        )


def _module(key: str, model: nn.Module, name: str, tensor: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"{key}: '{tensor}' is for a module '{name}' that the base model does not have.") from None


def _pieces(key: str, name: str, rest: str, tensor: torch.Tensor, *, modules: list[Any]) -> list[torch.Tensor]:
    """Return what of a tensor each native module gets."""
    if len(modules) == 1:
        return [tensor]
    # (IA)3 scales what goes into a feed-forward module, `(1, in)`, and what comes out of others, `(out, 1)`.
    if rest in _WHOLE or (rest == "ia3_l" and tensor.shape[0] == 1):
        return [tensor.clone() for _ in modules]
    rows = [int(module.out_features) for module in modules]
    if tensor.shape[0] != sum(rows):
        raise UserError(
            f"{key}: '{name}' has {tensor.shape[0]} rows, and the base model's modules have {rows}. It is the adapter "
            "of another model."
        )
    return [piece.clone() for piece in torch.split(tensor, rows)]


def _is_saved(adapter: StoredAdapter, module: str) -> bool:
    return any(module.endswith(name) for name in adapter.settings.get("modules_to_save") or ())


def _rename_biases(tensors: dict[str, torch.Tensor], targets: Mapping[str, str]) -> None:
    """Call the trained biases of adapted modules as PEFT does today; it used to leave out the layer inside."""
    for part in targets:
        if (bias := tensors.pop(f"{PREFIX}{part}.bias", None)) is not None:
            tensors[f"{PREFIX}{part}.base_layer.bias"] = bias


def _settle_head(key: str, tensors: dict[str, torch.Tensor], head: SavedHead) -> None:
    if head == "unknown":
        raise UserError(
            f"{key}: its modules_to_save hold a trained head, and the base model does not say whether it is of a "
            "Baichuan2, whose heads have rows of length 1. Convert it: ift convert ADAPTER DST --base BASE --family "
            "NAME, where NAME is that of the original model."
        )
    if head == "divided":
        name = f"{PREFIX}lm_head.weight"
        tensors[name] = F.normalize(tensors[name].float()).to(tensors[name].dtype)


def _check_all_saved(key: str, adapter: StoredAdapter, naming: Naming, saved: Mapping[str, None]) -> None:
    for name in adapter.settings.get("modules_to_save") or ():
        if not any(naming.original(one)[0].endswith(name) for one in saved):
            raise UserError(f"{key}: modules_to_save names '{name}', and its file holds no weights of it.")


def _settings(
    key: str,
    adapter: StoredAdapter,
    tensors: Mapping[str, torch.Tensor],
    *,
    targets: Mapping[str, str],
    saved: list[str],
    model: nn.Module,
) -> dict[str, Any]:
    old = adapter.settings
    new = {name: value for name, value in old.items() if name not in _GONE}
    new |= {"target_modules": _short(targets, model), "modules_to_save": saved or None, "task_type": "CAUSAL_LM"}
    if old["peft_type"] == "IA3":
        into = {part for part in targets if tensors[f"{PREFIX}{part}.ia3_l"].shape[0] == 1}
        new["feedforward_modules"] = _short(into, model)
        # A short name would be right for one list and wrong for the other.
        new["target_modules"] = sorted({*_short(targets.keys() - into, model), *new["feedforward_modules"]})
        return new
    ranks = {part: _rank(tensors, part) for part in targets}
    for part, module in targets.items():
        stated = _by_pattern(old.get("rank_pattern"), module, default=old["r"])
        if stated != ranks[part]:
            raise UserError(f"{key}: it says that '{module}' has rank {stated}, and its file holds rank {ranks[part]}.")
    pattern, alpha = old.get("alpha_pattern"), old["lora_alpha"]
    alphas = {part: _by_pattern(pattern, module, default=alpha) for part, module in targets.items()}
    new["rank_pattern"] = _pattern(ranks, default=old["r"])
    new["alpha_pattern"] = _pattern(alphas, default=alpha)
    return new


def _rank(tensors: Mapping[str, torch.Tensor], part: str) -> int:
    name = f"{PREFIX}{part}.lora_A.weight"
    return int(tensors[name if name in tensors else f"{PREFIX}{part}.lora_embedding_A"].shape[0])


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, *, default: Any) -> Any:
    """Return a module's own rank or alpha, found as PEFT finds it."""
    for name, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({name})$", module):
            return value
    return default


def _pattern(values: Mapping[str, Any], *, default: Any) -> dict[str, Any]:
    """Return what differs from the default, under the last part of the name where all of that name agree."""
    last: Callable[[str], str] = lambda name: name.rpartition(".")[2]  # noqa: E731
    found: dict[str, set[Any]] = {}
    for name, value in values.items():
        found.setdefault(last(name), set()).add(value)
    agreed = {end: next(iter(one)) for end, one in found.items() if len(one) == 1}
    by_end = {end: value for end, value in agreed.items() if value != default}
    return by_end | {name: one for name, one in values.items() if last(name) not in agreed and one != default}


def _short(targets: Iterable[str], model: nn.Module) -> list[str]:
    """Return the shortest names that PEFT finds exactly these modules by."""
    wanted = set(targets)
    own = [name for name, _ in model.named_modules()]
    result = []
    for end in sorted({name.rpartition(".")[2] for name in wanted}):
        of_end = {name for name in own if name.rpartition(".")[2] == end}
        result += [end] if of_end <= wanted else sorted(of_end & wanted)
    return result
