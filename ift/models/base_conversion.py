"""A base model as another folder: in transformers' own layout, or a checkpoint of 2023 in that of its authors.

In: a folder, or what the hub holds. Out: safetensors, config, generation settings, tokenizer, and `conversion.json`,
which says what it was made of. The folder is built beside its place and renamed once every tensor of it, read back,
is the same bit by bit as the model was in memory.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ift.artifacts import check_new_folder, versions, write_json
from ift.errors import UserError
from ift.models.base_tokenizers import TOKENIZER_FILES, check_tokenizer, copy_tokenizer, save_tokenizer
from ift.models.conversion_record import RECORD, ConversionRecord, readme
from ift.models.conversion_source import KEY, ConversionSettings, Source, Tensors, is_ignored
from ift.models.families.naming import SAME_NAMES
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.kept_tensors import packed
from ift.models.loading import check_vocabulary, load_base_model
from ift.models.original_layout import original_config, original_parts, still_states, write_config, write_shards
from ift.models.stored_weights import read_stored, weight_files


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
        check_new_folder("DST", output)
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
        beside = self._beside(model)
        self._report(f"writing the {settings.layout} layout")
        restored: Tensors = {}
        if settings.layout == "native":
            self._write_native(model)
        else:
            restored = self._write_original(model, beside)
        before = digests({**model.state_dict(), **restored})
        del model  # which refers to nothing that refers to it, so that its memory is free now
        self._verify(before, restored)
        if tokenizer is not None:
            check_tokenizer(KEY, tokenizer, self._building)
        left_out = {name: tensor for name, tensor in beside.items() if name not in restored}
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

    def _write_original(self, model: Any, beside: Tensors) -> Tensors:
        """Write the original layout, with what its files held beside the model; return the latter."""
        family = self._source.family
        assert family is not None
        native = family.native() if family.native is not None else family.reader()
        if type(model) is not native:
            raise UserError(f"--family: {family.title} is a {native.__name__}, and this is a {type(model).__name__}.")
        config = original_config(KEY, family, model.config, stated=self._source.stated)
        parts = original_parts(family.naming, model.state_dict())
        known = self._source.stated is not None and still_states(family, model.config, self._source.stated)
        own = beside if self._source.read_by is not None else {}
        restored = {**own, **self._source.kept} if known else {}
        parts |= {name: (tensor,) for name, tensor in restored.items()}
        write_shards(parts, self._building, shard_size=self._settings.shard_size)
        write_config(config, self._building)
        self._copy_generation_settings()
        return restored

    def _copy_generation_settings(self) -> None:
        path = self._source.folder / "generation_config.json"
        if path.is_file():
            shutil.copyfile(path, self._building / path.name)

    def _beside(self, model: Any) -> Tensors:
        """Return the tensors of the files that are no part of the model.

        Raises:
            UserError: one that is no stored rotation or mask of the family's.
        """
        family, own = self._source.read_by, model.state_dict().keys()
        if family is None and model._weight_conversions:  # transformers has names of its own for them
            return {}
        naming = family.naming if family is not None else SAME_NAMES
        prefix = f"{model.base_model_prefix}."  # may be missing in the files, or be there beside the model's name

        def known(name: str) -> bool:
            module, _, kind = name.rpartition(".")
            parts = [f"{part}.{kind}" for part in naming.native(module)]
            return any(set(names) <= own for names in (parts, [prefix + parts[0]], [parts[0].removeprefix(prefix)]))

        found = sorted(name for name in self._source.stored if not known(name))
        if family is not None and (unknown := [name for name in found if not is_ignored(family, name)]):
            raise UserError(
                f"{KEY}: '{self._source.name}' holds {len(unknown)} tensors that {family.title} has no place for, "
                f"first '{unknown[0]}'. They would be lost; take them out of the files if they are not wanted."
            )
        return read_stored(self._source.folder, found)

    def _verify(self, before: dict[str, str], restored: Tensors) -> None:
        """Read what was written, and compare every tensor bit by bit with the model that was in memory."""
        self._report("reading the written folder back")
        model = load_base_model("DST", str(self._building), self._source.dtype)
        after = digests({**model.state_dict(), **read_stored(self._building, restored.keys())})
        differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if differing:
            raise UserError(
                f"DST: nothing is written: {len(differing)} of {len(before)} tensors came back otherwise than they "
                f"were, first '{differing[0]}'. The disk, or a library, is not to be trusted."
            )

    def _record(self, left_out: Tensors, *, num_tensors: int, baked: bool) -> ConversionRecord:
        source, settings = self._source, self._settings
        own = left_out if source.read_by is not None else {}
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
            left_out=sorted(left_out),
            kept=packed({**self._source.kept, **own}) if settings.layout == "native" else {},
            baked_head=baked,
            source_config=source.stated,
            versions=versions(),
        )


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a sha256 of the bits of every tensor, with its dtype and shape."""
    found = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
