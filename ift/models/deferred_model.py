"""A model of transformers whose weights are left in their files.

transformers itself makes the model on the meta device and decides which tensor of the files goes where, under which
name, joined or split, and what is missing; the tensors that it is given are deferred ones.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from ift.models.deferred import Deferred
from ift.models.deferred_files import DTYPES, deferred_tensors, mapped_tensors
from ift.models.stored_weights import safetensors_entries, weight_files


def obstacle_to_deferring(folder: Path) -> str:
    """Return why the weights of a folder cannot be left in their files; empty where they can."""
    if (folder / "adapter_config.json").is_file():
        return "an adapter lies in its folder"
    present = [path for path in weight_files(folder) if path.is_file()]  # the loading tells which are missing
    if old := [path.name for path in present if path.suffix == ".bin" and not is_zipfile(path)]:
        return f"'{old[0]}' is in the format of torch before 1.6, which is read as a whole"
    plain = [path for path in present if path.suffix == ".safetensors"]
    try:
        kinds = {entry["dtype"] for path in plain for entry in safetensors_entries(path).values()}
    except (OSError, ValueError, KeyError, struct.error):  # damaged, which the loading tells as well
        return ""
    return f"it holds tensors of type {min(kinds - DTYPES.keys())}" if kinds - DTYPES.keys() else ""


def from_deferred(reader: Any, folder: Path, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what `from_pretrained` would, with parameters that are not read.

    Args:
        reader: a model class, or an auto class.
        folder: of the model, without `obstacle_to_deferring`.
        options: for `from_pretrained`, the config and `output_loading_info` among them.
    """
    tensors: dict[str, Deferred] = {}
    for path in weight_files(folder):
        tensors |= deferred_tensors(path) if path.suffix == ".safetensors" else mapped_tensors(path)
    config, model_class = options["config"], reader
    if not hasattr(reader, "config_class"):  # an auto class, which asks for a folder
        with torch.device("meta"):
            model_class = type(reader.from_config(config, trust_remote_code=False))
        if not isinstance(config, model_class.config_class):  # the language model of one that sees, too
            config = config.get_text_config()
    model, report = model_class.from_pretrained(None, state_dict=tensors, **{**options, "config": config})
    model.config.name_or_path = model.name_or_path = str(folder)
    if model.can_generate():
        model.generation_config = _generation_config(folder)
    return model, report


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(folder))
    except OSError:  # as transformers: older folders have these settings in the model's config
        return GenerationConfig.from_pretrained(str(folder), config_file_name="config.json", _from_model_config=True)
