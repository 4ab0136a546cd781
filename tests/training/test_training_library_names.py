"""Private names of libraries that the engine overrides or sets: renamed, they would be without effect, and no error."""

import inspect
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn

from ift.training.deepspeed_strategy import ZeroStrategy
from ift.training.kept_checkpoints import RunCheckpoint
from ift.training.saving import RunTrainer
from ift.training.sharded_strategy import ShardedStrategy

OWN = {
    RunTrainer: Trainer,
    RunCheckpoint: ModelCheckpoint,
    ZeroStrategy: DeepSpeedStrategy,
    ShardedStrategy: ModelParallelStrategy,
}
NEW = {
    RunTrainer: {"_call"},
    RunCheckpoint: {"_save_end", "_is_due", "_here"},
    ZeroStrategy: {"_module", "_config", "_keep", "_state"},
    ShardedStrategy: {"_module", "_whole"},
}
"""Private methods that are none of the library's."""


@pytest.mark.parametrize("own", OWN, ids=lambda one: one.__name__)
def test_every_private_method_is_new_or_takes_the_place_of_one(own: type) -> None:
    private = {name for name, one in vars(own).items() if inspect.isfunction(one) and name[0] == "_" != name[1]}
    overriding = {name for name in private if hasattr(OWN[own], name)}
    assert private - overriding == NEW[own], f"{OWN[own].__name__} has renamed what {own.__name__} overrides"


ATTRIBUTES: list[tuple[Any, tuple[str, ...]]] = [
    (
        ModelCheckpoint(),
        (
            "_last_global_step_saved",
            "_last_checkpoint_saved",
            "_defer_save_until_validation",
            "_every_n_train_steps",
            "_every_n_epochs",
            "_train_time_interval",
            "_last_time_checked",
            "_should_skip_saving_checkpoint",
        ),
    ),
    (DDPStrategy(), ("_timeout", "_ddp_kwargs")),
    (_FitLoop, ("_can_stop_early",)),
    (_TrainingEpochLoop, ("_broadcast_sigterm_tensor", "_is_training_done", "_should_check_val_fx")),
    (_SignalConnector, ("register_signal_handlers",)),
    (nn.Linear(1, 1), ("_backward_hooks", "_load_state_dict_post_hooks", "_compiled_call_impl")),
]


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES)
def test_attributes_that_are_set_or_read_are_there(owner: Any, names: tuple[str, ...]) -> None:
    assert not [name for name in names if not hasattr(owner, name)]
