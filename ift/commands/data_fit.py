"""Whether the prepared data fit the command, the model and the run that is continued; said before weights load."""

from typing import Any

from ift.errors import UserError
from ift.models.adapters import num_virtual_tokens
from ift.models.loading import max_positions, read_config
from ift.models.positions import steady_length
from ift.models.rope import with_rope


def check_data(cli: Any) -> None:
    """Refuse data that the command or the model cannot use, and a run that would go on with other data.

    Args:
        cli: a `TrainingCLI` whose data are prepared.

    Raises:
        UserError: with the setting.
    """
    data = cli.datamodule
    if problems := data.problems():
        raise UserError("\n".join(problems))
    if cli.command == "fit" and data.streams and cli.trainer.max_steps < 1:
        raise UserError(
            f"trainer.max_steps: required, as data.sources[{data.streams[0].number}] streams and has no end. Say how "
            "many steps to train."
        )
    if cli.command == "fit" and data.num_validation_examples and not data.streams:
        _check_interval(cli.trainer, data.num_steps_per_epoch)
    if cli.command == "validate" and not data.num_validation_examples:
        raise UserError("data.validation: null holds nothing out, so there is nothing to validate. Set it.")
    _check_longest(cli)
    begun = cli.gone_on_with if cli.command == "fit" else None
    if begun is not None and begun.has_begun:
        kept = begun.read_manifest()["data"]
        if kept["prepared"] != (now := data.describe())["prepared"] or kept.get("validation_prepared") != now.get(
            "validation_prepared"
        ):
            raise UserError(
                f"data.sources: the rows, their layout, the tokenizer or the version of ift have changed since "
                f"'{begun.root}' began, so it cannot be continued. Begin a new run_dir, without --ckpt_path."
            )


def _check_interval(trainer: Any, num_steps: int) -> None:
    """Refuse to validate after more steps than an epoch has, unless they are counted over epochs."""
    interval = trainer.val_check_interval
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > num_steps:
        raise UserError(
            f"trainer.val_check_interval: {interval}, and an epoch has {num_steps} steps. Set "
            "trainer.check_val_every_n_epoch to null to count over epochs, or a smaller interval."
        )


def _check_longest(cli: Any) -> None:
    """Refuse examples longer than the model's positions, or whose positions would follow from the others of a batch."""
    longest, virtual = cli.datamodule.longest_example, num_virtual_tokens(cli.model.method)
    behind = f" after {virtual} virtual ones" if virtual else ""
    limit = max_positions(cli.model.base, cli.model.rope)
    if limit is not None and longest + virtual > limit:
        raise UserError(
            f"data.max_length: the longest example has {longest} tokens{behind}, and the model only "
            f"{limit} positions. Set data.max_length to {limit - virtual} or less."
        )
    steady = steady_length(with_rope(read_config(cli.model.base), cli.model.rope))
    if steady is not None and longest + virtual > steady:
        raise UserError(
            f"data.max_length: the longest example has {longest} tokens{behind}. Beyond {steady}, this model's rotary "
            "positions follow from the longest text of a micro-batch (dynamic scaling, or longrope), so that an "
            f"example's loss would depend on the others. Set data.max_length to {steady - virtual} or less, or "
            "model.rope.type to linear, yarn or llama3, which do not."
        )
