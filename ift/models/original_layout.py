"""A model of 2023 in the layout of its authors: matrices joined, names and `config.json` in the original's terms.

In: a native model in memory and its family. Out: the tensors by their original names, in shards, and the config.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ift.errors import UserError
from ift.models.deferred import values_of
from ift.models.families import FAMILIES, FAMILY_KEY, Family
from ift.models.families.naming import Naming

_NOT_THE_MODEL = frozenset({"architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"})
"""Keys of a config that say nothing of what the model computes."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

Parts = tuple[torch.Tensor, ...]
"""Whose rows, in this order, are one tensor."""


def original_parts(naming: Naming, tensors: Mapping[str, torch.Tensor]) -> dict[str, Parts]:
    """Return tensors under their original names, each as the parts that it is joined of.

    Args:
        naming: of the family.
        tensors: by their native names.
    """
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        original, number = naming.original(module)
        found.setdefault(f"{original}.{kind}", {})[number] = tensor
    for name, parts in found.items():
        assert len(parts) == naming.num_parts(name.rpartition(".")[0]), name
    return {name: tuple(parts[number] for number in sorted(parts)) for name, parts in found.items()}


def write_shards(
    tensors: Mapping[str, Parts], folder: Path, *, shard_size: str, report: Callable[[str], None] | None = None
) -> None:
    """Write safetensors files, one or several with an index; memory holds one shard beside the model.

    Args:
        tensors: of `original_parts`; deferred ones are read when their file is written.
        folder: where to.
        shard_size: largest file (5GB); a tensor that is larger has a file of its own.
        report: told of each file before it is written.
    """
    from safetensors.torch import save_file

    shards = list(_shards(tensors, int(shard_size[:-2]) * _UNITS[shard_size[-2:]]))
    place: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        # Tied weights are two tensors in the originals' files.
        if report is not None:
            size = sum(_num_bytes(tensors[name]) for name in names)
            report(f"writing {file}: {len(names)} tensors, {size / 10**9:.2f} GB")
        save_file({name: _one(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(map(_num_bytes, tensors.values()))}, "weight_map": place}
        _write(folder / "model.safetensors.index.json", index)


def _one(parts: Parts) -> torch.Tensor:
    """Return the tensor that parts are, in memory of its own."""
    whole = values_of(torch.cat(parts) if parts[0].ndim else parts[0].clone())
    return whole.contiguous()


def _shards(tensors: Mapping[str, Parts], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, parts in tensors.items():
        if names and size + _num_bytes(parts) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _num_bytes(parts)
    yield names


def _num_bytes(parts: Parts) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def original_config(key: str, family: Family, native: Any, *, stated: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the `config.json` of the original layout, without the code that it named.

    Args:
        key: names the model, for errors.
        family: of the model.
        native: transformers' config of the model.
        stated: the original's `config.json`, where it is known; kept if it still states this model.

    Raises:
        UserError: a model that the original code cannot compute.
    """
    if stated is not None and still_states(family, native, stated):
        config = dict(stated)
    else:
        config = family.original_config(native)
        if differing := _differences(family, native, config):
            raise UserError(
                f"{key}: this model is none that the code of {family.title} computes: its config.json cannot state "
                f"{'; '.join(differing)}. Take --layout native."
            )
    config.pop("auto_map", None)
    certain = stated is None or FAMILY_KEY in stated  # what was only taken for granted is not to be written down
    config.pop(FAMILY_KEY, None)
    config["torch_dtype"] = str(native.dtype).removeprefix("torch.")
    config.pop("dtype", None)
    unclear = [one.name for one in FAMILIES if one.recognises(config)] != [family.name]
    if unclear or (certain and list(family.doubts(config))):
        config[FAMILY_KEY] = family.name
    return config


def still_states(family: Family, native: Any, stated: Mapping[str, Any]) -> bool:
    """Return whether an original's `config.json` is that of a native config."""
    return not _differences(family, native, stated)


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json`."""
    _write(folder / "config.json", config)


def _differences(family: Family, native: Any, stated: Mapping[str, Any]) -> list[str]:
    """Return what a native config says otherwise than an original's `config.json`."""
    if reasons := list(family.refusals(stated)):
        return reasons
    expected, found = _compared(native), _compared(family.native_config(stated))
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"{name} {expected.get(name)!r} (the original has {found.get(name)!r})" for name in names]


def _compared(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_THE_MODEL}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
