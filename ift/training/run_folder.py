"""Writes the run folder: at the start what goes in, at the end what came out."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ift.artifacts import BEGINNING, TEMPORARY, RunFolder, file_hashes, fingerprint, versions, write_json, write_text
from ift.data.steps import Step
from ift.hub import fingerprint as base_fingerprint
from ift.hub import local_folder
from ift.models.families.normalized_head import settle_heads
from ift.models.initial_adapters import changes_base, save_adapter, save_initial
from ift.models.loading import count_parameters
from ift.models.record_attention import attention_name
from ift.models.vocabulary import describe
from ift.training.deepspeed_strategy import ZeroStrategy
from ift.training.engines import engine_of
from ift.training.metrics import StepMetrics
from ift.training.run_fingerprint import code, environment, initial_weights, run_fingerprints, strategy


class RunFolderWriter(Callback):
    """Writes configuration, manifest, tokenizer and template before training, adapter or model after it.

    A resumed run continues its folder: the first configuration stays, the manifest gains a session.

    Args:
        run: the folder.
        config: the resolved configuration, as YAML text.
        settings: what of the configuration decides the result, for the fingerprint.
        metrics: for timings and rates.
    """

    def __init__(self, run: RunFolder, config: str, settings: dict[str, Any], metrics: StepMetrics) -> None:
        self._run, self._config, self._settings, self._metrics = run, config, settings, metrics
        self._manifest: dict[str, Any] = {}
        self._was_finished = False
        self._started = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what goes in, once the model is there."""
        resumed = self._run.has_begun  # of the first rank; the others only take part in gathering
        base = base_fingerprint(pl_module.base)  # type: ignore[arg-type]
        initial = initial_weights(pl_module, base=base)
        if not trainer.is_global_zero:
            return
        self._begin(trainer, pl_module, resumed=resumed, initial=initial)
        self._write_inputs(trainer, resumed=resumed)
        self._keep_initial_adapter(pl_module, resumed=resumed)
        write_json(self._run.manifest, self._manifest)

    def _begin(self, trainer: Trainer, pl_module: Any, *, resumed: bool, initial: str) -> None:
        """Begin the manifest, or go on with that of the run, and add a session to it."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._run.root.mkdir(parents=True, exist_ok=True)
        self._manifest = self._run.read_manifest() if resumed else self._new_manifest(pl_module, datamodule, initial)
        self._was_finished = self._manifest["status"] == "finished"
        if not resumed:  # what a kill leaves of the files that follow is begun anew
            write_json(self._run.manifest, self._manifest)
        self._manifest["sessions"].append(_session(trainer, pl_module))
        self._manifest["status"] = "running"

    def _write_inputs(self, trainer: Trainer, *, resumed: bool) -> None:
        """Write the configuration of the session; at the first, the template, the tokenizer and the rows left out."""
        number = len(self._manifest["sessions"])
        config = self._run.config if not resumed else self._run.config.with_name(f"config.session-{number}.yaml")
        write_text(config, self._config)
        if isinstance(trainer.strategy, ZeroStrategy):
            write_json(self._run.deepspeed, trainer.strategy.config)
        if resumed:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        write_json(self._run.template, datamodule.encoder.template.describe())
        datamodule.tokenizer.save_pretrained(str(self._run.tokenizer))
        _join_files(datamodule.rejects_files(), self._run.rejects)
        if removed := datamodule.removed_files():
            _join_files(removed, self._run.removed)

    def _keep_initial_adapter(self, pl_module: Any, *, resumed: bool) -> None:
        """Write the start of an adapter that took it out of the base model."""
        if pl_module.method.trains_base or not changes_base(pl_module.model.active_peft_config):
            return
        if not resumed:
            shutil.rmtree(self._run.initial_adapter, ignore_errors=True)  # a killed process may have begun it
        save_initial(pl_module.model, self._run.initial_adapter, values=pl_module.initial_values)
        pl_module.initial_values = None

    def on_session_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the session begins, now that a checkpoint is loaded, and forget what lies beyond."""
        if trainer.is_global_zero:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            if datamodule.streams:
                _keep_lines(self._run.rejects, datamodule.num_rejected)
            step = trainer.global_step
            self._manifest["sessions"][-1]["from_step"] = step
            self._manifest["validation"] = [one for one in self._manifest["validation"] if one["step"] <= step]
            write_json(self._run.manifest, self._manifest)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Keep the rows of streams that could not be used."""
        if trainer.is_global_zero and batch.progress is not None and batch.progress.rejected:
            with self._run.rejects.open("a", encoding="utf-8", errors="backslashreplace") as file:
                for _, reject in batch.progress.rejected:
                    file.write(json.dumps(reject.describe(), ensure_ascii=False, default=str) + "\n")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the result."""
        result: Any = pl_module.validation_result
        if trainer.is_global_zero and trainer.state.fn == "fit" and result is not None:
            earlier = [one for one in self._manifest["validation"] if one["step"] != result.step]
            self._manifest["validation"] = [*earlier, asdict(result)]
            write_json(self._run.manifest, self._manifest)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the trained weights and close the manifest."""
        module: Any = pl_module
        with engine_of(module).whole(module.model):
            if trainer.is_global_zero:
                self._close(trainer, pl_module)

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._was_finished or self._manifest["sessions"][-1]["from_step"] != trainer.global_step:
            self._finish(trainer, pl_module)
        else:  # a finished run was continued, and nothing was left to do
            self._manifest["sessions"].pop()
            self._manifest["status"] = "finished"
        write_json(self._run.manifest, self._manifest)

    def interrupt(self, trainer: Trainer, pl_module: LightningModule, *, status: str) -> None:
        """Close the session of a run that was asked to end before its time; all ranks must call it."""
        self._metrics.end_early(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._manifest["status"] = status
        self._manifest.pop("steps", None)  # of a finished run that was continued
        self._manifest["sessions"][-1] |= {"status": status, "to_step": trainer.global_step} | self._measured(trainer)
        write_json(self._run.manifest, self._manifest)

    def _finish(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.bad_steps.check_finite(pl_module)
        self._export(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        self._manifest["status"] = "finished"
        self._manifest["steps"] = trainer.global_step
        self._manifest["skipped_steps"] = pl_module.bad_steps.skipped
        self._manifest["out_of_memory"] = pl_module.recutting.events
        if trainer.datamodule.streams:  # type: ignore[attr-defined]
            self._manifest["data"]["streams"] = trainer.datamodule.describe_streams()  # type: ignore[attr-defined]
        self._manifest["sessions"][-1] |= self._measured(trainer)
        self._manifest["last_logged"] = {"step": self._metrics.last_step, **self._metrics.last}

    def _measured(self, trainer: Trainer) -> dict[str, Any]:
        """Return when the session ended, and how fast it was."""
        seconds = time.monotonic() - self._started
        return {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            **self._metrics.describe(trainer.world_size),
        }

    def _new_manifest(self, pl_module: Any, datamodule: Any, initial: str) -> dict[str, Any]:
        data = datamodule.describe()
        folder = local_folder(pl_module.base)
        base = {
            "name": pl_module.base,
            "path": str(folder.resolve()) if folder is not None else None,
            "fingerprint": base_fingerprint(pl_module.base),
        }
        parts = {"settings": self._settings, "data": data["prepared"], "base": base["fingerprint"]}
        if pl_module.growth is not None:
            parts["vocabulary"] = pl_module.growth.fingerprint
        parts |= {"validation": data.get("validation_prepared"), "versions": versions()}
        return {
            "status": BEGINNING,
            "config_sha256": hashlib.sha256(self._config.encode()).hexdigest(),
            "fingerprint": fingerprint(parts),
            "fingerprints": run_fingerprints(
                pl_module, datamodule, data=data, settings=self._settings, base=base["fingerprint"], initial=initial
            ),
            "base": base,
            "dtype": pl_module.dtype_name,
            "quantization": asdict(pl_module.quantization) if pl_module.quantization is not None else None,
            "rope": asdict(pl_module.rope) if pl_module.rope is not None else None,
            "method": pl_module.method.name,
            "adapter": _adapter_kind(pl_module),
            "budget": asdict(pl_module.allotment) if pl_module.allotment is not None else None,
            "merged_adapters": [asdict(one) for one in pl_module.merged_chain],
            "vocabulary": _vocabulary(pl_module),
            "seed": pl_module.seed,
            "versions": versions(),
            "parameters": count_parameters(pl_module),
            "data": data,
            "sessions": [],
            "validation": [],
        }

    def _export(self, pl_module: Any, datamodule: Any) -> None:
        whole = pl_module.method.trains_base
        target = self._run.model if whole else self._run.adapter
        building = target.with_name(target.name + TEMPORARY)
        shutil.rmtree(building, ignore_errors=True)  # left by a killed export of this same run
        if whole:
            settle_heads(pl_module.model, trained=True)  # as the class that is written has them
            pl_module.model.save_pretrained(str(building))
            datamodule.tokenizer.save_pretrained(str(building))
        else:
            save_adapter(pl_module.model, building, initial=self._run.initial_adapter)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier session of this same run
        building.rename(target)
        self._manifest["exported"] = file_hashes(target)


def _session(trainer: Trainer, module: Any) -> dict[str, Any]:
    """Return what the manifest says of a session that begins now."""
    rows = trainer.datamodule.row_layout_choice  # type: ignore[attr-defined]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": 0,
        "world_size": trainer.world_size,
        "row_layout": {"layout": rows.layout, "reason": rows.reason},
        "attention": attention_name(module.model.config),
        "kernels": asdict(module.kernel_choice),
        "versions": versions(),
        "code": code(),
        "environment": environment(trainer),
        "strategy": strategy(trainer),
    }


def _adapter_kind(pl_module: Any) -> str | None:
    """Return the class of the adapter's configuration, or `None` where the base model itself is trained."""
    return None if pl_module.method.trains_base else type(pl_module.model.active_peft_config).__name__


def _vocabulary(pl_module: Any) -> dict[str, Any] | None:
    """Return by what the base model was enlarged, or `None` where it has the rows that it came with."""
    if pl_module.growth is None:
        return None
    return describe(pl_module.vocabulary, pl_module.growth, seed=pl_module.seed)


def _keep_lines(path: Path, number: int) -> None:
    """Cut off what a file holds after so many lines; a line torn by a kill lies after them."""
    with path.open("r+b") as file:
        for _ in range(number):
            file.readline()
        file.truncate(file.tell())


def _join_files(sources: list[Path], target: Path) -> None:
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)
