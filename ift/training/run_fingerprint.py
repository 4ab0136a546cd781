"""What decides a run's result, part by part: a hash of each for the manifest, and what of it people can read.

Hashing is cheap. The data's hashes were made when they were prepared. Of trainable weights above 16 MiB a sample is
hashed; and where weights of the base model itself are trained, they begin as its files, whose fingerprint is known.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer

import ift
from ift.artifacts import fingerprints, versions
from ift.data.encoding import tokenizer_hash

_WHOLE_BYTES = 1 << 24
"""Tensors up to this size are hashed whole."""
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def run_fingerprints(
    module: Any, datamodule: Any, *, data: Mapping[str, Any], settings: Mapping[str, Any], base: str, initial: str
) -> dict[str, str]:
    """Return a hash of every part that decides a run's result, and their total.

    Args:
        module: with its model and trainer.
        datamodule: with its data.
        data: what the data module says of them.
        settings: of the configuration, those that decide the result.
        base: fingerprint of the base model.
        initial: of `initial_weights`.
    """
    parts = {
        "settings": dict(settings),
        "data": [_content(data.get(name, [])) for name in ("sources", "validation_sources")] + [_streamed(data)],
        "labels": [data["labels"], data.get("validation_labels")],
        "tokenizer": tokenizer_hash(datamodule.tokenizer),
        "template": datamodule.encoder.template.describe(),
        "base": [base, module.growth.fingerprint if module.growth is not None else None],
        "initial_weights": initial,
        "code": {name: value for name, value in code().items() if name != "commit"},  # which may be of other files
        "environment": [versions(), environment(module.trainer)],
        "strategy": strategy(module.trainer),
    }
    return fingerprints(parts)


def _content(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(source["sha256"]) for source in sources]


def _streamed(data: Mapping[str, Any]) -> Any:
    """Return what is known of streams, whose rows are read only when they are trained on."""
    return data["streams"]["sources"] if "streams" in data else []


def initial_weights(module: Any, *, base: str) -> str:
    """Return a hash of the trainable weights as they are; every rank calls it, as sharded weights are gathered.

    Args:
        module: with its model, before the first step.
        base: fingerprint of the base model, which stands for weights of its own that are trained.
    """
    if module.method.trains_base:
        return f"of the base model: {base}"
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            whole = _whole(parameter)
            digest.update(f"{name}:{whole.dtype}:{tuple(whole.shape)}".encode())
            digest.update(_sample(whole))
    return digest.hexdigest()


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    """Return a tensor that may lie in shards on several ranks."""
    if hasattr(parameter, "ds_id"):  # DeepSpeed's
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    gather = getattr(parameter.detach(), "full_tensor", None)
    whole: torch.Tensor = gather() if gather is not None else parameter.detach()
    return whole


def _sample(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, or of a large one 64 blocks of 64 KiB evenly spread."""
    values = tensor.contiguous().view(-1).view(torch.uint8)
    if len(values) > _WHOLE_BYTES:
        last = len(values) - _BLOCK_BYTES
        starts = [last * number // (_SAMPLED_BLOCKS - 1) for number in range(_SAMPLED_BLOCKS)]
        values = torch.cat([values[start : start + _BLOCK_BYTES] for start in starts])
    return values.cpu().numpy().tobytes()


def code() -> dict[str, Any]:
    """Return which code runs: version, commit where it is a checkout, and a hash of each package's source files."""
    root = Path(ift.__file__).parent
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name != "__pycache__")
    files = {f"ift/{folder.name}": sorted(folder.rglob("*")) for folder in folders}
    files["ift"] = sorted(root.iterdir())
    return {
        "version": ift.__version__,
        "commit": _commit(root.parent),
        "files": {name: _hash_files(paths, root) for name, paths in sorted(files.items())},
    }


def _hash_files(paths: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file() and path.suffix in (".py", ".yaml", ".json"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def _commit(folder: Path) -> str | None:
    """Return the git commit of a checkout, with a mark where files differ from it; `None` where it is none."""
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "ift"])
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or none of its repositories
        return None
    return f"{commit} with changes" if changes else commit


def environment(trainer: Trainer) -> dict[str, Any]:
    """Return what of the machine may change the last bits of a result, beside the versions of packages."""
    device, module = trainer.strategy.root_device, cast(Any, trainer.lightning_module)
    found: dict[str, Any] = {
        "torch_build": str(torch.version.git_version),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",  # type: ignore[no-untyped-call]
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": device.type,
        "kernels": module.kernel_choice.versions or "torch",
    }
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32": torch.get_float32_matmul_precision(),
            "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    return found


def strategy(trainer: Trainer) -> dict[str, Any]:
    """Return how the run is spread over devices."""
    return {
        "strategy": type(trainer.strategy).__name__,
        "world_size": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": str(trainer.precision),
    }
