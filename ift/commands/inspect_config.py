"""The data of a run's YAML, parsed and checked as `ift fit` does, without a trainer, a run folder or a model."""

from lightning.pytorch.cli import LightningArgumentParser

from ift.commands.stage_config import has_stages
from ift.commands.trainer import TrainingCLI
from ift.data.datamodule import InstructionDataModule
from ift.errors import UserError
from ift.library_messages import hide_advice


class InspectCLI(TrainingCLI):
    """The parser of `ift fit` alone."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the same keys; a run folder need not be named, as none is made."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"run_dir": "."})

    def _set_seed(self) -> None:
        """Draw nothing at random; the data's own seed is a setting of theirs."""

    def before_instantiate_classes(self) -> None:
        """Check nothing that only a run needs."""

    def instantiate_classes(self) -> None:
        """Build the data module only."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")


def configured_data(arguments: list[str]) -> InstructionDataModule:
    """Return the data module that `ift fit` would build from these arguments.

    Raises:
        UserError: as `ift fit` does for a wrong key or value.
    """
    hide_advice()
    if has_stages(arguments):
        raise UserError(
            "stages: each stage has data of its own. 'ift fit --config ... --print_config' shows the configuration of "
            "every stage; give that of one."
        )
    cli = InspectCLI("fit", arguments)
    data: InstructionDataModule = cli.datamodule
    return data
