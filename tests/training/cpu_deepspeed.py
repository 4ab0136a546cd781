"""DeepSpeed on the CPU: a test double of the three places that insist on CUDA. All else is the real thing.

As a program: the runs of a folder, one after another, as one of the ranks of `rank_runs.run_on_ranks`.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja, to build its ops


def use_the_cpu() -> None:
    """Let `trainer.strategy: deepspeed_*` run without a GPU in this process."""
    import deepspeed
    from lightning.fabric.utilities.seed import reset_seed
    from lightning.pytorch.strategies import DDPStrategy

    from ift.training import deepspeed_checks, deepspeed_strategy

    class CPUZeroStrategy(deepspeed_strategy.ZeroStrategy):
        def setup_environment(self) -> None:
            self.complete()
            DDPStrategy.setup_environment(self)

        def setup_distributed(self) -> None:
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()

        def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            self.place(model)
            engine, zero, *_ = deepspeed.initialize(
                args=Namespace(device_rank=self.local_rank),
                config=self.config,
                model=model,
                model_parameters=[one for one in model.parameters() if one.requires_grad],
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                dist_init_required=False,
            )
            return engine, zero

    deepspeed_strategy.ZeroStrategy = CPUZeroStrategy  # type: ignore[misc]
    deepspeed_checks.check_accelerator = lambda accelerator: None


if __name__ == "__main__":
    import rank_runs

    use_the_cpu()
    rank_runs.main_of(Path(sys.argv[1]))
