"""The run folder: what a finished run leaves behind, and how to read it. Starts without torch.

RUN/config.yaml        the resolved configuration; of later sessions, config.session-N.yaml
RUN/manifest.json      versions, seed, hashes and counts of data and trained weights, parameters, timings, results
RUN/template.json      the template
RUN/tokenizer/         the tokenizer
RUN/adapter/           the trained adapter, in PEFT's layout
RUN/adapter_initial/   the adapter before the first step, where its first value was taken out of the base model (PiSSA)
RUN/model/             in the place of an adapter, the model and its tokenizer, in transformers' layout
RUN/checkpoints/       trainable weights, optimizer, schedule and data position, for resuming
RUN/tensorboard/       TensorBoard's log
RUN/bad_step-N.jsonl   examples of a step that was left out or stopped the run, the largest loss first; of other ranks
                       than the first, bad_step-N.rank-R.jsonl
RUN/losses.jsonl       the exact loss of every optimizer step
RUN/rejects.jsonl      rows that could not be used, with file, line and reason
RUN/deepspeed.json     DeepSpeed's settings, where trainer.strategy is one of its
RUN/removed.jsonl      rows that were asked to be left out (duplicates, contaminated ones), where there are any
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ift.errors import UserError

PACKAGES = (
    "ift",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)
DECISIVE = ("seed_everything", "model.", "data.")
CHANGEABLE = frozenset(
    {
        "model.attention",
        "model.compile",
        "model.gradient_checkpointing",
        "model.kernels",
        # What a run was stopped for may be left out when it goes on; the manifest tells which steps were.
        "model.on_bad_step.action",
        "model.on_bad_step.most_in_a_row",
        "model.on_bad_step.spike_ratio",
        "model.on_bad_step.window",
        "data.micro_batch_tokens",
        "data.auto_micro_batch",
        "data.row_layout",
        "data.num_workers",
        "data.cache_dir",
        "data.max_rejected",
    }
)
"""Settings under `DECISIVE` that a run may go on with otherwise; all but `on_bad_step` never change the result."""
DURATION = tuple(
    f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "precision")
)
"""Settings of the Trainer that decide the result of a finished run; an unfinished one may go on with others."""


TEMPORARY = ".tmp"
"""Ends the name of what is being written; it is renamed when it is whole."""
BEGINNING = "beginning"
"""Status of a run whose folder is not complete yet; killed then, it begins anew."""


class RunFolder:
    """The places of a run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.config = self.root / "config.yaml"
        self.manifest = self.root / "manifest.json"
        self.template = self.root / "template.json"
        self.tokenizer = self.root / "tokenizer"
        self.adapter = self.root / "adapter"
        self.initial_adapter = self.root / "adapter_initial"
        self.model = self.root / "model"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.losses = self.root / "losses.jsonl"
        self.rejects = self.root / "rejects.jsonl"
        self.removed = self.root / "removed.jsonl"
        self.deepspeed = self.root / "deepspeed.json"

    def check_present(self) -> None:
        """Refuse to write into a run folder that was there: it must not be made anew on the disk beneath a mount.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(2, "the run folder is gone (a mount that vanished?)", str(self.root))

    @property
    def has_begun(self) -> bool:
        """Whether a run has written here what goes in."""
        return self.manifest.is_file() and self.read_manifest()["status"] != BEGINNING

    def remove_unbegun(self, *, was_there: bool) -> None:
        """Remove what the logger opened if the model could not be built: a run begins with its manifest.

        Args:
            was_there: whether the folder was there before; it stays then.
        """
        if not was_there and not self.manifest.is_file():
            shutil.rmtree(self.tensorboard, ignore_errors=True)
            with suppress(OSError):  # absent, or not empty
                self.root.rmdir()

    def check_new(self) -> None:
        """Refuse a folder that holds anything, so that nothing of an older run is overwritten.

        Raises:
            UserError: the folder exists and is not empty, or cannot be made.
        """
        self._check_place()
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(
                f"run_dir: '{self.root}' exists, and nothing in an older run is ever overwritten. "
                "Give another run_dir, or continue that run with --ckpt_path last."
            )

    def check_continuable(self) -> None:
        """Refuse to continue a folder that is no run's; an empty or missing one begins a run.

        A run that was killed while its model loaded has only begun its log.

        Raises:
            UserError: something that no run writes, and no manifest; or the folder cannot be made.
        """
        self._check_place()
        if self.manifest.is_file() or not self.root.exists():
            return
        own = {self.tensorboard.name, self.checkpoints.name}
        if not self.root.is_dir() or any(path.name not in own for path in self.root.iterdir()):
            raise UserError(
                f"run_dir: '{self.root}' holds files but no manifest.json, so it is no run to continue. "
                "Give another run_dir."
            )

    def _check_place(self) -> None:
        above = next((folder for folder in self.root.absolute().parents if folder.exists()), None)
        if not self.root.exists() and above is not None and not (above.is_dir() and os.access(above, os.W_OK)):
            raise UserError(
                f"run_dir: '{self.root}' cannot be made: '{above}' is no folder that you can write to. Give another "
                "run_dir."
            )

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Refuse to continue a run with settings that decide its result and differ from those it began with.

        How long to train and how steps are cut may change.

        Args:
            config: the resolved configuration, as plain values.

        Raises:
            UserError: with the first key that differs.
        """
        if not self.has_begun:
            return
        kept = self.read_manifest().get("config_sha256")
        self.read_config()
        if kept is not None and hashlib.sha256(self.config.read_bytes()).hexdigest() != kept:
            raise UserError(
                f"'{self.config}' has been changed since the run began, so it no longer says what the run is. Restore "
                "it, and give settings that may change on resume by a file of your own or on the command line."
            )
        begun, now = (
            flat_decisive(one) | {"trainer.precision": full_precision_name(one["trainer"]["precision"])}
            for one in (self.read_config(), config)
        )
        differing = sorted(key for key in begun.keys() | now.keys() if begun.get(key) != now.get(key))
        if differing:
            first = differing[0]
            raise UserError(
                f"{first}: '{self.root}' began with {begun.get(first)!r}, and is to be continued with "
                f"{now.get(first)!r}. Resume with the same settings, or begin a new run_dir."
                + (f" Also different: {', '.join(differing[1:6])}." if differing[1:] else "")
            )

    def check_not_shortened(self, config: Mapping[str, Any], *, has_checkpoint: bool) -> None:
        """Refuse to end a finished run anew at an earlier step, whose weights would take the place of its own.

        Args:
            config: the resolved configuration, as plain values.
            has_checkpoint: whether there is one to go on from.

        Raises:
            UserError: with the reason.
        """
        if not self.has_begun or (manifest := self.read_manifest())["status"] != "finished":
            return
        then, now = self._last_session()["trainer"], config["trainer"]
        # What ended the run: epochs end it only where nothing says how many steps.
        key, done = ("max_steps", manifest["steps"])
        if then["max_steps"] < 1 and now["max_steps"] < 1:
            key, done = ("max_epochs", then["max_epochs"] or 0)
        most = now[key] or -1
        if 0 < most < done:
            raise UserError(
                f"trainer.{key}: '{self.root}' is finished with {done} {key[4:]}, and {most} would put an older state "
                "in the place of its result. Give another run_dir."
            )
        if not has_checkpoint:
            raise UserError(
                f"ckpt_path: 'last' finds no checkpoint in '{self.root}', which is finished: all of it would be "
                "trained anew and overwritten. Give another run_dir."
            )

    def check_same_duration(self, config: Mapping[str, Any]) -> None:
        """Refuse settings that would have trained a finished run for another time, or in another precision.

        Args:
            config: the resolved configuration, as plain values.

        Raises:
            UserError: with the first key that differs.
        """
        then, now = flat(self._last_session()), flat(config)
        for key in DURATION:
            if then.get(key) != now.get(key):
                raise UserError(
                    f"{key}: '{self.root}' is finished with {then.get(key)!r}, and here it is {now.get(key)!r}. What "
                    "was trained after it began from there. Restore the setting, or begin a new run_dir."
                )

    def _last_session(self) -> dict[str, Any]:
        """Read the configuration of the last session."""
        sessions = {int(path.stem.rpartition("-")[2]): path for path in self.root.glob("config.session-*.yaml")}
        return self.read_config(sessions[max(sessions)] if sessions else self.config)

    def later_than(self, step: int) -> str:
        """Return a note where the run has finished later than a checkpoint, whose weights are not its result then.

        Args:
            step: of the checkpoint.
        """
        if not self.has_begun or (manifest := self.read_manifest())["status"] != "finished":
            return ""
        if (steps := manifest["steps"]) <= step:
            return ""
        result = self.adapter if self.adapter.is_dir() else self.model
        return (
            f"note: '{self.root}' has finished with {steps} steps, and this checkpoint is of step {step}: the last one "
            f"that checkpoint.every_n_train_steps wrote. The result of the run is in {result}."
        )

    def read_config(self, path: Path | None = None) -> dict[str, Any]:
        """Read the configuration that the run began with, or that of a later session.

        Raises:
            UserError: it is gone, or no YAML mapping any more.
        """
        import yaml

        path = path or self.config
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"'{path}' cannot be read: {' '.join(str(error).split())}. Restore it.") from error
        if not isinstance(config, dict):
            raise UserError(f"'{path}' is damaged: it holds no mapping. Restore it.")
        return config

    def read_manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            UserError: the folder is no run folder.
        """
        if not self.manifest.is_file():
            raise UserError(f"'{self.root}' is no run folder: it holds no manifest.json.")
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"'{self.manifest}' is damaged: {error}. Restore it; checkpoints need it.") from error
        if not isinstance(manifest, dict) or "status" not in manifest:
            raise UserError(f"'{self.manifest}' is damaged: it holds no status. Restore it; checkpoints need it.")
        return manifest


def flat_decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's result, by dotted key; without how long it trains."""
    return {key: one for key, one in flat(config).items() if key.startswith(DECISIVE) and key not in CHANGEABLE}


def full_precision_name(typed: Any) -> str:
    """Return Lightning's full name of a `trainer.precision`, whichever of its names was typed."""
    return {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed"}.get(str(typed), str(typed))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {key: one for name, part in value.items() for key, one in flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def check_new_folder(key: str, output: Path) -> None:
    """Refuse to write a folder where something is.

    Args:
        key: the option that named it.
        output: the folder.

    Raises:
        UserError: something of that name exists.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{key}: '{output}' exists, and nothing is ever overwritten. Give another folder.")


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder, by its name below it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def fingerprints(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return a sha256 of each named part of a run, and under `total` one over all of them.

    Two runs with the same total should agree bit for bit; where they do not agree, the parts say what differed.
    """
    found = {name: fingerprint({name: part}) for name, part in parts.items()}
    return {**found, "total": fingerprint(found)}


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return a sha256 over all that decides a run's result; two runs with the same one should agree."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
