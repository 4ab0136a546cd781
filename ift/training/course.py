"""What some methods do beside the gradient: draw layers, add a penalty, take ranks away. One object per run."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from peft import AdaLoraConfig, PeftModel
from torch.nn import functional as F

from ift.data.encoding import IGNORE_INDEX
from ift.data.micro_batches import MicroBatch
from ift.errors import UserError
from ift.models.adapters import RankBudget
from ift.models.base_weights import LayerSampler, SampledLayers
from ift.models.methods import Method
from ift.training.objective import shifted_targets


def check_strategy(key: str, method: Method, trainer: Trainer) -> None:
    """Refuse a strategy that waits for gradients of weights which a method does not train in a step.

    Args:
        key: the configuration key of the method, for errors.
        method: of the run.
        trainer: with the strategy.

    Raises:
        UserError: with the strategy to take.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        check_ddp(key, method, finds_unused=bool(strategy._ddp_kwargs.get("find_unused_parameters")))


def check_ddp(key: str, method: Method, *, finds_unused: bool) -> None:
    """Refuse a method that does not train all its weights in every step, where DDP waits for all their gradients.

    Args:
        key: the configuration key of the method, for errors.
        method: of the run.
        finds_unused: whether DDP looks for weights without gradients.

    Raises:
        UserError: with the strategy to take.
    """
    if isinstance(method.config, SampledLayers) and not finds_unused:
        raise UserError(
            f"{key}: {method.name} trains other layers every few steps, and DDP would wait for the gradients of all. "
            "Set trainer.strategy to ddp_find_unused_parameters_true, or trainer.devices to 1."
        )


class MethodCourse:
    """The hooks of a method around an optimizer step; most methods need none.

    Args:
        model: with the method attached.
        method: of the run.
        seed: of the run.
    """

    def __init__(self, model: Any, method: Method, *, seed: int) -> None:
        self._sampler: LayerSampler | None = None
        self._budget: RankBudget | None = None
        if isinstance(method.config, SampledLayers):
            self._sampler = LayerSampler(model, method.config, seed=seed)
        # An adapter that is gone on with has the ranks it ended with.
        fresh = method.peft_config is not None and isinstance(model, PeftModel)
        if fresh and isinstance(model.active_peft_config, AdaLoraConfig):
            self._budget = RankBudget(model)
        self._tuner: Any = model.base_model if isinstance(model, PeftModel) else None
        self._config: Any = model.active_peft_config if isinstance(model, PeftModel) else None

    def before_step(self, step: int, optimizer: Any) -> None:
        """Choose what is trained in a step.

        Args:
            step: its number, from 0.
            optimizer: the torch optimizer.
        """
        if self._sampler is not None:
            self._sampler.apply(step, optimizer)

    def loss(self, batch: MicroBatch, loss: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of a micro-batch with what a method adds for each supervised token.

        Args:
            batch: that the model has just computed.
            loss: its summed cross-entropy.
        """
        weight = float(getattr(self._config, "auxiliary_loss_weight", 0.0))
        if weight <= 0:
            return loss
        # ShadowPEFT's path answers on its own too; PEFT adds that only to a loss that the model computes itself.
        targets = shifted_targets(batch.labels)
        keep = targets != IGNORE_INDEX
        head = self._tuner._resolve_shadow_head(self._tuner.active_adapters[0])
        logits = head(self._tuner._seed_shadow_state[keep]).float()
        return loss + weight * F.cross_entropy(logits, targets[keep], reduction="sum")

    def penalty(self) -> torch.Tensor | None:
        """Return what is added to the loss of a step, once, or `None`; call it after the step's first forward pass."""
        if self._budget is not None:
            return self._budget.penalty()
        # PEFT leaves these to whoever computes the loss (Wang et al. 2024, KaSA; Sengupta et al. 2024, MonteCLoRA).
        if getattr(self._config, "kasa_config", None) is not None:
            return cast(torch.Tensor, self._tuner._get_kasa_loss())
        if getattr(self._config, "monteclora_config", None) is not None:
            return cast(torch.Tensor, self._tuner._get_monteclora_loss())
        return None

    def after_update(self, step: int) -> None:
        """Act on the updated weights, while the gradients are there."""
        if self._budget is not None:
            self._budget.after_update(step)

    def check_resumable(self) -> None:
        """Refuse to resume what would not end as the uninterrupted run.

        Raises:
            UserError: MonteCLoRA and VeLoRA, which keep averages over the steps that PEFT gives no way to restore.
        """
        for key in ("monteclora_config", "velora_config"):
            if getattr(self._config, key, None) is not None:
                raise UserError(
                    f"--ckpt_path: a run with model.adapter.{key} cannot be resumed exactly, as PEFT keeps averages "
                    "over its steps outside of the weights. Run it in one piece, or take lora."
                )

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on besides weights and optimizer; empty for most methods."""
        return self._budget.state() if self._budget is not None else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self._budget is not None:
            self._budget.load_state(state)
