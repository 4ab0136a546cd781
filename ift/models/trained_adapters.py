"""Adapters that were trained before: found, checked to fit where they are put, loaded, merged one on another.

An adapter is the difference from one model. Where that is a base model with other adapters merged into it, the manifest
of its run names those, and it is loaded onto nothing else.
"""

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from safetensors import SafetensorError

from ift.artifacts import RunFolder, file_hashes
from ift.errors import UserError
from ift.hub import fingerprint
from ift.models.adapter_conversion import readable_adapter
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.quantization import Quantization
from ift.models.rope import Rope
from ift.models.trained_rows import compute_as_the_module
from ift.models.vocabulary import Growth, check_same_growth

_UNREADABLE = (OSError, SafetensorError, pickle.UnpicklingError)


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that is part of a base model's weights before another is trained."""

    folder: str
    """In PEFT's layout."""
    files: dict[str, str]
    """sha256 of each file, by name."""


def adapter_folder(key: str, folder: str | Path) -> Path:
    """Return the folder of an adapter: itself, or the one inside a run folder.

    Raises:
        UserError: neither.
    """
    path = Path(folder).expanduser()
    run = RunFolder(path)
    if (path / "adapter_config.json").is_file():
        return path
    if (run.adapter / "adapter_config.json").is_file():
        return run.adapter
    if run.model.is_dir():
        raise UserError(
            f"{key}: '{folder}' trained the base model itself and holds no adapter. Set model.base to '{run.model}'."
        )
    raise UserError(f"{key}: '{folder}' holds no adapter_config.json, so it is neither an adapter nor a finished run.")


def run_of_adapter(place: Path) -> RunFolder | None:
    """Return the run that an adapter's folder lies in, if any."""
    run = RunFolder(place.parent)
    return run if place.name == run.adapter.name and run.manifest.is_file() else None


def merged_before(place: Path) -> list[MergedAdapter]:
    """Return what was merged into the base model that an adapter was trained on; nothing where no run tells."""
    run = run_of_adapter(place)
    entries = run.read_manifest().get("merged_adapters", []) if run is not None else []
    return [MergedAdapter(**entry) for entry in entries]


def merged_chain(key: str, folders: Sequence[str], *, base: str, growth: Growth | None = None) -> list[MergedAdapter]:
    """Return all adapters to merge, in order: the named ones, and those that the first was trained on top of.

    Args:
        key: the configuration key, for errors.
        folders: of adapters or runs.
        base: the base model.
        growth: by which its vocabulary is enlarged.

    Raises:
        UserError: one is missing, was trained on another base model, on top of others, or has changed since.
    """
    chain: list[MergedAdapter] = []
    for number, folder in enumerate(folders):
        place = adapter_folder(f"{key}[{number}]", folder)
        if not chain:
            chain = merged_before(place)
        check_foundation(f"{key}[{number}]", place, base=base, merged=chain, growth=growth)
        chain.append(MergedAdapter(str(place.resolve()), file_hashes(place)))
    check_unchanged(key, chain)
    return chain


def check_unchanged(key: str, chain: Sequence[MergedAdapter]) -> None:
    """Refuse merged adapters whose files are not those that they were.

    Raises:
        UserError: with the folder.
    """
    for one in chain:
        folder = Path(one.folder)
        if not folder.is_dir() or file_hashes(folder) != one.files:
            what = "has changed" if folder.is_dir() else "is gone"
            raise UserError(f"{key}: the merged adapter '{one.folder}' {what} since something was trained on it.")


def check_foundation(
    key: str, place: Path, *, base: str, merged: Sequence[MergedAdapter], growth: Growth | None = None
) -> None:
    """Refuse an adapter of a run that was trained on other weights than it is to be put on.

    Args:
        key: the configuration key, for errors.
        place: folder of the adapter; of one that lies in no run, nothing is known.
        base: the base model.
        merged: what is merged into it first.
        growth: by which its vocabulary is enlarged.

    Raises:
        UserError: another base model, other merged adapters, or another vocabulary.
    """
    run = run_of_adapter(place)
    if run is None:
        return
    manifest = run.read_manifest()
    trained_on = manifest["base"]
    if trained_on["fingerprint"] != fingerprint(base):
        raise UserError(
            f"{key}: the adapter '{place}' was trained on '{trained_on['name']}', and model.base '{base}' is not "
            "that model as it was then. Set model.base to it."
        )
    enlarged = manifest.get("vocabulary") or {}
    check_same_growth(key, growth, enlarged.get("fingerprint"), where=str(place))
    before = merged_before(place)
    if [one.files for one in before] != [one.files for one in merged]:
        named = ", ".join(one.folder for one in before)
        raise UserError(
            f"{key}: the adapter '{place}' was trained with [{named}] merged into the base model, and here "
            f"model.merged_adapters is [{', '.join(one.folder for one in merged)}]. Set it to [{named}]."
        )


def warn_of_other_weights(key: str, place: Path, quantization: Quantization | None) -> None:
    """Say so where a run trained its adapter beside other weights: quantized otherwise, or not at all."""
    run = run_of_adapter(place)
    if run is None:
        return
    then = run.read_manifest().get("quantization")
    now = asdict(quantization) if quantization is not None else None
    if then != now:
        rank_zero_warn(
            f"{key}: '{place}' was trained with model.quantization {then or 'null'}, and here it is {now or 'null'}: "
            "losses and answers will differ from those of its run."
        )


def _rope_of(place: Path) -> dict[str, Any] | None:
    """Return the rotary positions that an adapter was trained with; `None` where they are the base model's own."""
    run = run_of_adapter(place)
    found: dict[str, Any] | None = run.read_manifest().get("rope") if run is not None else None
    return found


def warn_of_other_rope(key: str, place: Path, rope: Rope | None) -> None:
    """Say so where a run trained its adapter with other rotary positions; longer texts may be learnt later."""
    then, now = _rope_of(place), asdict(rope) if rope is not None else None
    if run_of_adapter(place) is not None and then != now:
        rank_zero_warn(
            f"{key}: '{place}' was trained with model.rope {_given(then)}, and here it is {_given(now)}: it begins "
            "with other positions than those that it knows."
        )


def check_rope_of(place: Path, rope: Rope | None) -> None:
    """Refuse to predict with an adapter without the rotary positions that it was trained with.

    Args:
        place: folder of the adapter; of one that lies in no run, nothing is known.
        rope: `model.rope`.

    Raises:
        UserError: they differ; longer texts are allowed where it was trained with the base model's own positions.
    """
    then = _rope_of(place)
    if then is not None and then != (asdict(rope) if rope is not None else None):
        raise UserError(
            f"model.rope: '{place}' was trained with {_given(then)}. Set it to that, or name the run with --run, which "
            "does so."
        )


def _given(rope: dict[str, Any] | None) -> str:
    return str({name: value for name, value in rope.items() if value is not None}) if rope else "null"


def load_adapter(key: str, model: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """Wrap a base model with a trained adapter; one on the modules of original code is converted in memory.

    Args:
        key: the configuration key, for errors.
        model: a base model.
        folder: an adapter in PEFT's layout, or a run folder that holds one.
        trainable: whether to go on training it.

    Raises:
        UserError: the folder holds no adapter, or one that does not fit the model.
    """
    import ift.models.bottleneck  # noqa: F401 (PEFT then knows its type)

    place = adapter_folder(key, folder)
    try:
        with readable_adapter(key, place, model) as readable, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(model, str(readable), is_trainable=trainable)
        for one in told:
            if "missing adapter keys" in str(one.message):  # PEFT would leave these as they begin
                raise ValueError(f"weights are missing from its file. {one.message}")
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if type(loaded.get_output_embeddings()) is not NormalizedHead:
            settle_heads(loaded)  # an adapted one, which a merge would else add to rows of another length
        compute_as_the_module(loaded)
        return loaded
    except UserError:
        raise
    except (*_UNREADABLE, RuntimeError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{key}: the adapter '{folder}' does not fit the base model: {reason}") from error
