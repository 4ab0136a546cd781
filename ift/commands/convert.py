"""`ift convert`: a base model in another layout, or an adapter of 2023 for the native modules; nothing is trained."""

import re
import sys
from argparse import Namespace
from pathlib import Path

from ift.artifacts import RunFolder, check_new_folder
from ift.commands.merge import DTYPES
from ift.commands.option_parser import OptionParser
from ift.errors import UserError

_SHARD_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB)")
_SHARDS = "5GB"
_ADAPTER = "adapter_config.json"


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift convert",
        "Write a base model as a portable folder (safetensors, config, generation settings, tokenizer, conversion.json "
        "with the hashes of what it was made of). Checkpoints of 2023 that shipped with their own code (ChatGLM2-6B, "
        "ChatGLM3-6B, MOSS, Baichuan-7B, Baichuan2-7B, InternLM-7B) become plain models of transformers, and back; "
        "that code is never executed. What was written is read back and compared bit by bit. An adapter that was "
        "trained on the original modules (W_pack, query_key_value, ...) becomes one for the native modules, exactly.",
    )
    result.add_argument("source", metavar="SRC", help="folder or hub id of a base model, or folder of a PEFT adapter")
    result.add_argument("output", metavar="DST", help="new folder")
    result.add_argument(
        "--layout",
        choices=("native", "original"),
        default="native",
        help="native: transformers' own, which loads anywhere (default). original: that of the checkpoint's authors, "
        "from their own folder or back from a native one",
    )
    result.add_argument(
        "--family",
        default=None,
        metavar="NAME",
        help="whose original layout, where SRC is native and was not written by ift convert: baichuan_7b, ...",
    )
    result.add_argument(
        "--dtype", choices=DTYPES, default=None, help="of the written weights (default: that of the files, bit by bit)"
    )
    result.add_argument(
        "--shard_size", default=_SHARDS, metavar="SIZE", help="largest file of weights, as 500MB or 5GB (default: 5GB)"
    )
    result.add_argument("--no_tokenizer", action="store_true", help="write none; for a SRC without a usable one")
    result.add_argument(
        "--base",
        default=None,
        metavar="BASE",
        help="of an adapter: folder or hub id of the base model that it was trained on, original or converted",
    )
    return result


def run(command: str, arguments: list[str]) -> None:
    """Run `convert`.

    Raises:
        UserError: an option or a source that is wrong.
    """
    options = parser().parse(arguments)
    source, output = Path(options.source).expanduser(), Path(options.output).expanduser()
    check_new_folder("DST", output)
    if RunFolder(source).manifest.is_file():
        raise UserError(
            f"SRC: '{source}' is a run. 'ift merge' makes a model of it; its adapter is for the native modules already."
        )
    is_adapter = (source / _ADAPTER).is_file()
    _check(options, is_adapter=is_adapter)
    from ift.commands.merge import quiet

    quiet()
    if is_adapter:
        _convert_adapter(options, source, output)
    else:
        _convert_base(options, output)


def _check(options: Namespace, *, is_adapter: bool) -> None:
    if not _SHARD_SIZE.fullmatch(options.shard_size):
        raise UserError(f"--shard_size: '{options.shard_size}' is no size. Write it as 500MB or 5GB.")
    if is_adapter:
        if options.base is None:
            raise UserError(
                f"--base: '{options.source}' is an adapter. Name the base model that it was trained on, as it says how "
                "many rows of a matrix are whose."
            )
        set_anyway = {
            "--layout": options.layout != "native",
            "--dtype": options.dtype,
            "--shard_size": options.shard_size != _SHARDS,
            "--no_tokenizer": options.no_tokenizer,
        }
        for name, is_set in set_anyway.items():
            if is_set:
                raise UserError(f"{name}: is for base models, and '{options.source}' is an adapter. Leave it out.")
    elif options.base is not None:
        raise UserError(f"--base: is for adapters, and '{options.source}' holds no {_ADAPTER}. Leave it out.")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _convert_base(options: Namespace, output: Path) -> None:
    from ift.models.base_conversion import BaseConversion
    from ift.models.base_files import base_folder
    from ift.models.conversion_record import RECORD
    from ift.models.conversion_source import ConversionSettings, open_source

    settings = ConversionSettings(
        output,
        layout=options.layout,
        dtype=options.dtype,
        family=_family_name(options.family),
        shard_size=options.shard_size,
        tokenizer=not options.no_tokenizer,
    )
    folder = base_folder("SRC", options.source)
    source = open_source(options.source, folder, settings)
    record = BaseConversion(source, settings, report=_tell).convert()
    for name in record.left_out[:1]:
        kept = f"; {RECORD} keeps them for the way back" if record.kept else ""
        print(f"left out: {len(record.left_out)} tensors that the model has no place for, first '{name}'{kept}")
    if record.baked_head:
        print("the rows of the head are divided by their lengths for good; logits stay, the way back is not exact")
    print(f"equal after reading back: {record.num_tensors} of {record.num_tensors} tensors, bit by bit")
    print(f"{record.layout} layout, {record.dtype}: {output}")


def _family_name(name: str | None) -> str | None:
    from ift.errors import unknown_name
    from ift.models.families import FAMILIES

    known = [family.name for family in FAMILIES]
    if name is not None and name not in known:
        raise unknown_name("--family", name, known)
    return name


def _convert_adapter(options: Namespace, source: Path, output: Path) -> None:
    from ift.models.adapter_conversion import convert_adapter

    converted = convert_adapter(source, output, base=options.base, family=_family_name(options.family))
    print(f"{converted.num_modules} modules of the original are {converted.num_native} native ones: {output}")
