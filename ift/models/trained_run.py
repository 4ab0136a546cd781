"""A finished run as it is to be used: its base model and what was trained, checked to be what they were."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.artifacts import RunFolder, file_hashes
from ift.errors import UserError
from ift.hub import fingerprint, local_folder
from ift.models.loading import Dtype
from ift.models.quantization import Quantization
from ift.models.rope import Rope
from ift.models.trained_adapters import MergedAdapter, check_unchanged
from ift.models.vocabulary import Growth, growth_of_run


@dataclass(frozen=True)
class TrainedRun:
    """What a run left behind."""

    folder: RunFolder
    manifest: Mapping[str, Any]
    base: str
    """Folder or hub id of the weights to load: of the base model, or `RUN/model` where base weights were trained."""
    adapter: Path | None
    dtype: Dtype
    """That the base model was trained in."""
    quantization: Quantization | None
    merged_adapters: tuple[MergedAdapter, ...] = ()
    """Part of the base model's weights that the adapter was trained on."""
    rope: Rope | None = None
    """Rotary positions other than those of the base model's config."""
    growth: Growth | None = None
    """By which the base model was enlarged before all else."""


def open_trained(key: str, root: str) -> TrainedRun:
    """Open a run folder, and check that base model and trained weights are those of the run.

    Args:
        key: names the run, for errors.
        root: the run folder.

    Raises:
        UserError: no run folder, an unfinished run, a base model or trained weights that have changed.
    """
    folder = RunFolder(root)
    if not folder.manifest.is_file() and (folder.root / "adapter_config.json").is_file():
        raise UserError(
            f"{key}: '{root}' is an adapter and no run folder. Nothing here says which base model, template and data "
            "it belongs to, so no merge of it could be certified. Name the run folder that holds it."
        )
    try:
        manifest = folder.read_manifest()
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if manifest.get("status") != "finished":
        raise UserError(f"{key}: '{root}' is not finished. Continue it with ift fit --ckpt_path last.")
    adapted = folder.adapter.is_dir()
    _check_exported(key, folder, manifest, folder.adapter if adapted else folder.model)
    quantization, rope = manifest.get("quantization"), manifest.get("rope")
    base = base_of_run(key, folder, manifest["base"]) if adapted else str(folder.model)
    return TrainedRun(
        folder=folder,
        manifest=manifest,
        base=base,
        adapter=folder.adapter if adapted else None,
        dtype=manifest["dtype"],
        quantization=Quantization(**quantization) if quantization and adapted else None,
        merged_adapters=merged_adapters_of(key, manifest) if adapted else (),
        rope=Rope(**rope) if rope and adapted else None,
        growth=growth_of_run(key, folder, manifest, base=base) if adapted else None,
    )


def merged_adapters_of(key: str, manifest: Mapping[str, Any]) -> tuple[MergedAdapter, ...]:
    """Return what was merged into the base model before a run's adapter was trained.

    Raises:
        UserError: one is gone or has changed.
    """
    chain = tuple(MergedAdapter(**entry) for entry in manifest.get("merged_adapters", []))
    check_unchanged(key, chain)
    return chain


def _check_exported(key: str, folder: RunFolder, manifest: Mapping[str, Any], trained: Path) -> None:
    """Refuse trained weights whose files are not those that the run wrote."""
    recorded = manifest.get("exported")
    if not recorded:
        raise UserError(
            f"{key}: the manifest of '{folder.root}' records no hashes of the trained weights, as it was made by an "
            "older version of ift; whether they are those of the run cannot be told. Train it again."
        )
    found = file_hashes(trained) if trained.is_dir() else {}
    differing = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    if differing:
        name = differing[0]
        what = "is missing" if name not in found else "is new" if name not in recorded else "has changed"
        raise UserError(
            f"{key}: '{trained / name}' {what} since the run ended, so these are not the weights that were trained "
            f"(sha256 in {folder.manifest}). Restore it, or train again."
            + (f" Also different: {', '.join(differing[1:6])}." if differing[1:] else "")
        )


def base_of_run(key: str, folder: RunFolder, base: Mapping[str, Any]) -> str:
    """Return the base model of a run, by its name or where it was.

    Raises:
        UserError: it is gone, or its config or weights have changed.
    """
    name = str(base["name"])
    if base["path"] is not None and local_folder(name) is None:
        name = str(base["path"])
        if local_folder(name) is None:
            raise UserError(f"{key}: the base model of '{folder.root}' is gone: no folder '{name}'. Restore it.")
    if fingerprint(name) != base["fingerprint"]:
        raise UserError(
            f"{key}: the base model '{name}' is not the one that '{folder.root}' was trained on; its config or weights "
            "have changed since, and the adapter does not fit it any more. Restore it."
        )
    return name
