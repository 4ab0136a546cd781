"""What a stage of a chain starts from, and what of it can be refused before the first stage has trained.

In: the stages of a chain, and what the ones before have left behind. Out: settings that win over a stage's own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from peft import AdaLoraConfig

from ift.artifacts import RunFolder, fingerprint, flat_decisive
from ift.commands.stage_config import Chain, Stage, StageFiles
from ift.commands.trainer import TrainingCLI, prepare
from ift.errors import UserError
from ift.models.adapters import can_go_on, empty_model, peft_config_of, resolved
from ift.models.initial_adapters import changes_base
from ift.models.loading import read_config
from ift.models.mergeability import check_mergeable
from ift.models.methods import Method
from ift.models.quantization import is_quantized
from ift.models.trained_adapters import adapter_folder
from ift.models.vocabulary import Growth, enlarged_config, vocabulary_of_run

Settings = dict[str, Any]
"""Keys of a run, nested as in YAML."""


@dataclass(frozen=True)
class CheckedStage:
    """A stage whose settings and data are fit to train."""

    stage: Stage
    base: str
    merged_adapters: tuple[str, ...]
    method: Method
    adapter: Any
    """`model.adapter`, as plain values."""
    quantization: Settings | None
    vocabulary: Settings | None
    """`model.vocabulary`, as plain values."""
    growth: Growth | None
    quantized: bool
    """Whether the weights in memory will be, by setting or by the base model's own files."""
    dtype: str
    rope: Settings | None
    learning_rate: float | None
    num_processes: int
    data_key: str
    """Of the validation set, and of all that its losses depend on besides the model."""


def start_keys(stage: Stage, before: RunFolder, method: Method) -> Settings | None:
    """Return the settings that a stage starts from, or `None` where its own say it.

    Args:
        stage: the stage.
        before: the finished run of the stage before it.
        method: of that stage.
    """
    if stage.start == "fresh":
        return None
    manifest = before.read_manifest()
    if manifest["adapter"] is None:
        return {"model": {"base": str(before.model), "merged_adapters": None}}
    base, merged = manifest["base"]["name"], [one["folder"] for one in manifest["merged_adapters"]]
    changed = _kept("vocabulary", stage, vocabulary_of_run(before, manifest))
    changed |= _kept("rope", stage, manifest.get("rope"))
    if stage.start == "merge":
        return {"model": {"base": base, "merged_adapters": [*merged, str(before.adapter)], **changed}}
    own = {**changed, "base": base, "merged_adapters": merged or None, "adapter": _gone_on_with(before, method)}
    if stage.sets("model.quantization") is None:  # a short name (qlora) may have brought it, and is not there now
        own["quantization"] = manifest["quantization"]
    return {"model": own}


def _kept(name: str, stage: Stage, before: Settings | None) -> Settings:
    """Return what the stage before set of the base model as a key of the model, where the stage itself does not."""
    return {name: before} if before is not None and stage.sets(f"model.{name}") is None else {}


def _gone_on_with(before: RunFolder, method: Method) -> Any:
    if method.learning_rate_ratio == 1:
        return str(before.adapter)
    settings = {"folder": str(before.adapter), "learning_rate_ratio": method.learning_rate_ratio}
    return {"class_path": "ift.models.methods.trained", "init_args": settings}


def model_keys(checked: CheckedStage, after: RunFolder | None) -> Settings:
    """Return the settings of a model to measure: the one that a stage left behind, or what the chain starts from.

    Args:
        checked: the stage; for what the chain starts from, the first.
        after: its finished run, or `None`.
    """
    if after is None:
        # What trains base weights cannot stand on quantized ones; a fresh LoRA adds exactly 0.
        nothing = "lora" if checked.quantized else None
        adapter = str(checked.method.config) if isinstance(checked.method.config, Path) else nothing
        merged = list(checked.merged_adapters) or None
        own = {"base": checked.base, "merged_adapters": merged, "adapter": _as_folder(adapter)}
        own["vocabulary"] = _untrained(checked.vocabulary, trains_base=nothing is None)
        as_loaded = {"dtype": checked.dtype, "quantization": checked.quantization, "rope": checked.rope}
        return {"model": {**own, **as_loaded}}
    manifest = after.read_manifest()
    if manifest["adapter"] is None:
        own = {"base": str(after.model), "merged_adapters": None, "adapter": None, "vocabulary": None, "rope": None}
    else:
        merged = [one["folder"] for one in manifest["merged_adapters"]] or None
        own = {"base": manifest["base"]["name"], "merged_adapters": merged, "adapter": _as_folder(str(after.adapter))}
        own["vocabulary"], own["rope"] = vocabulary_of_run(after, manifest), manifest.get("rope")
    return {"model": {**own, "dtype": manifest["dtype"], "quantization": manifest["quantization"]}}


def _untrained(vocabulary: Settings | None, *, trains_base: bool) -> Settings | None:
    """Return a vocabulary for a model that is only measured; whole weights are named as trained, and trained never."""
    return {**vocabulary, "train": None if trains_base else "none"} if vocabulary is not None else None


def _as_folder(adapter: str | None) -> Any:
    if adapter is None or adapter == "lora":
        return adapter
    return {"class_path": "ift.models.methods.trained", "init_args": {"folder": adapter}}


def check_start(stage: Stage, before: CheckedStage | None) -> None:
    """Refuse a start that the stage's keys contradict, or that the stage before cannot give.

    Args:
        stage: the stage.
        before: the stage before it.

    Raises:
        UserError: with the place and the key.
    """
    if stage.start == "fresh" or before is None:
        return
    if place := stage.sets("model.merged_adapters"):
        raise UserError(
            f"{place}: {stage.key}.model.merged_adapters: follows from the stages before, as the stage's start is "
            f"'{stage.start}'. Leave it out, or set start to fresh."
        )
    if before.method.trains_base:
        if stage.start == "merge":
            raise UserError(
                f"{stage.place}: {stage.key}.start: '{before.stage.name}' trains the base model's own weights "
                f"({before.method.name}) and leaves no adapter to merge. Set start to continue: it begins with them."
            )
        return
    if stage.start == "merge":
        _check_merges(stage, before)
    else:
        _check_goes_on(stage, before)


def _check_goes_on(stage: Stage, before: CheckedStage) -> None:
    if place := stage.sets("model.adapter"):
        raise UserError(
            f"{place}: {stage.key}.model.adapter: start 'continue' goes on with the adapter of '{before.stage.name}'. "
            "Leave it out, or set start to merge (another adapter on top) or fresh."
        )
    if not can_go_on(peft_config_of(before.method)):
        raise UserError(
            f"{stage.place}: {stage.key}.start: '{before.method.name}' adapters cannot be trained further: PEFT keeps "
            "what their virtual tokens became, not the network that wrote them. Set start to fresh, or take lora."
        )


def _check_merges(stage: Stage, before: CheckedStage) -> None:
    key = f"{stage.place}: {stage.key}.start: merge"
    config = enlarged_config(read_config(before.base), before.growth)
    if before.quantized:
        raise UserError(
            f"{key}: adapters are not merged into quantized weights, which would round them again. Set start to "
            "continue or fresh, or leave model.quantization out."
        )
    if isinstance(before.method.config, Path):
        check_mergeable(key, adapter_folder("model.adapter", before.method.config), config=config)
    elif (model := empty_model(before.base, before.growth)) is not None:
        adapter: Any = resolved(before.method, model, num_steps=None)
        if changes_base(adapter):  # it is saved as a plain LoRA of the base model
            adapter.init_lora_weights = True
        with TemporaryDirectory() as folder:
            adapter.save_pretrained(folder)
            check_mergeable(key, Path(folder), config=config)


def check_stage(
    chain: Chain, files: StageFiles, stage: Stage, *, before: CheckedStage | None, finished: bool
) -> CheckedStage:
    """Parse a stage's settings, prepare its data and try its method on the base model without weights.

    Args:
        chain: of the stage.
        files: of the chain.
        stage: the stage.
        before: the stage before it.
        finished: whether the stage before has finished, so that what this one starts from is there.

    Raises:
        UserError: with file, line and stage.
    """
    with files.places(stage):
        check_start(stage, before)
        last = None
        if before is not None and stage.start != "fresh" and not finished:
            last = _unfinished(stage, before)
        elif before is not None and finished:
            last = start_keys(stage, RunFolder(chain.folder(before.stage)), before.method)
        cli = prepare("fit", files.arguments(stage, last, resume=True), tell=False)
        cli.lock.release()  # it may be other processes that train the stage
        _check_run(stage, before, cli)
        plain = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        if cli.run.manifest.is_file() and cli.run.read_manifest()["status"] == "finished":
            cli.run.check_same_duration(plain)
    checked = _checked(stage, cli, plain)
    goes_on = before is not None and stage.start == "continue" and not before.method.trains_base
    # Of an adapter that is gone on with, later stages ask what it was when it began.
    return replace(checked, method=before.method, adapter=before.adapter) if before and goes_on else checked


def _unfinished(stage: Stage, before: CheckedStage) -> Settings:
    """Return the settings that stand for a start that is not there yet."""
    own, positions = _kept("vocabulary", stage, before.vocabulary), _kept("rope", stage, before.rope)
    if before.method.trains_base:  # its model will have the rows, and train those that the stage asks for
        return {"model": positions | {name: {**one, "train": None} for name, one in own.items()}}
    if stage.start == "continue":
        own["adapter"] = before.adapter  # the same one, before it was trained
    return {"model": own | positions}


def _check_run(stage: Stage, before: CheckedStage | None, cli: TrainingCLI) -> None:
    """Refuse a run that is none of a chain's."""
    if cli.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes: {cli.trainer.num_nodes}, and a chain of stages runs on one machine. Train the stages "
            "one by one, each with model.adapter or model.merged_adapters."
        )
    if not cli.datamodule.num_validation_examples:
        raise UserError(
            f"{stage.place}: {stage.key}.data.validation: null holds nothing out, and forgetting is measured on every "
            "stage's validation set. Set it."
        )
    if before is not None and stage.start == "merge" and isinstance(cli.model.method.config, Path):
        raise UserError(
            f"{stage.place}: {stage.key}.model.adapter: '{cli.model.method.config}' was not trained on top of "
            f"'{before.stage.name}', and start is 'merge'. Name a method."
        )
    _check_duration(cli)


def _check_duration(cli: TrainingCLI) -> None:
    """Refuse too few steps for AdaLoRA, whose budget follows them, before any stage trains."""
    if (
        not isinstance(cli.model.method.peft_config, AdaLoraConfig)
        or (model := empty_model(cli.model.base, cli.model.growth)) is None
    ):
        return
    trainer = cli.trainer
    most = [trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or -1) > 0 and not cli.datamodule.streams:
        most.append(trainer.max_epochs * cli.datamodule.num_steps_per_epoch)
    resolved(cli.model.method, model, num_steps=min(most) if most else None)


def _checked(stage: Stage, cli: TrainingCLI, plain: Settings) -> CheckedStage:
    described = cli.datamodule.describe()
    data = {key: value for key, value in flat_decisive(plain).items() if not key.startswith("model.")}
    kept = {key: described.get(key) for key in ("prepared", "validation_prepared")}
    rate = (plain["model"]["optimizer"].get("init_args") or {}).get("lr")
    return CheckedStage(
        stage=stage,
        base=cli.model.base,
        merged_adapters=tuple(cli.model.merged_adapters),
        method=cli.model.method,
        adapter=plain["model"]["adapter"],
        quantization=asdict(cli.model.quantization) if cli.model.quantization is not None else None,
        vocabulary=plain["model"]["vocabulary"],
        growth=cli.model.growth,
        quantized=is_quantized(read_config(cli.model.base), cli.model.quantization),
        dtype=cli.model.dtype_name,
        rope=asdict(cli.model.rope) if cli.model.rope is not None else None,
        learning_rate=float(rate) if rate is not None else None,
        num_processes=cli.trainer.world_size,
        data_key=fingerprint({"settings": data, "precision": plain["trainer"]["precision"], **kept}),
    )


def key_of_model(settings: Mapping[str, Any], exported: Mapping[str, str] | None) -> str:
    """Return a fingerprint of a model to measure: its settings, and the files that a stage has trained."""
    return fingerprint({"settings": settings, "exported": exported})
