"""`ift consolidate`: a checkpoint of many ranks, or of one, as one model folder or one adapter; nothing is trained."""

import sys
from pathlib import Path
from typing import Any

from ift.artifacts import RunFolder, check_new_folder
from ift.commands.option_parser import OptionParser
from ift.errors import UserError


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift consolidate",
        "Write what a checkpoint of a run has trained as a folder to use: an adapter that PEFT loads, or a model "
        "(safetensors, config, generation settings, tokenizer) that transformers loads. The checkpoint may be one "
        "file, or the folder that the ranks of trainer.strategy fsdp wrote, each its part. It takes one process, no "
        "GPU, and memory for one file of the result (--shard_size) and one tensor; for the whole base model where it "
        "is quantized, adapters are merged into it, the adapter takes its start out of it, or its files are in an old "
        "format. All bytes of the checkpoint are compared with its seal first, and nothing in it is executed.",
    )
    result.add_argument(
        "source", metavar="RUN_OR_CHECKPOINT", help="run folder, for its newest checkpoint; or one of them"
    )
    result.add_argument("--output", required=True, metavar="FOLDER", help="new folder")
    result.add_argument(
        "--shard_size", default="5GB", metavar="SIZE", help="largest file of weights, as 500MB or 5GB (default: 5GB)"
    )
    return result


def run(command: str, arguments: list[str]) -> None:
    """Run `consolidate`.

    Raises:
        UserError: an option, a run or a checkpoint that is wrong.
    """
    from ift.commands.merge import SHARD_SIZE, quiet

    options = parser().parse(arguments)
    if not SHARD_SIZE.fullmatch(options.shard_size):
        raise UserError(f"--shard_size: '{options.shard_size}' is no size. Write it as 500MB or 5GB.")
    output = Path(options.output).expanduser()
    check_new_folder("--output", output)
    quiet()
    folder, path = _find(Path(options.source).expanduser())
    from ift.training.consolidation import consolidate, open_checkpoint

    checkpoint = open_checkpoint("RUN_OR_CHECKPOINT", path)
    print(f"{path}: step {checkpoint.step}, {len(checkpoint.weights)} trained tensors", file=sys.stderr)
    if note := folder.later_than(checkpoint.step):
        print(note, file=sys.stderr)
    module = _module_of(folder)
    consolidate(
        module,
        checkpoint,
        run=folder,
        output=output,
        shard_size=options.shard_size,
        report=lambda text: print(text, file=sys.stderr),
    )
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    kind = "model" if module.method.trains_base else "adapter"
    print(f"{kind} of step {checkpoint.step}, {size:,} bytes: {output}")


def _find(source: Path) -> tuple[RunFolder, Path]:
    """Return the run, and the checkpoint of it that is meant.

    Raises:
        UserError: neither a run with a checkpoint nor a checkpoint that lies in one.
    """
    from ift.training.checkpoints import newest_checkpoint
    from ift.training.sharded_checkpoints import is_sharded_checkpoint

    run = RunFolder(source)
    if run.manifest.is_file():
        newest = newest_checkpoint("RUN_OR_CHECKPOINT", run)
        if newest is None:
            raise UserError(f"RUN_OR_CHECKPOINT: there is no checkpoint in '{run.checkpoints}'. Name a file.")
        return run, newest
    if not source.is_file() and not is_sharded_checkpoint(source):
        raise UserError(
            f"RUN_OR_CHECKPOINT: '{source}' is neither a run folder (with manifest.json) nor a checkpoint of one: a "
            ".ckpt file, or a .ckpt folder that the ranks of trainer.strategy fsdp wrote."
        )
    run = RunFolder(source.resolve().parent.parent)
    if not run.manifest.is_file():
        raise UserError(
            f"RUN_OR_CHECKPOINT: '{source}' does not lie in a run folder (RUN/checkpoints/), whose config.yaml says "
            "which base model and method it belongs to. Put it there."
        )
    return run, source


def _module_of(run: RunFolder) -> Any:
    """Return the module that a run trained, without its model.

    Raises:
        UserError: its base model is gone or has changed.
    """
    from ift.commands.config import ConfigParser
    from ift.models.trained_run import base_of_run
    from ift.training.module import InstructionModule

    config = run.read_config()
    settings = {**config["model"], "base": base_of_run("RUN", run, run.read_manifest()["base"])}
    own = ConfigParser(prog="ift consolidate")
    own.add_argument("--seed_everything", type=bool | int, default=0)
    own.add_lightning_class_args(InstructionModule, "model")
    own.link_arguments("seed_everything", "model.seed", compute_fn=int)
    settings.pop("seed", None)
    parsed = own.parse_object({"seed_everything": config["seed_everything"], "model": settings})
    return own.instantiate_classes(parsed).model
