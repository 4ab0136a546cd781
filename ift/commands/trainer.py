"""`ift fit` and `ift validate`: Lightning's command line around our module and data."""

import json
import logging
import signal
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from ift import interruptions
from ift.artifacts import RunFolder
from ift.commands.cluster import cluster_plugins, settle_devices
from ift.commands.config import ConfigParser
from ift.commands.data_fit import check_data
from ift.commands.meeting import Meeting
from ift.commands.run_lock import RunLock
from ift.commands.stage_config import has_stages
from ift.commands.trainer_settings import check_callbacks, check_trainer
from ift.data.datamodule import InstructionDataModule
from ift.errors import UserError
from ift.launch import launch
from ift.library_messages import hide_advice
from ift.models.adapters import check_can_go_on, peft_config_of
from ift.models.loading import read_config
from ift.models.packing import choose_row_layout
from ift.training.checkpoints import (
    AtomicCheckpointIO,
    check_checkpoint,
    check_newest,
    damage_of_own_parts,
    remove_unfinished,
    resolve_checkpoint,
    steps_of,
)
from ift.training.course import check_strategy
from ift.training.decisive_settings import decisive_settings
from ift.training.deepspeed_checks import check_deepspeed
from ift.training.deepspeed_checks import notes as deepspeed_notes
from ift.training.deepspeed_strategy import ZeroStrategy
from ift.training.event_files import keep_events
from ift.training.kept_checkpoints import RunCheckpoint
from ift.training.loss_record import LossRecord
from ift.training.metrics import StepMetrics
from ift.training.module import InstructionModule, ValidationResult
from ift.training.pending_validation import PendingValidation, was_due
from ift.training.preemption import Preemption, take_signals_from_lightning
from ift.training.process_groups import (
    LONGEST_WAIT_SECONDS,
    ProcessGroupTimeout,
    lost_process,
    set_timeout,
)
from ift.training.progress import RunProgress
from ift.training.run_folder import RunFolderWriter
from ift.training.samples import SampleResponses
from ift.training.saving import RunTrainer
from ift.training.sharded_rules import check_sharded
from ift.training.sharded_strategy import ShardedStrategy
from ift.training.strategies import build_strategy

TRAINER_DEFAULTS: dict[str, Any] = {
    "use_distributed_sampler": False,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


class IftCLI(LightningCLI):
    """What all trainer commands share: one flat parser, errors with places, our checkpoint writer and progress bar."""

    def __init__(self, command: str, arguments: list[str], module: Any, datamodule: Any) -> None:
        self.command = command
        self.metrics = StepMetrics()
        super().__init__(
            module,
            datamodule,
            save_config_callback=None,
            trainer_class=RunTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=ConfigParser,
            parser_kwargs={"prog": f"ift {command}"},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let one key name the base model and its tokenizer, and one seed everything."""
        parser.link_arguments("model.base", "data.base")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments that were given, whatever stands in `sys.argv`."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let settings inside a checkpoint win over the YAML and the command line."""

    def own_callbacks(self) -> list[Callback]:
        """Return the callbacks that are always there."""
        return [self.metrics]

    def own_folder(self) -> Path | None:
        """Return the folder that the command writes a run into, if it does."""
        return None

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the trainer with our plugins and callbacks."""
        chosen = self.config_init["trainer"]
        options["callbacks"] = list(chosen.get("callbacks") or [])
        check_callbacks(options["callbacks"])
        if chosen.get("enable_progress_bar") is not False:
            options["callbacks"].append(RunProgress(self.metrics))
        options["callbacks"] += self.own_callbacks()
        plugins = [*cluster_plugins(), AtomicCheckpointIO(self.own_folder())]
        options["plugins"] = [*(chosen.get("plugins") or []), *plugins]
        options["strategy"] = build_strategy(chosen.get("strategy"))
        if isinstance(options["strategy"], (ShardedStrategy, ZeroStrategy)):
            # FSDP2 keeps the buffers that it gathers into, and one made in inference mode could never be trained with.
            options["inference_mode"] = False
        # Its install tips are no news of the run.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        try:
            trainer = super().instantiate_trainer(**options)
        except UserError:
            raise
        except (MisconfigurationException, ValueError) as error:  # what Lightning's Trainer refuses
            raise UserError(f"trainer: {error}") from error
        take_signals_from_lightning(trainer)
        return trainer


class TrainingCLI(IftCLI):
    """`fit` and `validate`."""

    def __init__(self, command: str, arguments: list[str]) -> None:
        super().__init__(command, arguments, InstructionModule, InstructionDataModule)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the checkpoint to resume from, checkpointing and sample responses."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("model.vocabulary", "data.tokenizer", compute_fn=_tokenizer_settings)
        parser.add_argument(
            "--run_dir", type=str, required=True, help="the run folder: new, or continued with --ckpt_path last"
        )
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to resume from, or 'last' for the newest"
        )
        parser.add_argument(
            "--process_group_timeout_seconds",
            type=PositiveInt,
            default=LONGEST_WAIT_SECONDS,
            help="how long processes wait for one that stands still or cannot be reached, before the run ends",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(SampleResponses, "samples")
        parser.set_defaults(
            {
                "checkpoint.filename": "step-{step:08d}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_top_k": 1,
            }
        )
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=_checkpoint_folder)

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be, before anything is loaded."""
        check_trainer(self.config["trainer"], self.command)
        settle_devices(self.config["trainer"])
        self.timeout = timedelta(seconds=self.config["process_group_timeout_seconds"])
        self.run = RunFolder(self.config["run_dir"])
        # Only the first process looks: the others start when it has begun to write.
        self.lock, writes = RunLock(self.run), self.command == "fit" and is_first_process()
        if writes:
            self.lock.acquire()
        self.begun_before = self.run.root.exists()
        self.checkpoint = resolve_checkpoint(self.config["ckpt_path"], self.run, required=self.command != "fit")
        if self.checkpoint is not None:
            check_checkpoint(self.checkpoint, self.config["model"]["base"], resumes=self.command == "fit")
        if writes:
            self._check_folder(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))

    def _check_folder(self, config: dict[str, Any]) -> None:
        """Refuse a run folder, or a run to go on with, that these settings do not fit."""
        if self._continues():
            self.run.check_continuable()
            self.run.check_same(config)
            self.run.check_not_shortened(config, has_checkpoint=self.checkpoint is not None)
            if self.checkpoint is not None:
                check_newest(self.checkpoint, self.run)
            remove_unfinished(self.run)
            return
        self.run.check_new()
        if self.gone_on_with is None:
            return
        self.gone_on_with.check_same(config)  # its optimizer, schedule and place in the data are taken, too
        if not self.gone_on_with.has_begun:
            note = f"note: '{self.checkpoint}' lies in no run folder, so settings and data are compared with none"
            print(note, file=sys.stderr)

    def _continues(self) -> bool:
        """Whether the run folder's own run is resumed; another run's checkpoint begins a new one."""
        if self.checkpoint is None:
            return bool(self.config["ckpt_path"] == "last")
        return self.checkpoint.resolve().parent == self.run.checkpoints.resolve()

    @property
    def gone_on_with(self) -> RunFolder | None:
        """The run that the checkpoint is of: this folder's own, or another one."""
        if self._continues():
            return self.run
        return RunFolder(self.checkpoint.resolve().parent.parent) if self.checkpoint is not None else None

    def own_callbacks(self) -> list[Callback]:
        """Add what writes the run folder."""
        if self.command != "fit":
            return [*super().own_callbacks(), ProcessGroupTimeout(self.timeout)]
        self._dump_config()
        settings = decisive_settings(self.config_dump)
        config = self.parser.dump(self.config, skip_none=False)
        writer = RunFolderWriter(self.run, config, settings, self.metrics)
        own = [ProcessGroupTimeout(self.timeout), writer, LossRecord(self.run), PendingValidation()]
        return [*super().own_callbacks(), *own]

    def own_folder(self) -> Path | None:
        """Return the run folder."""
        return self.run.root if self.command == "fit" else None

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Log to TensorBoard in the run folder unless another logger is named."""
        logger = self.config_init["trainer"].get("logger")
        if self.command != "fit":
            options["logger"] = False
        elif logger is None or logger is True:
            folder = self.run.tensorboard
            options["logger"] = TensorBoardLogger(str(folder.parent), name=folder.name, version="")
        options["default_root_dir"] = str(self.run.root)
        trainer = super().instantiate_trainer(**options)
        set_timeout(trainer.strategy, self.timeout)
        if self.command == "fit":
            # After those that log and save what a step has brought, and checkpoints are always the last in a list.
            trainer.callbacks.append(Preemption(self.run, self.timeout))  # type: ignore[attr-defined]
        self.meeting = Meeting(trainer._accelerator_connector.cluster_environment)
        return trainer

    def cut_log(self) -> None:
        """Take out of the log what a killed run wrote after its last checkpoint, as it comes again."""
        if is_first_process() and self._continues() and isinstance(self.trainer.logger, TensorBoardLogger):
            step = steps_of("--ckpt_path", self.checkpoint) if self.checkpoint is not None else -1
            keep_events(self.run.tensorboard, step=step, validated=not was_due(self.checkpoint))


def is_first_process() -> bool:
    """Whether this is the process of rank 0, known before any process group is."""
    return launch().is_first


def _tokenizer_settings(vocabulary: Any) -> dict[str, Any] | None:
    """Return what of `model.vocabulary` the data ask for."""
    if vocabulary is None:
        return None
    values = vocabulary.get("init_args", vocabulary)  # jsonargparse's own form, while it parses
    return {name: values[name] for name in ("tokenizer", "special_tokens")}


def _checkpoint_folder(run_dir: str) -> str:
    return str(RunFolder(run_dir).checkpoints)


def _end_others(trainer: Trainer, interrupted: interruptions.Interrupted) -> None:
    """Pass on a signal that has reached only the process which has started the others, before they train."""
    if not interrupted.requeued and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGTERM)


def _optimizer_notes(cli: TrainingCLI) -> list[str]:
    if cli.command != "fit":
        return []
    notes: list[str] = cli.model.optimizer_traits.notes(
        global_batch_size=cli.datamodule.global_batch_size,
        clip_norm=cli.model.gradient_clip_norm,
        device=cli.trainer.strategy.root_device,
    )
    return [*notes, *deepspeed_notes(cli.model, cli.trainer)]


def run(command: str, arguments: list[str]) -> None:
    """Run `fit` or `validate`.

    Raises:
        UserError: a wrong setting, or wrong data.
    """
    if has_stages(arguments):
        if command != "fit":
            raise UserError(
                f"stages: a chain is trained with 'ift fit', which validates after every stage. To {command} one "
                "stage, give the config.yaml in its run folder."
            )
        from ift.commands.stages import run_chain

        run_chain(arguments)
        return
    cli, result = run_once(command, arguments)
    if cli.trainer.is_global_zero and command == "fit":
        print(f"run folder: {cli.run.root}\ntensorboard --logdir {cli.run.tensorboard}", file=sys.stderr)
    elif cli.trainer.is_global_zero and result is not None:
        print(json.dumps(asdict(result)))


def prepare(command: str, arguments: list[str], *, tell: bool = True) -> TrainingCLI:
    """Parse, build and check all that can be checked before weights are loaded; the data are prepared.

    With `fit`, this process holds the run folder from here on, until `lock.release()`.

    Args:
        command: `fit` or `validate`.
        arguments: of the command line.
        tell: whether to print what was decided for the user.

    Raises:
        UserError: a wrong setting, or wrong data.
    """
    hide_advice()
    cli = TrainingCLI(command, arguments)
    cli.model.check()
    cli.datamodule.row_layout_choice = choose_row_layout(
        "data.row_layout",
        cli.datamodule.row_layout,
        base=cli.model.base,
        adapter=peft_config_of(cli.model.method),
        attention=cli.model.attention,
        device=cli.trainer.strategy.root_device.type,
    )
    if command == "fit":
        cli.model.optimizer_traits.check_strategy("model.optimizer", cli.trainer)
        check_can_go_on(cli.model.method)
        check_strategy("model.adapter", cli.model.method, cli.trainer)
        check_deepspeed(cli.model, cli.trainer)
    check_sharded(cli.model, cli.trainer, config=read_config(cli.model.base))
    cli.datamodule.load()  # all mistakes in the data come before the weights, and before other processes wait
    if tell and is_first_process():
        notes = [*cli.datamodule.notes(), *_optimizer_notes(cli), *cli.model.notes()]
        for line in filter(None, (*notes, cli.datamodule.rejected())):
            print(line, file=sys.stderr)
    check_data(cli)
    return cli


def run_once(command: str, arguments: list[str], *, tell: bool = True) -> tuple[TrainingCLI, ValidationResult | None]:
    """Train, or validate, once; arguments as of `prepare`.

    Returns:
        What did it, and the result of `validate`.

    Raises:
        UserError: a wrong setting, wrong data, or what only the loaded model can tell.
    """
    cli = prepare(command, arguments, tell=tell)
    checkpoint = str(cli.checkpoint) if cli.checkpoint is not None else None
    interruptions.defer(False)  # of the stage before
    try:
        cli.meeting.wait(refusal=damage_of_own_parts(cli.checkpoint, launch()))
        if command == "validate":
            cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
            return cli, cli.model.validation_result
        cli.cut_log()
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise UserError(f"trainer.callbacks: {error}") from error
        if lost := lost_process(error, timeout_seconds=cli.timeout.total_seconds()):
            raise lost from error
        raise
    except interruptions.Interrupted as interrupted:
        interruptions.defer(True)
        _end_others(cli.trainer, interrupted)
        raise
    finally:
        if command == "fit" and cli.trainer.is_global_zero:
            cli.run.remove_unbegun(was_there=cli.begun_before)
        cli.lock.release()
    return cli, None
