"""`trainer.strategy: deepspeed_1` to `_3`: Lightning's DeepSpeedStrategy with settings and checkpoints of ours.

A checkpoint is none of DeepSpeed's, which are pickles for one number of ranks: it is that of every other strategy.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import Optimizer

from ift.training.deepspeed_config import check_config, deepspeed_config, settings_of
from ift.training.deepspeed_state import SharedOutState
from ift.training.sharded_checkpoints import load_own_parts, read_unread, save_from_ranks


class WeightsAsTheyAre(DeepSpeedPrecision):
    """Leaves every weight in the dtype that it was loaded in, and steps as they are."""

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module."""
        return module

    def convert_input(self, data: Any) -> Any:
        """Return the step."""
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO over all ranks.

    Args:
        name: as the user knows it, one of `ift.training.deepspeed_config.NAMES`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.settings = name, settings_of(name)
        super().__init__(config=self._config())
        self._groups: list[list[torch.nn.Parameter]] = []
        self._mesh: DeviceMesh | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand over the optimizer's state as under other strategies."""
        return True

    def setup_environment(self) -> None:
        """Complete DeepSpeed's settings by the model's, and make the process group."""
        self.complete()
        super().setup_environment()

    def complete(self) -> None:
        """Complete DeepSpeed's settings by the model's."""
        # It calls what torch has given other names since.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        pinned = torch.cuda.is_available()
        clip = self._module().gradient_clip_norm
        self.settings = settings_of(self.name, gradient_clip_norm=clip, pin_memory=pinned)
        self.config = self._config()
        self._precision_plugin = WeightsAsTheyAre("32-true")

    def model_sharded_context(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Let the model be made whole: much reads its weights before they are shared out, if only once."""
        return nullcontext()

    @contextmanager
    def sharing_out(self, dtype: str) -> Iterator[None]:
        """Let transformers leave each rank its part of every weight that it makes or reads.

        Args:
            dtype: of the weights; DeepSpeed makes them in that of its settings, whatever transformers says.
        """
        from transformers.integrations import HfDeepSpeedConfig

        assert self.config is not None
        kept_alive = HfDeepSpeedConfig({**self.config, "bf16": {"enabled": dtype == "bfloat16"}})
        try:
            yield
        finally:
            del kept_alive  # transformers holds it weakly, and believes in stage 3 as long as it lives

    def place(self, model: torch.nn.Module) -> None:
        """Leave each rank its part of every weight, in stage 3, weight by weight.

        DeepSpeed would do it as well, but with the whole model on the GPU first.
        """
        if self.settings.stage == 3:
            import deepspeed

            deepspeed.zero.Init(module=model, config_dict_or_path=self.config)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step; the passes through the model in it are DeepSpeed's, not the step as a whole."""
        return self._module().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate on a step."""
        return self._module().validation_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the trained weights: whole ones on the first rank, or every rank's rows for a sharded checkpoint."""
        state = self._state()
        trained = [(name, one) for name, one in self._module().named_parameters() if one.requires_grad]
        kept = {name: self._keep(state.weight(one).to(one.dtype)) for name, one in trained}
        return kept if self._module().method.trains_base or self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state in torch's own layout, with tensors as in `lightning_module_state_dict`."""
        return self._state().describe(self._keep)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a file from the first rank, or a folder from all."""
        save_from_ranks(self, checkpoint, filepath, sharded=self._module().method.trains_base)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy; of a folder, what is not tensors, and the shapes of those that are."""
        return read_unread(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put a checkpoint's weights into the model; that all are there is the module's to see."""
        state, own = self._state(), dict(self._module().named_parameters())
        for name, value in checkpoint["state_dict"].items():
            state.put_weight(own[name], _read(checkpoint, value, name, section="state_dict"))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give DeepSpeed's optimizer this rank's part of the state."""
        (saved,) = checkpoint["optimizer_states"]

        def value_of(number: int, name: str) -> torch.Tensor:
            return _read(checkpoint, saved["state"][number][name], f"{number}.{name}", section="optimizer")

        self._state().load(saved, value_of)

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        self.place(model)
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _init_optimizers(self) -> Any:
        optimizer, scheduler = super()._init_optimizers()
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer, scheduler

    def _config(self) -> dict[str, Any]:
        config = deepspeed_config(self.settings)
        check_config(config)
        del config["gradient_accumulation_steps"]  # Lightning adds it, of trainer.accumulate_grad_batches, which is 1
        return config

    def _state(self) -> SharedOutState:
        return SharedOutState(self.deepspeed_engine, self._groups)

    def _module(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module

    def _keep(self, whole: torch.Tensor) -> torch.Tensor:
        """Return of a whole tensor what this rank writes of it."""
        if not self._module().method.trains_base:
            return whole.detach().cpu() if self.is_global_zero else whole.new_empty(0)
        if self._mesh is None:
            self._mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        return distribute_tensor(whole.detach(), self._mesh, [Shard(0)], src_data_rank=None).clone()


def _read(checkpoint: Mapping[str, Any], value: torch.Tensor, name: str, *, section: str) -> torch.Tensor:
    """Return a whole tensor of a checkpoint, of which a folder's facts hold the shape only."""
    if "folder" not in checkpoint:
        return value
    target = torch.zeros(value.shape, dtype=value.dtype)
    load_own_parts(Path(checkpoint["folder"]), {name: target}, section=section)
    return target
