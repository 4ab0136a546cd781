"""Old adapters read from their folders: written anew for the native modules, or only while they are loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open

from ift.artifacts import file_hashes, versions, write_json
from ift.errors import UserError
from ift.hub import check_base, local_folder
from ift.models.conversion_record import RECORD, original_family
from ift.models.families import Family
from ift.models.families.naming import Naming
from ift.models.old_adapters import SavedHead, StoredAdapter, module_of, naming_for, native_adapter, saved_head

_SETTINGS, _SAFETENSORS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class ConvertedAdapter:
    """What was converted."""

    num_modules: int
    """Of the original that the adapter is for."""
    num_native: int
    """Native modules that it is for now."""


def read_adapter(key: str, folder: Path) -> StoredAdapter:
    """Read an adapter's folder without PEFT, whose present versions drop what they do not know.

    Args:
        key: names the adapter, for errors.
        folder: with `adapter_config.json`.

    Raises:
        UserError: a file is missing or damaged, or holds more than tensors.
    """
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        tensors = _tensors(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: '{folder}' cannot be read as an adapter: {reason}") from error
    return StoredAdapter(settings, tensors)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / _SAFETENSORS).is_file():
        with safe_open(folder / _SAFETENSORS, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    found: dict[str, torch.Tensor] = torch.load(folder / _PICKLE, map_location="cpu", weights_only=True)
    return found


def write_adapter(adapter: StoredAdapter, folder: Path) -> None:
    """Write an adapter in PEFT's layout."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, folder / _SAFETENSORS, metadata={"format": "pt"})
    write_json(folder / _SETTINGS, adapter.settings)
    (folder / _SAFETENSORS).chmod((folder / _SETTINGS).stat().st_mode)


@contextmanager
def readable_adapter(key: str, folder: Path, model: Any) -> Iterator[Path]:
    """Give the folder of an adapter for the modules of a model: the folder itself, or a converted copy for the while.

    Args:
        key: names the adapter, for errors.
        folder: of an adapter in PEFT's layout.
        model: that it is to be put on.

    Raises:
        UserError: an adapter on original modules that cannot be converted exactly.
    """
    naming = _naming_of(folder, model)
    if naming is None:
        yield folder
        return
    adapter = read_adapter(key, folder)
    native = native_adapter(key, adapter, naming, model=model, head=saved_head(model, naming))
    # PEFT looks there, on the hub if need be, when the adapter is saved again.
    native.settings["base_model_name_or_path"] = model.name_or_path
    rank_zero_info(f"{key}: '{folder}' was trained on modules of the original code, and is read for the native ones.")
    with TemporaryDirectory() as place:
        write_adapter(native, Path(place))
        yield Path(place)


def _naming_of(folder: Path, model: Any) -> Naming | None:
    """Return whose original modules an adapter is for; `None` also where it cannot be read, which PEFT tells."""
    try:
        if (folder / _SAFETENSORS).is_file():
            with safe_open(folder / _SAFETENSORS, "pt") as file:
                names = list(file.keys())
        else:
            names = list(_tensors(folder))
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError):
        return None
    return naming_for(names, model)


def convert_adapter(source: Path, output: Path, *, base: str, family: str | None) -> ConvertedAdapter:
    """Write an old adapter for the native modules of its base model.

    Args:
        source: folder of the adapter.
        output: new folder.
        base: folder or hub id of the base model, original or converted.
        family: name of the original, where the base model does not tell.

    Raises:
        UserError: nothing to convert, or nothing that can be converted exactly.
    """
    from ift.models.adapters import empty_model
    from ift.models.loading import family_of

    check_base("--base", base)
    read_by = family_of(base, key="--base")
    known = original_family(base, local_folder(base), read_by=read_by, asked=family)
    model = empty_model(base)
    if model is None:
        raise UserError(f"--base: the config.json of '{base}' cannot be read.")
    adapter = read_adapter("SRC", source)
    naming = naming_for(adapter.tensors, model)
    if naming is None:
        raise UserError(
            f"SRC: no module that '{source}' was trained on is called otherwise in '{base}', as ift reads it. There is "
            "nothing to convert: use the adapter as it is, or name the base model that it was trained on."
        )
    native = native_adapter("SRC", adapter, naming, model=model, head=_head(model, naming, read_by, known))
    native.settings["base_model_name_or_path"] = base
    _check_fits(native, model)
    building = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        write_adapter(native, building)
        described = {"source": str(source), "files": file_hashes(source), "base": base, "versions": versions()}
        write_json(building / RECORD, described)
        _check_written(native, building)
        os.rename(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return ConvertedAdapter(_num_modules(adapter), _num_modules(native))


def _head(model: Any, naming: Naming, read_by: Family | None, family: Family | None) -> SavedHead:
    if family is None:
        return saved_head(model, naming)
    # Where the original is read, its head divides the rows in every pass.
    return "divided" if family.normalized_head and read_by is None else "as it is"


def _check_fits(adapter: StoredAdapter, model: Any) -> None:
    """Put the adapter on the model without weights: every tensor has a place there, and every place one."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    with TemporaryDirectory() as place, torch.device("meta"):
        write_json(Path(place) / _SETTINGS, {**adapter.settings, "base_model_name_or_path": None})
        wrapped = get_peft_model(model, PeftConfig.from_pretrained(place), low_cpu_mem_usage=True)
        places = {
            _plain(name): tuple(one.shape)
            for name, one in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
        }
    tensors = {_plain(name): tuple(one.shape) for name, one in adapter.tensors.items()}
    if differing := sorted(name for name in places.keys() | tensors.keys() if places.get(name) != tensors.get(name)):
        name = differing[0]
        raise UserError(
            f"SRC: the adapter does not fit the base model in {len(differing)} places: '{name}' is "
            f"{tensors.get(name, 'missing')} in it, and {places.get(name, 'nowhere')} in the model."
        )


def _plain(name: str) -> str:
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def _check_written(adapter: StoredAdapter, folder: Path) -> None:
    """Read the written file back and compare it bit by bit."""
    written = _tensors(folder)
    same = written.keys() == adapter.tensors.keys() and all(
        written[name].dtype == one.dtype and torch.equal(written[name], one) for name, one in adapter.tensors.items()
    )
    if not same:
        raise UserError("DST: nothing is written: what was read back is not what was written.")


def _num_modules(adapter: StoredAdapter) -> int:
    return len({module_of(name) for name in adapter.tensors})
