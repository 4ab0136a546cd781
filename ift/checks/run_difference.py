"""What differed between two runs, and where their results part. Starts without torch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ift.artifacts import RunFolder, flat
from ift.checks.changes import ABSENT, Change, changes, nested_changes
from ift.checks.dropout_masks import masks_hint
from ift.checks.loss_curves import Parting, compare_losses, rounding_text
from ift.checks.run_sessions import LaterSession, later_sessions, session_facts
from ift.checks.weight_difference import WeightDifference, compare_weights
from ift.errors import UserError
from ift.training.decisive_settings import decisive_settings, is_decisive

_WITHOUT_MEANING = ("run_dir", "ckpt_path")
"""Settings that say where a run lies, and what it went on from."""
PARTS = {
    "data": "the bytes of the data's files",
    "labels": "the examples: ids and labels after masking",
    "tokenizer": "the tokenizer",
    "template": "the template",
    "base": "the base model",
    "initial_weights": "the trainable weights before the first step",
    "code": "the code of ift",
    "environment": "versions, machine and libraries",
    "strategy": "devices and strategy",
}
"""Parts of the fingerprint, in the order in which one leads to the next."""


@dataclass(frozen=True)
class RunDifference:
    """Two runs against each other."""

    settings: tuple[Change, ...]
    """Those that weights or losses may depend on."""
    settings_without_effect: tuple[Change, ...]
    """Those that change no weights and no losses."""
    same_fingerprint: bool | None
    """Whether all that decides the results is the same, settings and parts; `None` where a run does not know it."""
    parts: dict[str, bool | None]
    """Part of the fingerprint to whether it is the same; `None` where a run does not know it."""
    details: tuple[Change, ...]
    """What of code, environment, strategy and counts differs, where the manifests hold it."""
    sessions: tuple[tuple[LaterSession, ...], tuple[LaterSession, ...]]
    """The sessions after the first one, of each run."""
    losses: Parting
    rounding: str | None
    """What the largest gap of the losses means; `None` where there is none."""
    dropout: str | None
    """Why dropout masks differ by design; `None` where they do not."""
    weights: WeightDifference
    validation: tuple[Change, ...]
    """Validation results that differ, by step."""

    @property
    def same(self) -> bool:
        """Whether losses, validation and final weights are the same to the last bit, whatever the settings say."""
        return self.losses.same and self.weights.same and not self.validation

    def describe(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"same": self.same, **asdict(self)}


def compare_runs(one: str, other: str) -> RunDifference:
    """Compare two run folders.

    Args:
        one: a run folder.
        other: another one.

    Raises:
        UserError: no run folder, or a damaged one.
    """
    folders = [RunFolder(one), RunFolder(other)]
    manifests = [_manifest(key, folder) for key, folder in zip(("RUN_A", "RUN_B"), folders, strict=True)]
    counting, others = _settings(*folders)
    details = changes(*(_facts(manifest) for manifest in manifests))
    one_later, other_later = (later_sessions(*run) for run in zip(folders, manifests, strict=True))
    losses = compare_losses(*folders)
    later = () if one_later == other_later else (*one_later, *other_later)
    differing = [change.name for part in (counting, details, *(one.changes for one in later)) for change in part]
    return RunDifference(
        settings=counting,
        settings_without_effect=others,
        same_fingerprint=_same_part("total", *manifests),
        parts={part: _same_part(part, *manifests) for part in PARTS},
        details=tuple(details),
        sessions=(one_later, other_later),
        losses=losses,
        rounding=rounding_text(losses, _dtypes(manifests)),
        dropout=masks_hint(
            list(zip(folders, manifests, strict=True)),
            differing,
            recut=any(manifest.get("out_of_memory") for manifest in manifests),
        ),
        weights=compare_weights(*folders),
        validation=tuple(changes(*(_validation(manifest) for manifest in manifests))),
    )


def _manifest(key: str, folder: RunFolder) -> Mapping[str, Any]:
    try:
        return folder.read_manifest()
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _same_part(part: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    hashes = [manifest.get("fingerprints", {}).get(part) for manifest in (one, other)]
    return hashes[0] == hashes[1] if None not in hashes else None


def _settings(one: RunFolder, other: RunFolder) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Return what differs and may change weights or losses, and what differs beside it."""
    configs = [run.read_config() if run.config.is_file() else {} for run in (one, other)]
    found = list(nested_changes("", *configs))
    places = [str(run.root) for run in (one, other)]
    found = [
        change
        for change in found
        if not change.name.endswith(_WITHOUT_MEANING)
        # What follows from the run folder's place is no setting of its own.
        and not (str(change.one).startswith(places[0]) and str(change.other).startswith(places[1]))
    ]
    decisive = [decisive_settings(config) for config in configs]
    counting = tuple(change for change in found if is_decisive(change.name, *decisive))
    return counting, tuple(change for change in found if change not in counting)


def _dtypes(manifests: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return in what numbers the runs computed."""
    precisions = {str(flat((manifest.get("sessions") or [{}])[0]).get("strategy.precision")) for manifest in manifests}
    mixed = {name for name in ("bfloat16", "float16") for one in precisions if one.startswith(name.replace("loat", ""))}
    return mixed | {str(manifest.get("dtype")) for manifest in manifests}


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of parts that have a hash and more, by dotted name; of the first session."""
    first = (manifest.get("sessions") or [{}])[0]
    facts = {**session_facts(first), "from_step": first.get("from_step")}
    for name in ("base.name", "base.fingerprint", "seed", "steps", "status"):
        facts[name] = flat(manifest).get(name, ABSENT)
    for number, source in enumerate(manifest.get("data", {}).get("sources", [])):
        for name in ("path", "sha256", "rows", "examples", "tokens", "supervised_tokens"):
            facts[f"data.sources[{number}].{name}"] = source.get(name, ABSENT)
    return facts


def _validation(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {f"validation loss at step {one['step']}": one["loss"] for one in manifest.get("validation", [])}
