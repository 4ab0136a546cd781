"""Tiny random checkpoints of 2023 in the layout of their authors, as folders: one file or shards, either format.

Each folder holds modules of code that leave a file in it when anything executes them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from original_families import CHECKPOINTS, Checkpoint, Sizes, Tensors

__all__ = ["CHECKPOINTS", "Checkpoint", "Sizes", "every_layout", "plant_code", "was_executed", "write_checkpoint"]

Files = Literal["safetensors", "bin"]

EXECUTED = "EXECUTED"
"""Name of the file that a planted module leaves in its checkpoint's folder."""


def write_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    files: Files = "safetensors",
    shards: int = 1,
    buffers: bool = True,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint as a folder, with modules of code that must never be executed.

    Args:
        checkpoint: what to write.
        folder: new, or empty.
        files: `model*.safetensors` or `pytorch_model*.bin`.
        shards: number of files of weights; several have an index.
        buffers: whether to write what no model needs, too.
        changes: keys of `config.json` to set; `None` leaves a key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changed = {**checkpoint.config, **(changes or {})}
    config = {key: value for key, value in changed.items() if value is not None or key not in (changes or {})}
    _write_json(folder / "config.json", config)
    tensors = {**checkpoint.tensors, **(checkpoint.buffers if buffers else {})}
    _write_weights(tensors, folder, files=files, shards=shards)
    plant_code(folder, checkpoint.module)
    return folder


def plant_code(folder: Path, module: str) -> None:
    """Write modules that leave `EXECUTED` in the folder when they are executed, wherever they were copied to."""
    left = str(folder.resolve() / EXECUTED)
    for kind in ("modeling", "configuration", "tokenization", "quantization"):
        text = f"import pathlib\n\npathlib.Path({left!r}).write_text(__name__)\n"
        (folder / f"{kind}_{module}.py").write_text(text, encoding="utf-8")


def was_executed(folder: Path) -> bool:
    """Return whether any planted module was."""
    return (folder / EXECUTED).exists()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_weights(tensors: Tensors, folder: Path, *, files: Files, shards: int) -> None:
    from safetensors.torch import save_file

    stem, ending = ("model", "safetensors") if files == "safetensors" else ("pytorch_model", "bin")
    parts = [dict(list(tensors.items())[number::shards]) for number in range(shards)]
    place = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number:05}-of-{shards:05}.{ending}"
        if files == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
        place |= dict.fromkeys(part, name)
    if shards > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": place}
        _write_json(folder / f"{stem}.{ending}.index.json", index)


def every_layout() -> Iterator[tuple[Files, int, torch.dtype]]:
    """Yield the layouts of files that the hub has: `(files, shards, dtype)`."""
    yield "safetensors", 1, torch.float32
    yield "safetensors", 3, torch.float16
    yield "bin", 1, torch.bfloat16
    yield "bin", 2, torch.float16
