"""A base model as another folder: in transformers' own layout, or a checkpoint of 2023 in that of its authors.

In: a folder, or what the hub holds. Out: safetensors, config, generation settings, tokenizer, and `conversion.json`,
which says what it was made of. The folder is built beside its place and renamed once every tensor of it, read back,
is the same bit by bit as the model was in memory.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ift.artifacts import versions, write_json
from ift.errors import UserError
from ift.models.base_tokenizers import TOKENIZER_FILES, check_tokenizer, copy_tokenizer, save_tokenizer
from ift.models.conversion_record import RECORD, ConversionRecord, original_family, read_record, readme
from ift.models.families import FAMILIES, FAMILY_KEY, Family, recognise
from ift.models.families.naming import SAME_NAMES
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.loading import Dtype, check_vocabulary, load_base_model, raw_config, read_config
from ift.models.original_layout import original_config, original_parts, write_config, write_shards
from ift.models.quantization import is_quantized
from ift.models.stored_weights import stored_dtypes, weight_files

Layout = Literal["native", "original"]
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
    dtype = _dtype(name, {one: kind for one, kind in stored.items() if not _ignored(read_by, one)}, settings)
    baked = record is not None and record.baked_head
    return Source(name, folder, read_by, family, stated=stated, dtype=dtype, stored=stored, baked_head=baked)


def _recognised(folder: Path) -> Family | None:
    try:
        config = raw_config(str(folder))
    except (OSError, ValueError):  # told by the reader
        return None
    return recognise(KEY, str(folder), config)


def _ignored(family: Family | None, name: str) -> bool:
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


class BaseConversion:
    """Converts one base model.

    Args:
        source: checked by `open_source`.
        settings: how.
        report: told what is being done.
    """

    def __init__(self, source: Source, settings: ConversionSettings, *, report: Callable[[str], None]) -> None:
        self._source, self._settings, self._report = source, settings, report
        self._building = settings.output.with_name(f".{settings.output.name}.unfinished")

    def convert(self) -> ConversionRecord:
        """Write the folder and return what it says of itself.

        Raises:
            UserError: the folder exists, the model or its tokenizer cannot be loaded, or what was written differs.
        """
        output = self._settings.output
        if output.exists() or output.is_symlink():
            raise UserError(f"DST: '{output}' exists, and nothing is ever overwritten. Give another folder.")
        shutil.rmtree(self._building, ignore_errors=True)  # left by a killed conversion to the same place
        self._building.mkdir(parents=True)
        try:
            record = self._write()
            for path in self._building.glob("*.safetensors"):  # written for their owner alone
                path.chmod((self._building / "config.json").stat().st_mode)
            os.rename(self._building, output)
        finally:
            shutil.rmtree(self._building, ignore_errors=True)
        return record

    def _write(self) -> ConversionRecord:
        source, settings = self._source, self._settings
        tokenizer = self._write_tokenizer()
        self._report(f"loading {source.name} in {source.dtype}")
        model = load_base_model(KEY, str(source.folder), source.dtype)
        if tokenizer is not None:
            check_vocabulary(KEY, model, tokenizer)
        baked = source.baked_head
        if settings.layout == "native" and isinstance(model.get_output_embeddings(), NormalizedHead):
            settle_heads(model, trained=True)
            baked = True
        left_out = self._left_out(model)
        self._report(f"writing the {settings.layout} layout")
        if settings.layout == "native":
            self._write_native(model)
        else:
            self._write_original(model)
        before = digests(model)
        del model  # which refers to nothing that refers to it, so that its memory is free now
        self._verify(before)
        if tokenizer is not None:
            check_tokenizer(KEY, tokenizer, self._building)
        record = self._record(left_out, num_tensors=len(before), baked=baked)
        write_json(self._building / RECORD, record.describe())
        (self._building / "README.md").write_text(readme(record, settings.output.name), encoding="utf-8")
        return record

    def _write_tokenizer(self) -> Any | None:
        """Write the tokenizer, and return it unless there is none, or its files were copied."""
        if not self._settings.tokenizer:
            return None
        if self._settings.layout == "original" and self._source.read_by is not None:
            copy_tokenizer(KEY, self._source.folder, self._building)
            return None
        return save_tokenizer(KEY, self._source.folder, self._building)

    def _write_native(self, model: Any) -> None:
        from transformers import GenerationConfig

        try:
            model.generation_config.validate(strict=True)
        except ValueError:  # settings that contradict each other cannot be saved; the file is copied below
            model.generation_config = GenerationConfig.from_model_config(model.config)
        model.save_pretrained(str(self._building), max_shard_size=self._settings.shard_size)
        self._copy_generation_settings()

    def _write_original(self, model: Any) -> None:
        family = self._source.family
        assert family is not None
        native = family.native() if family.native is not None else family.reader()
        if type(model) is not native:
            raise UserError(f"--family: {family.title} is a {native.__name__}, and this is a {type(model).__name__}.")
        config = original_config(KEY, family, model.config, stated=self._source.stated)
        parts = original_parts(family.naming, model.state_dict())
        write_shards(parts, self._building, shard_size=self._settings.shard_size)
        write_config(config, self._building)
        self._copy_generation_settings()

    def _copy_generation_settings(self) -> None:
        path = self._source.folder / "generation_config.json"
        if path.is_file():
            shutil.copyfile(path, self._building / path.name)

    def _left_out(self, model: Any) -> list[str]:
        """Return the tensors of the files that are no part of the model.

        Raises:
            UserError: one that is no stored rotation or mask of the family's.
        """
        family, own = self._source.read_by, model.state_dict().keys()
        if family is None and model._weight_conversions:  # transformers has names of its own for them
            return []
        naming = family.naming if family is not None else SAME_NAMES
        prefix = f"{model.base_model_prefix}."  # may be missing in the files, or be there beside the model's name

        def known(name: str) -> bool:
            module, _, kind = name.rpartition(".")
            parts = [f"{part}.{kind}" for part in naming.native(module)]
            return any(set(names) <= own for names in (parts, [prefix + parts[0]], [parts[0].removeprefix(prefix)]))

        found = sorted(name for name in self._source.stored if not known(name))
        if family is not None and (unknown := [name for name in found if not _ignored(family, name)]):
            raise UserError(
                f"{KEY}: '{self._source.name}' holds {len(unknown)} tensors that {family.title} has no place for, "
                f"first '{unknown[0]}'. They would be lost; take them out of the files if they are not wanted."
            )
        return found

    def _verify(self, before: dict[str, str]) -> None:
        """Read what was written, and compare every tensor bit by bit with the model that was in memory."""
        self._report("reading the written folder back")
        model = load_base_model("DST", str(self._building), self._source.dtype)
        after = digests(model)
        differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if differing:
            raise UserError(
                f"DST: nothing is written: {len(differing)} of {len(before)} tensors came back otherwise than they "
                f"were, first '{differing[0]}'. The disk, or a library, is not to be trusted."
            )

    def _record(self, left_out: list[str], *, num_tensors: int, baked: bool) -> ConversionRecord:
        source, settings = self._source, self._settings
        read = [source.folder / "config.json", *weight_files(source.folder)]
        read += [source.folder / name for name in TOKENIZER_FILES if settings.tokenizer]
        return ConversionRecord(
            source=source.name,
            files={path.name: _sha256(path) for path in read if path.is_file()},
            family=source.family.name if source.family is not None else None,
            title=source.family.title if source.family is not None else None,
            layout=settings.layout,
            dtype=source.dtype,
            num_tensors=num_tensors,
            left_out=left_out,
            baked_head=baked,
            source_config=source.stated,
            versions=versions(),
        )


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Return a sha256 of the bits of every tensor of a model, with its dtype and shape."""
    found = {}
    for name, tensor in model.state_dict().items():
        digest = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        found[name] = digest.hexdigest()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
