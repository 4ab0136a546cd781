"""`trainer.strategy: fsdp`: Lightning's ModelParallelStrategy with all ranks in one mesh, and checkpoints of our own.

Of an adapter, a checkpoint is the one small file that every other strategy writes, too: each can go on from it. Trained
weights of the base model are written by all ranks, each its rows, into a folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from ift.training.sharded_checkpoints import load_own_parts, read_unread, save_from_ranks
from ift.training.sharding import gathered, own_part, put_back


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks."""

    def __init__(self) -> None:
        super().__init__(
            # All ranks, set once their number is known. Lightning's own choice would split layers within a node.
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand over the optimizer's state as under other strategies."""
        return True

    def setup_environment(self) -> None:
        """Make the process group, and a mesh of all ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Draw an adapter's first values on the device of the rank, as other strategies do."""
        with self.root_device, super().tensor_init_context(empty_init):
            yield

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the trained weights: whole ones on the first rank, or every rank's rows for a sharded checkpoint."""
        module = self._module()
        put_back(module)
        trained = {name: one.detach() for name, one in module.named_parameters() if one.requires_grad}
        return trained if module.method.trains_base else self._whole(trained)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimizer's state in torch's own layout, with tensors as in `lightning_module_state_dict`."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = inner.state_dict()
        if not self._module().method.trains_base:
            state["state"] = {number: self._whole(own) for number, own in state["state"].items()}
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a file from the first rank, or a folder from all."""
        save_from_ranks(self, checkpoint, filepath, sharded=self._module().method.trains_base)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy; of a folder, what is not tensors, and the shapes of those that are.

        Lightning forgets to hand `weights_only` on to strategies that restore late.
        """
        return read_unread(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put this rank's rows of a checkpoint's weights into the model; that all are there is the module's to see."""
        own = dict(self._module().named_parameters())
        targets = {name: own[name].detach() for name in checkpoint["state_dict"]}
        if folder := checkpoint.get("folder"):
            load_own_parts(Path(folder), targets, section="state_dict")
            return
        for name, whole in checkpoint["state_dict"].items():
            targets[name].copy_(own_part(whole, targets[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimizers this rank's rows of their state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = dict(enumerate(one for group in optimizer.param_groups for one in group["params"]))
            state = {
                number: {name: self._own(value, parameters[number], checkpoint) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            if folder := checkpoint.get("folder"):
                flat = {f"{number}.{name}": one for number, own in state.items() for name, one in own.items()}
                tensors = {name: one for name, one in flat.items() if isinstance(one, torch.Tensor)}
                load_own_parts(Path(folder), tensors, section="optimizer")
            optimizer.load_state_dict({**saved, "state": state})

    @staticmethod
    def _own(value: Any, parameter: torch.Tensor, checkpoint: Mapping[str, Any]) -> Any:
        """Return this rank's part of a value, or where a folder's is to be read into."""
        if not isinstance(value, torch.Tensor):
            return value
        as_the_weight = value.shape == parameter.shape
        if "folder" not in checkpoint:
            return own_part(value, parameter) if as_the_weight else value
        if as_the_weight:
            return torch.zeros_like(parameter.detach(), dtype=value.dtype)
        return torch.zeros(value.shape, dtype=value.dtype)

    def _module(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module

    def _whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return whole tensors on the first rank, and nothing on the others; all must call it."""
        found = {name: gathered(one) if isinstance(one, torch.Tensor) else one for name, one in values.items()}
        return found if self.is_global_zero else {}
