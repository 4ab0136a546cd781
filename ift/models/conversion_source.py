"""A base model that is to be converted, and all that is known of it before its weights are loaded.

In: a folder and how it is to be written. Out: which family it is of, whose reader reads it, in which dtype.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ift.errors import UserError
from ift.models.conversion_record import original_family, read_record
from ift.models.families import FAMILIES, FAMILY_KEY, Family, recognise
from ift.models.kept_tensors import unpacked
from ift.models.loading import Dtype, raw_config, read_config
from ift.models.quantization import is_quantized
from ift.models.stored_weights import stored_dtypes

Layout = Literal["native", "original"]
Tensors = dict[str, torch.Tensor]
KEY = "SRC"
_NO_WEIGHTS = ("i", "u", "bool")
"""Beginnings of the dtypes of stored masks and positions, as torch and safetensors write them."""


@dataclass(frozen=True)
class ConversionSettings:
    """How a base model is written."""

    output: Path
    """New folder."""
    layout: Layout = "native"
    """transformers' own, or that of the checkpoint's authors."""
    dtype: Dtype | None = None
    """Of the written weights; `None` is that of the files."""
    family: str | None = None
    """Name of the original layout, where the source does not tell."""
    shard_size: str = "5GB"
    """Largest file of weights."""
    tokenizer: bool = True
    """Whether there is one to write."""


@dataclass(frozen=True)
class Source:
    """A base model and what is known of it before its weights are loaded."""

    name: str
    """As the user named it."""
    folder: Path
    read_by: Family | None
    """Whose reader reads it; `None` is transformers."""
    family: Family | None
    """In whose original layout it can be."""
    stated: dict[str, Any] | None
    """The original's `config.json`, where it is known."""
    dtype: Dtype
    """To load it in."""
    stored: dict[str, str]
    """Dtype of each tensor in its files."""
    kept: Tensors
    """What the original's files held beside the model, from an earlier conversion."""
    baked_head: bool
    """Whether an earlier conversion divided the rows of its head."""


def open_source(name: str, folder: Path, settings: ConversionSettings) -> Source:
    """Check all that can be checked without weights.

    Args:
        name: of the base model, as the user gave it.
        folder: that holds it.
        settings: how it is to be written.

    Raises:
        UserError: a model or a layout that cannot be.
    """
    read_by = _recognised(folder)
    family = original_family(name, folder, read_by=read_by, asked=settings.family)
    if settings.layout == "original" and family is None:
        raise UserError(
            f"--layout: 'original', and nothing in '{name}' says which original that is. Name it with --family: "
            f"{', '.join(one.name for one in FAMILIES)}."
        )
    if settings.layout == "native" and read_by is not None and read_by.native is None:
        raise UserError(
            f"--layout: transformers has no class for {read_by.title}, so a native folder of it would load nowhere. "
            "Take --layout original; ift reads that as it is."
        )
    if is_quantized(read_config(str(folder), key=KEY), None):
        raise UserError(f"{KEY}: '{name}' holds quantized weights, and only plain ones are converted.")
    stored, record = stored_dtypes(KEY, folder), read_record(folder)
    stated = raw_config(str(folder)) if read_by is not None else record.source_config if record else None
    if stated is not None and settings.family is not None:
        stated = {**stated, FAMILY_KEY: settings.family}
    dtype = _dtype(name, {one: kind for one, kind in stored.items() if not is_ignored(read_by, one)}, settings)
    baked = record is not None and record.baked_head
    return Source(
        name,
        folder,
        read_by,
        family,
        stated=stated,
        dtype=dtype,
        stored=stored,
        kept=unpacked(record.kept) if record is not None else {},
        baked_head=baked,
    )


def _recognised(folder: Path) -> Family | None:
    try:
        config = raw_config(str(folder))
    except (OSError, ValueError):  # told by the reader
        return None
    return recognise(KEY, str(folder), config)


def is_ignored(family: Family | None, name: str) -> bool:
    """Return whether a tensor of the files is none that a reader has a place for, as a stored rotation."""
    patterns = family.reader()._keys_to_ignore_on_load_unexpected or () if family is not None else ()
    return any(re.search(pattern, name) for pattern in patterns)


def _dtype(name: str, stored: dict[str, str], settings: ConversionSettings) -> Dtype:
    """Return the dtype to load in: that of the files, unless another is asked for."""
    found = sorted({kind for kind in stored.values() if not kind.lower().startswith(_NO_WEIGHTS)})
    if settings.dtype is not None:
        return settings.dtype
    if len(found) == 1 and found[0] in get_args(Dtype):
        return found[0]  # type: ignore[return-value]
    if not found:
        raise UserError(f"{KEY}: '{name}' holds no weights (model.safetensors, pytorch_model.bin, or their shards).")
    raise UserError(
        f"{KEY}: the weights of '{name}' are in {' and '.join(found)}, and a converted model is in one dtype. Name it "
        "with --dtype; float32 holds float16 and bfloat16 exactly."
    )
