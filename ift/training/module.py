"""`InstructionModule`: any base model plus an adapter, trained step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from peft import AdaLoraConfig, PeftConfig

from ift.data.steps import Step
from ift.errors import UserError
from ift.hub import check_base, fingerprint
from ift.models.adapters import attach, check_can_go_on, check_method, num_trainable, peft_config_of, with_vocabulary
from ift.models.attention import Attention, check_attention
from ift.models.budget import Allotment, allot, check_budget, check_counted
from ift.models.calling import calling_of, with_fused_head
from ift.models.compiling import check_compilable, compile_blocks
from ift.models.encoder_decoder import check_encoder_decoder
from ift.models.enlarging import enlarge
from ift.models.families.normalized_head import settle_heads
from ift.models.foundations import check_gone_on_with, check_merges_into, checked_chain
from ift.models.initial_adapters import changes_base, initial_values
from ift.models.kernels import PLAIN, Kernels, verify_kernels
from ift.models.loading import TrainingDtype, check_vocabulary, read_config
from ift.models.merging import merge_adapters
from ift.models.methods import Method, as_method
from ift.models.out_of_memory import tells_of_memory
from ift.models.packing import verify_row_layout
from ift.models.quantization import Quantization, check_quantization, default_quantization
from ift.models.rope import Rope, check_rope
from ift.models.support import check_supported
from ift.models.trained_adapters import MergedAdapter
from ift.models.vocabulary import Growth, Vocabulary, check_same_growth, enlarged_config
from ift.training.bad_steps import BadSteps, OnBadStep
from ift.training.base_model import kernels_of, load_base_of
from ift.training.course import MethodCourse, check_strategy
from ift.training.deepspeed_checks import check_deepspeed
from ift.training.engines import engine_of
from ift.training.fused_optimizers import FusedOptimizer
from ift.training.gradient import StepGradient
from ift.training.objective import validation_sums
from ift.training.optimizers import optimizer_traits, with_fused_update, without_paging
from ift.training.parameter_groups import parameter_groups, spread_learning_rate
from ift.training.recutting import Recutting
from ift.training.schedule import Schedule, learning_rate_share
from ift.training.sharded_rules import check_sharded

CHECKPOINT_KEY = "ift"


@dataclass(frozen=True)
class ValidationResult:
    """Loss of the whole validation set, over all ranks."""

    step: int
    """Optimizer steps done."""
    loss: float
    """Mean cross-entropy per supervised token, in nats."""
    perplexity: float
    supervised_tokens: int


class InstructionModule(LightningModule):
    """Wraps a base model and an adapter; one batch is one optimizer step.

    Args:
        base: folder or hub id of the base model and its tokenizer.
        optimizer: class path and arguments of a torch optimizer; `lr` among them.
        adapter: a method by its short name (lora, dora, prefix, freeze, ...), a `peft.PeftConfig` by its class, or the
            folder of an adapter or run to go on with; none trains all weights.
        merged_adapters: folders of adapters or runs, merged into the base model in this order before all else.
        dtype: of the base model's weights; adapters stay in float32.
        quantization: holds the base model's weights in 4 or 8 bits; none keeps them as they are.
        attention: how attention is computed, which changes speed and memory; by default as transformers chooses, sdpa
            where the model has it. flash_attention_2 needs a GPU, its package and dtype bfloat16.
        kernels: what computes norms, gated feed-forward blocks and rotary positions; auto takes Liger's kernels where
            the package liger-kernel is installed and the model lies on a CUDA GPU. The same result up to rounding.
        rope: rotary positions for longer texts than the base model was trained on, or another base of them.
        vocabulary: a tokenizer with more tokens than the base model's; embedding and head gain rows for them.
        budget: number of trainable parameters; the adapter's size (r, bottleneck_size, num_virtual_tokens, ...) is
            then the one that trains nearest to it, whatever size is given with the adapter.
        schedule: how the learning rate moves.
        gradient_clip_norm: largest norm of the whole gradient; none clips nothing.
        on_bad_step: what becomes of a step whose loss or gradient is no finite number, or a spike.
        gradient_checkpointing: compute activations twice instead of keeping them; the result is the same.
        compile: compile the model's blocks with torch.compile; the result is the same up to rounding. The first steps
            take minutes longer.
        seed: of adapter weights and dropout; follows `seed_everything`.
    """

    def __init__(
        self,
        base: str,
        optimizer: OptimizerCallable,
        adapter: PeftConfig | Method | None = None,
        merged_adapters: list[str] | None = None,
        dtype: TrainingDtype = "float32",
        quantization: Quantization | None = None,
        attention: Attention | None = None,
        kernels: Kernels = "auto",
        rope: Rope | None = None,
        vocabulary: Vocabulary | None = None,
        budget: int | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        gradient_clip_norm: float | None = 1.0,
        on_bad_step: OnBadStep = OnBadStep(),  # noqa: B008 (frozen)
        gradient_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_base("model.base", base)
        if gradient_clip_norm is not None and gradient_clip_norm <= 0:
            raise UserError(f"model.gradient_clip_norm: {gradient_clip_norm} is not above 0; null clips nothing.")
        self.base, self.dtype_name, self.method = base, dtype, as_method(adapter)
        check_budget(budget)
        self.merged_adapters, self.budget = merged_adapters or [], budget
        self.allotment: Allotment | None = None
        self.vocabulary, self.seed = vocabulary, seed
        self.growth: Growth | None = None
        self._notes: list[str] = []
        self.quantization = quantization or default_quantization(self.method.quantization, read_config(base))
        self.attention, self.kernels, self.rope, self.compiles = attention, kernels, rope, compile
        self.kernel_choice = PLAIN
        self.optimizer_callable, self.schedule = optimizer, schedule
        self.optimizer_traits = optimizer_traits("model.optimizer", optimizer)
        self.gradient_clip_norm, self.gradient_checkpointing = gradient_clip_norm, gradient_checkpointing
        on_bad_step.check("model.on_bad_step", self.optimizer_traits)
        self.bad_steps, self.recutting = BadSteps(on_bad_step), Recutting(self)
        self.automatic_optimization = False
        # Checkpoints hold trained weights only; on_load_checkpoint checks that they are exactly those needed.
        self.strict_loading = False
        self.model: Any = None
        self._trained: list[str] = []
        self._checked = False
        self.merged_chain: list[MergedAdapter] = []
        self._validation_sums = torch.zeros(2, dtype=torch.float64)
        self.validation_result: ValidationResult | None = None
        self.between_steps = True  # weights, optimizer, schedule and position are those of the same step
        self._loaded_step = 0
        self.initial_values: dict[str, torch.Tensor] | None = None
        self.defers = False

    def check(self) -> None:
        """Refuse a method that does not fit the base model, without loading weights; does nothing twice.

        Raises:
            UserError: with the setting.
        """
        if self._checked:
            return
        config = read_config(self.base)
        check_encoder_decoder("model.base", self.base, config=config, dtype=self.dtype_name)
        check_quantization("model.base", self.base, config=config, quantization=self.quantization)
        check_attention(self.attention, config=config, dtype=self.dtype_name)
        check_rope(self.rope, config=config)
        self.method, self.growth, note = with_vocabulary(self.method, self.vocabulary, base=self.base, seed=self.seed)
        self._notes += [note] if note is not None else []
        config = enlarged_config(config, self.growth)
        adapter = peft_config_of(self.method)
        check_supported(
            "model.adapter",
            self.method,
            adapter,
            config=config,
            quantization=self.quantization,
            checkpointing=self.gradient_checkpointing,
        )
        if self.optimizer_traits.fused and isinstance(adapter, AdaLoraConfig):
            raise UserError(
                f"model.optimizer: {self.optimizer_traits.name} keeps no gradients, and AdaLoRA weighs its ranks by "
                "them. Take torch.optim.AdamW."
            )
        if self.budget is None:
            check_method(self.method, self.base, self.growth)
        else:
            self.method, self.allotment = allot(self.method, self.budget, base=self.base, growth=self.growth)
        below: dict[str, Any] = {"base": self.base, "growth": self.growth, "rope": self.rope}
        self.merged_chain = checked_chain(self.merged_adapters, config=config, **below)
        if isinstance(self.method.config, Path):
            check_gone_on_with(self.method.config, self.merged_chain, quantization=self.quantization, **below)
        check_merges_into(self.merged_adapters, config=config, quantization=self.quantization)
        self._checked = True

    def notes(self) -> list[str]:
        """Return what was decided for the user, one line each; known once checked."""
        return [*self._notes, *([self.allotment.note()] if self.allotment is not None else [])]

    def setup(self, stage: str) -> None:
        """Refuse what the strategy cannot do, and ask for steps as the optimizer takes them; before weights load."""
        device = self.trainer.strategy.root_device.type
        data: Any = getattr(self.trainer, "datamodule", None)
        if engine_of(self).even and data is not None:
            data.row_layout_choice = replace(data.row_layout_choice, even=True)
        check_sharded(self, self.trainer, config=read_config(self.base))
        check_attention(self.attention, config=read_config(self.base), dtype=self.dtype_name, device=device)
        if self.compiles:
            check_compilable(device)
        self.kernel_choice = kernels_of(self, device)
        self.recutting.check(fitting=stage == "fit")
        if stage != "fit":
            return
        check_can_go_on(self.method)
        check_strategy("model.adapter", self.method, self.trainer)
        check_deepspeed(self, self.trainer)
        if self.optimizer_traits.fused:
            self.optimizer_traits.check_strategy("model.optimizer", self.trainer)
            assert data is not None, "fit opens the data itself"
            data.row_layout_choice = replace(data.row_layout_choice, whole_step=True)

    @tells_of_memory
    def configure_model(self) -> None:
        """Load the base model and attach the adapter; does nothing twice."""
        if self.model is not None:
            return
        self.check()
        self.engine = self.recutting.engine(engine_of(self))
        model = enlarge(load_base_of(self), self.growth)
        datamodule: Any = getattr(self.trainer, "datamodule", None) if self._trainer is not None else None
        if datamodule is not None:
            check_vocabulary("model.base", model, datamodule.tokenizer)
        model = merge_adapters("model.merged_adapters", model, self.merged_chain, self.dtype_name)
        fitting = datamodule is not None and self.trainer.state.fn == "fit"
        num_steps = self._num_steps(datamodule) if fitting else None
        model = attach(model, self.method, seed=self.seed, num_steps=num_steps, training=fitting)
        settle_heads(model)
        check_counted(self.allotment, num_trainable(model))
        if self.gradient_checkpointing:
            # The reentrant kind would need inputs that require gradients, and fails under DDP with unused parameters.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # transformers lets inputs require gradients all the same: a backward pass through what is not trained.
            model.disable_input_require_grads()
        if self.engine.in_step and not self.method.trains_base and changes_base(model.active_peft_config):
            self.initial_values = initial_values(model)  # which could not be read any more
        self.engine.place(model)
        if datamodule is not None:
            datamodule.row_layout_choice = verify_row_layout(
                "data.row_layout", datamodule.row_layout, choice=datamodule.row_layout_choice, model=model
            )
        self.kernel_choice = verify_kernels(self.kernels, self.kernel_choice, model)
        calling = calling_of(model)
        fuses = self.engine.reads_anywhere and not self.defers
        self.calling = with_fused_head(calling, model, compiled=self.compiles) if fuses else calling
        if self.compiles:
            compile_blocks(model)
        self._course = MethodCourse(model, self.method, seed=self.seed)
        self.model = model
        self._trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def _num_steps(self, datamodule: Any) -> int | None:
        """Return the optimizer steps of the whole run, where it has an end."""
        most = [self.trainer.max_steps] if self.trainer.max_steps > 0 else []
        if (self.trainer.max_epochs or -1) > 0 and not datamodule.streams:
            most.append(self.trainer.max_epochs * datamodule.num_steps_per_epoch)
        return min(most) if most else None

    def configure_optimizers(self) -> Any:
        """Return the optimizer over trainable parameters and its schedule; no decay on biases and norms."""
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        if not named:
            raise UserError(
                "model.adapter: nothing in this adapter can be trained further; PEFT keeps what its virtual tokens "
                "became, not the network that wrote them. Begin a new one, or go on with --ckpt_path."
            )
        optimizer = self.optimizer_callable(parameter_groups(named, ratio=self.method.learning_rate_ratio))
        optimizer = with_fused_update(without_paging(optimizer, self.trainer.strategy.root_device))
        spread_learning_rate(optimizer)
        # Lightning's own estimate opens the data; where sharded weights are restored after this, that is before the
        # position in them is, and a resumed epoch would begin with its first step again.
        num_steps = self._num_steps(self.trainer.datamodule)  # type: ignore[attr-defined]
        assert num_steps is not None, "a run without an end is refused before"
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_share(step, num_steps, self.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, step: Step, batch_idx: int) -> dict[str, Any]:
        """Compute the gradient of the whole step over its micro-batches, then update once.

        Returns:
            `loss_sum`: this rank's summed cross-entropy (float64); `gradient_norm`: before clipping (float32);
            `learning_rate`: the one used.
        """
        optimizer: Any = self.optimizers()
        self._course.before_step(step.index, optimizer.optimizer)
        gradient = StepGradient(self.model, self.calling, self._course, self.engine, self.seed, self.global_rank)
        if isinstance(optimizer.optimizer, FusedOptimizer):
            with self.recutting.told(step, updating=False):
                total, norm = optimizer.optimizer.fused_backward(
                    lambda: gradient(step), self.parameters(), clip_norm=self.gradient_clip_norm
                )
        else:
            total = self.recutting.gradient(gradient, step, self.engine)
            limit = self.gradient_clip_norm or float("inf")
            norm = self.engine.clip((p for p in self.parameters() if p.requires_grad), limit)
        usable = self.bad_steps.usable(self, step, loss=total, norm=norm)
        group = optimizer.param_groups[0]
        learning_rate = float(group["lr"]) / group.get("ratio", 1.0)  # LoRA+: that of the A matrices
        self.between_steps = False
        if not usable:
            optimizer.zero_grad()  # without gradients, optimizers change nothing, and the step is counted all the same
        with self.recutting.told(step, updating=True):
            self.engine.update(optimizer)
        if usable:
            self._course.after_update(step.index)
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self.trainer.datamodule.advance(step)  # type: ignore[attr-defined]
        self.between_steps = True
        return {"loss_sum": total, "gradient_norm": norm, "learning_rate": learning_rate}

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self.validation_result = None
        self._validation_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, step: Step, batch_idx: int) -> None:
        """Add this rank's summed cross-entropy and number of supervised tokens."""
        sums = partial(validation_sums, self.model, calling=self.calling, engine=self.engine)
        self._validation_sums += self.recutting.validation(sums, step)

    @property
    def num_steps_done(self) -> int:
        """Optimizer steps that made the weights; Trainer.validate loads a checkpoint's weights and not its step."""
        return max(self.trainer.global_step, self._loaded_step)

    def on_validation_epoch_end(self) -> None:
        """Log loss and perplexity per supervised token, over all ranks."""
        self.recutting.end_validation()
        total, count = self.trainer.strategy.reduce(self._validation_sums, reduce_op="sum").tolist()
        loss = torch.tensor(total / max(1.0, count), dtype=torch.float64)
        values = {"validation/loss": loss, "validation/perplexity": loss.exp()}
        # The same on every rank already; sync_dist only tells Lightning so.
        self.log_dict({name: value.float() for name, value in values.items()}, logger=False, sync_dist=True)
        # A sanity check of a few batches is no result; of all (num_sanity_val_steps -1), it is the loss before.
        if not self.trainer.sanity_checking or self.trainer.num_sanity_val_steps == float("inf"):
            self.validation_result = ValidationResult(
                self.num_steps_done, loss.item(), loss.exp().item(), supervised_tokens=int(count)
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights only, and say which base model they belong to."""
        self.bad_steps.check_finite(self)
        trained = set(self._trained)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}
        checkpoint[CHECKPOINT_KEY] = {
            "base": self.base,
            "base_fingerprint": fingerprint(self.base),
            "vocabulary": self.growth.fingerprint if self.growth is not None else None,
            "method": self._course.state(),
            "bad_steps": self.bad_steps.state(),
            "recutting": self.recutting.state(),
        }

    def check_weights(self, found: Mapping[str, tuple[int, ...]], *, key: str = "--ckpt_path") -> None:
        """Refuse weights that are not exactly the trained ones of this model.

        Args:
            found: shapes of a checkpoint's weights, by name.
            key: names the checkpoint, for errors.

        Raises:
            UserError: names or shapes differ.
        """
        trained = set(self._trained)
        needed = {name: self.engine.shape_of(one) for name, one in self.named_parameters() if name in trained}
        differing = sorted(name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name))
        if differing:
            first = differing[0]
            raise UserError(
                f"{key}: the checkpoint is of another model or adapter; {len(differing)} weights differ, first "
                f"'{first}' (here {needed.get(first, 'absent')}, checkpoint {found.get(first, 'absent')}). "
                "Resume with the configuration in the run folder."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint, and take over what the next step depends on beside weights and optimizer.

        Raises:
            UserError: its weights are not exactly the trained ones of this model, by name and shape.
        """
        self._loaded_step = int(checkpoint["global_step"])
        enlarged = checkpoint[CHECKPOINT_KEY].get("vocabulary")
        check_same_growth("--ckpt_path", self.growth, enlarged, where="the checkpoint")
        self.check_weights({name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()})
        if self.trainer.state.fn == "fit":
            self._course.check_resumable()
            self.bad_steps.load_state(checkpoint[CHECKPOINT_KEY]["bad_steps"])
            self.recutting.load_state(checkpoint[CHECKPOINT_KEY]["recutting"])
        # Strategies that restore late have shown the run folder the start that the base model was changed by already.
        early = not self.trainer.strategy.restore_checkpoint_after_setup
        if early and not self.method.trains_base and changes_base(self.model.active_peft_config):
            self.initial_values = initial_values(self.model)  # which are about to be replaced
        self._course.load_state(checkpoint[CHECKPOINT_KEY].get("method", {}))
