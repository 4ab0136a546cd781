"""Settings of Lightning's Trainer that contradict how a step works here, refused with what to set instead."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

from ift.errors import UserError, unknown_name
from ift.training.pending_validation import METRICS
from ift.training.strategies import check_strategy_name

_IMPOSSIBLE = (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)


def check_trainer(trainer: Any, command: str) -> None:
    """Refuse settings of the Trainer that contradict how a step works here.

    Raises:
        UserError: with the key, its value, the rule and the repair.
    """
    refused = {
        "accumulate_grad_batches": (
            trainer["accumulate_grad_batches"] != 1,
            "a step always takes data.global_batch_size examples; data.micro_batch_tokens cuts it to fit memory",
        ),
        "gradient_clip_val": (trainer["gradient_clip_val"] is not None, "set model.gradient_clip_norm instead"),
        "gradient_clip_algorithm": (
            trainer["gradient_clip_algorithm"] is not None,
            "gradients are clipped by norm: model.gradient_clip_norm",
        ),
        "precision": (
            str(trainer["precision"]) not in ("None", "32", "32-true", "bf16", "bf16-mixed"),
            "use 32-true or bf16-mixed, and model.dtype for the base model's weights; float16 would need loss scaling",
        ),
        "use_distributed_sampler": (
            bool(trainer["use_distributed_sampler"]),
            "steps are dealt to ranks by ift itself; leave it false",
        ),
        "limit_train_batches": (trainer["limit_train_batches"] is not None, "use trainer.max_steps"),
        "limit_val_batches": (
            trainer["limit_val_batches"] not in (None, 0, 1.0)
            or trainer["limit_val_batches"] is True
            # A whole 1 is one batch to Lightning, 1.0 is all of them.
            or (isinstance(trainer["limit_val_batches"], int) and trainer["limit_val_batches"] == 1),
            "validation counts every example; hold fewer out with data.validation, or set 0 for none",
        ),
        "default_root_dir": (trainer["default_root_dir"] is not None, "the run folder is run_dir"),
        "overfit_batches": (bool(trainer["overfit_batches"]), "name a small data source instead"),
        "reload_dataloaders_every_n_epochs": (
            bool(trainer["reload_dataloaders_every_n_epochs"]),
            "every epoch has an order of its own already",
        ),
        "fast_dev_run": (bool(trainer["fast_dev_run"]), "it would leave what looks like a whole run; use max_steps"),
        "limit_predict_batches": (
            trainer["limit_predict_batches"] is not None,
            "every prompt is answered; give a file with fewer prompts",
        ),
        "barebones": (bool(trainer["barebones"]), "a run without log, checkpoint and progress cannot be traced"),
    }
    for key, (is_refused, repair) in refused.items():
        if is_refused:
            raise UserError(f"trainer.{key}: {trainer[key]} is not possible; {repair}.")
    check_strategy_name(trainer["strategy"], command)
    _check_accelerator(trainer["accelerator"])
    if command == "fit":
        _check_duration(trainer["max_epochs"], trainer["max_steps"])
        if trainer["check_val_every_n_epoch"] is not None and trainer["check_val_every_n_epoch"] < 1:
            raise UserError(
                f"trainer.check_val_every_n_epoch: {trainer['check_val_every_n_epoch']} is below 1. Set it to null to "
                "count trainer.val_check_interval over epochs; data.validation: null validates never."
            )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks of Lightning that would change a step, copy a model, or wait for a metric that nobody gives.

    Raises:
        UserError: with the class.
    """
    own = any(not type(one).__module__.startswith("lightning.") for one in callbacks)  # which may log anything
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and not own and callback.monitor not in METRICS:
            raise UserError(
                f"trainer.callbacks: EarlyStopping monitors '{callback.monitor}', which no validation gives. Set "
                f"monitor to {' or '.join(METRICS)}."
            )
        if isinstance(callback, _IMPOSSIBLE):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} is not possible: a step always takes "
                "data.global_batch_size examples, and checkpoints hold the trained weights alone. Leave it out."
            )


def _check_accelerator(name: Any) -> None:
    import torch
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    if torch.backends.mps.is_available() and name in ("auto", "gpu", "mps"):
        raise UserError(f"trainer.accelerator: '{name}' is mps here, which lacks the float64 of exact sums. Set cpu.")
    if not isinstance(name, str) or name == "auto":
        return
    if name not in known:
        raise unknown_name("trainer.accelerator", name, known)
    if not (torch.cuda.is_available() if name == "gpu" else AcceleratorRegistry[name]["accelerator"].is_available()):
        raise UserError(f"trainer.accelerator: '{name}', and torch finds none here. Set it to auto or cpu.")


def _check_duration(max_epochs: int | None, max_steps: int) -> None:
    """The schedule of the learning rate needs an end, and a run without a step is none."""
    if max_steps != -1:
        if max_steps < 1:
            raise UserError(f"trainer.max_steps: {max_steps} is less than 1. Leave it out to train for max_epochs.")
    elif max_epochs is None:
        raise UserError("trainer.max_epochs: required, or trainer.max_steps: how long to train has no default.")
    if max_epochs is not None and max_epochs < (-1 if max_steps != -1 else 1):
        raise UserError(f"trainer.max_epochs: {max_epochs} is less than 1; the learning rate's schedule needs an end.")
