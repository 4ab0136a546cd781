"""The settings of a run, parsed and checked as `ift fit` does, without a trainer, a run folder or weights."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from ift.artifacts import full_precision_name
from ift.commands.cluster import asked_devices
from ift.commands.inspect_config import InspectCLI
from ift.commands.plan import OWN_OPTIONS
from ift.commands.stage_config import has_stages
from ift.commands.trainer_settings import check_trainer
from ift.errors import UserError
from ift.library_messages import hide_advice
from ift.training import deepspeed_config
from ift.training.memory_plan import ONE_DEVICE, PLANNED

NO_DEEPSPEED = "DeepSpeed is not installed here (pip install 'ift[deepspeed]'); 'ift fit' needs it where it runs"


@dataclass(frozen=True)
class RunSettings:
    """A run's settings and what was built of them."""

    module: Any
    """A checked `InstructionModule`."""
    data: Any
    """An `InstructionDataModule`, its data not loaded."""
    strategy: str
    """One of `PLANNED`."""
    world_size: int
    ranks_per_node: int
    on_gpu: bool
    precision: str
    finds_unused: bool
    """Whether DDP looks for weights without gradients."""
    max_epochs: int | None
    max_steps: int | None
    notes: tuple[str, ...]
    """What was read otherwise than written."""


class _PlanCLI(InspectCLI):
    """The parser of `ift fit` alone, with module and data built."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Know the options of `ift plan` itself, to name the nearest."""
        super().add_arguments_to_parser(parser)
        parser.other_options = [name.removeprefix("--") for name in OWN_OPTIONS]

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be, but for what this machine lacks."""
        chosen = self.config["trainer"].clone() if hasattr(self.config["trainer"], "clone") else self.config["trainer"]
        chosen["accelerator"] = "auto"
        self.notes: list[str] = []
        if chosen["strategy"] in deepspeed_config.NAMES and not deepspeed_config.is_installed():
            self.notes.append(f"trainer.strategy: {NO_DEEPSPEED}")
            chosen["strategy"] = "auto"
        check_trainer(chosen, "fit")
        import torch

        if self.config["model"]["attention"] == "flash_attention_2" and not torch.cuda.is_available():
            self.config["model"]["attention"] = None
            self.notes.append("model.attention: flash_attention_2 needs a GPU; planned as sdpa, which keeps as much")

    def instantiate_classes(self) -> None:
        """Build module and data only."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.module = self._get(self.config_init, "model")
        self.data = self._get(self.config_init, "data")


def run_settings(arguments: list[str], *, card_named: bool) -> RunSettings:
    """Return the settings that `ift fit` would run with.

    Args:
        arguments: of the command line, as `ift fit`'s.
        card_named: whether a card is named, so that the run is for a GPU unless it says cpu.

    Raises:
        UserError: as `ift fit` does for a wrong key or value.
    """
    import torch

    hide_advice()
    if has_stages(arguments):
        raise UserError(
            "stages: each stage is a run of its own. 'ift fit --config ... --print_config' shows the configuration of "
            "every stage; plan that of one."
        )
    cli = _PlanCLI("fit", arguments)
    cli.module.check()
    trainer = cli.config["trainer"]
    accelerator = trainer["accelerator"]
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and (card_named or torch.cuda.is_available()))
    asked = asked_devices(trainer["devices"])
    per_node = asked if asked is not None else _all_devices(on_gpu=on_gpu)
    nodes = int(trainer["num_nodes"] or 1)
    return RunSettings(
        cli.module,
        cli.data,
        strategy=strategy_name(trainer["strategy"], per_node * nodes),
        world_size=per_node * nodes,
        ranks_per_node=per_node,
        on_gpu=on_gpu,
        precision=full_precision_name(trainer["precision"]),
        finds_unused="find_unused" in str(trainer["strategy"]),
        max_epochs=trainer["max_epochs"],
        max_steps=trainer["max_steps"] if trainer["max_steps"] and trainer["max_steps"] > 0 else None,
        notes=(*cli.notes, *cli.module.notes()),
    )


def _all_devices(*, on_gpu: bool) -> int:
    """Return how many devices `auto` takes of a node; of a GPU that is not here, one."""
    import torch

    return max(1, torch.cuda.device_count()) if on_gpu else 1


def strategy_name(strategy: Any, world_size: int) -> str:
    """Return under which of the planned strategies a run trains.

    Raises:
        UserError: none that is known here.
    """
    named = strategy if isinstance(strategy, str) else strategy["class_path"].rpartition(".")[2]
    if named in PLANNED:
        return named
    if named == "auto":
        return ONE_DEVICE if world_size == 1 else "ddp"
    if named.startswith("ddp") or named == "DDPStrategy":
        return "ddp"
    if named == "SingleDeviceStrategy":
        return ONE_DEVICE
    raise UserError(f"trainer.strategy: '{named}' cannot be planned; known are {', '.join(PLANNED[1:])}.")
