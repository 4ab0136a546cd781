"""`ift predict`: answer prompts, or rank given options, with a run folder or a base model."""

import hashlib
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from ift import hub
from ift.artifacts import RunFolder
from ift.commands.cluster import settle_devices
from ift.commands.trainer import IftCLI, is_first_process
from ift.commands.trainer_settings import check_trainer
from ift.data.encoding import tokenizer_hash
from ift.data.enlarged_tokenizer import enlarged_tokenizer
from ift.data.templates import Template
from ift.errors import UserError
from ift.inference.module import PredictionModule
from ift.inference.prediction_folder import PredictionFolder, PredictionWriter
from ift.inference.prompts import PromptDataModule
from ift.inference.windows import Windows
from ift.models.trained_run import base_of_run, merged_adapters_of
from ift.models.vocabulary import growth_of_run, vocabulary_of_run


def run_settings(run: RunFolder, *, untuned: bool = False) -> dict[str, Any]:
    """Return the keys that a run folder decides, as a configuration.

    Args:
        run: a finished one.
        untuned: take its base model without anything trained, and the rest as the run has it.

    Raises:
        UserError: no run folder, an unfinished one, or one whose base model has changed since.
    """
    try:
        manifest = run.read_manifest()
    except UserError as error:
        raise UserError(f"run: {error}") from error
    if manifest["status"] != "finished":
        raise UserError(f"run: '{run.root}' is not finished. Continue it with ift fit --ckpt_path last.")
    template = json.loads(run.template.read_text(encoding="utf-8"))
    if "chat_template" not in template:
        template = asdict(Template(**template))  # with the fields that a run of an older version does not know
    settings = {
        "data.template": "tokenizer" if "chat_template" in template else template,
        "data.template_options": template.get("options") or None,
        "data.tokenizer": str(run.tokenizer),
        "model.dtype": manifest["dtype"],
    }
    if untuned:
        nothing = {"model.adapter": None, "model.merged_adapters": None}
        return settings | nothing | _base_settings(run, manifest)
    if manifest["adapter"] is None:
        return settings | {"model.base": str(run.model), "model.vocabulary": None}
    merged = [one.folder for one in merged_adapters_of("run", manifest)]
    own = {"model.adapter": str(run.adapter), "model.merged_adapters": merged or None}
    return settings | _base_settings(run, manifest) | own


def _base_settings(run: RunFolder, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a run's base model, before anything was trained."""
    name = base_of_run("run", run, manifest["base"])
    growth_of_run("run", run, manifest, base=name)
    vocabulary = vocabulary_of_run(run, manifest)
    as_loaded = {f"model.{key}": manifest.get(key) for key in ("quantization", "rope")}
    return {"model.base": name, **as_loaded, "model.vocabulary": vocabulary}


class PredictCLI(IftCLI):
    """The command line of `predict`."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("predict", arguments, PredictionModule, PromptDataModule)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run to predict with and the folder to write to."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--run", type=str | None, default=None, help="a run folder: its base model, adapter, tokenizer, template"
        )
        parser.add_argument(
            "--untuned", type=bool, default=False, help="with --run: its base model without anything that was trained"
        )
        parser.add_argument(
            "--output_dir", type=str, required=True, help="new folder for predictions.jsonl, or one to continue"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let a run folder set the defaults of what it decides."""
        run, untuned = _value_of("run", args), _value_of("untuned", args) == "true"
        settings = run_settings(RunFolder(run), untuned=untuned) if run is not None else {}
        parser.set_defaults(settings)
        super().parse_arguments(parser, args)
        for key, value in settings.items():
            if key != "model.dtype" and _plain(self.config[key]) != value:
                raise UserError(f"{key}: with --run '{run}' it is decided by that run. Leave one of the two out.")
        if self.config["run"] != run:
            raise UserError("run: name the run folder on the command line (--run RUN), not in a YAML file.")
        if self.config["untuned"] != untuned:
            raise UserError("untuned: say it on the command line (--untuned true), not in a YAML file.")
        if untuned and run is None:
            raise UserError("untuned: it takes the base model of a run. Give --run, or model.base without it.")

    def before_instantiate_classes(self) -> None:
        """Refuse settings that make no sense here."""
        check_trainer(self.config["trainer"], self.command)
        settle_devices(self.config["trainer"])
        own = self.config["data"]["tokenizer"]
        if self.config["run"] is None and own is not None and self.config["model"]["vocabulary"] is not None:
            raise UserError(
                f"data.tokenizer: '{own}', and model.vocabulary says which tokenizer the model has. Leave it out."
            )

    def own_callbacks(self) -> list[Callback]:
        """Add what writes the predictions."""
        vocabulary = self.model.vocabulary
        base = self.config["model"]["base"]
        self.datamodule.load(enlarged_tokenizer(base, vocabulary.enlarged) if vocabulary is not None else None)
        model = {name: self.config["model"][name] for name in ("base", "adapter")} | {"run": self.config["run"]}
        folder = PredictionFolder(self.config["output_dir"], model)
        identity = self._identity()
        done = folder.answered(identity, mend=is_first_process())
        if done:
            print(f"continuing: {len(done)} of {len(self.datamodule.prompts)} prompts are answered already")
        self.datamodule.done = done
        return [PredictionWriter(folder, identity, done)]

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Write no log and no checkpoint."""
        return super().instantiate_trainer(**options, logger=False, enable_checkpointing=False)

    def _identity(self) -> dict[str, Any]:
        """Return all that decides the predictions."""
        adapter = self.config["model"]["adapter"]
        quantization = self.model.quantization
        identity = {
            "prompts": self.datamodule.digest,
            "layout": self.datamodule.source.layout,
            "base": hub.fingerprint(self.config["model"]["base"]),
            "adapter": _adapter_hash(Path(adapter)) if adapter else None,
            "template": self.datamodule.encoder.template.describe(),
            "tokenizer": tokenizer_hash(self.datamodule.encoder.tokenizer),
            "dtype": self.config["model"]["dtype"],
            "precision": str(self.config["trainer"]["precision"]),
            "decoding": vars(self.model.decoding),
            "seed": self.model.seed,
            "batch_size": self.datamodule.batch_size,
        }
        if self.datamodule.join_options is not None:
            identity["join_options"] = self.datamodule.join_options
        if self.model.windows != Windows():
            identity["windows"] = vars(self.model.windows)
        if self.model.growth is not None:
            identity["vocabulary"] = self.model.growth.fingerprint
        if self.model.merged_chain:
            identity["merged_adapters"] = [one.files for one in self.model.merged_chain]
        if self.model.attention is not None:
            identity["attention"] = self.model.attention
        if self.model.rope is not None:
            identity["rope"] = asdict(self.model.rope)
        return identity | ({"quantization": asdict(quantization)} if quantization is not None else {})


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value


def _adapter_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("adapter_*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _value_of(name: str, arguments: list[str]) -> str | None:
    """Return the value of an option as typed; the last one counts, as for the parser."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == f"--{name}" and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"--{name}="):
            found = argument.partition("=")[2]
    return found


def run(command: str, arguments: list[str]) -> None:
    """Run `predict`."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    cli = PredictCLI(arguments)
    cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
    if cli.trainer.is_global_zero:
        print(f"predictions: {PredictionFolder(cli.config['output_dir']).predictions}")
