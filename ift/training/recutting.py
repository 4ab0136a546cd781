"""Out of memory: the step is cut into smaller micro-batches and computed again, or the error says what to lower.

How a step is cut never changes its gradient but for rounding (dropout draws for each micro-batch, so with dropout it
draws others), so nothing of the run is lost. The smaller budget holds from then on, also when the run resumes.
"""

import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ift.data.steps import Step, recut
from ift.errors import LocalError, UserError
from ift.models.out_of_memory import first_line, is_out_of_memory
from ift.training.deepspeed_strategy import ZeroStrategy
from ift.training.engines import Engine
from ift.training.strategies import name_of

KEY = "data.auto_micro_batch"
_BUCKET_ELEMENTS = 1 << 22


class HeldBackEngine(Engine):
    """DDP whose gradients are exchanged only when all ranks have theirs: until then, any may run out of memory."""

    def exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Exchange nothing in the backward pass."""
        wrapped = self.module.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def exchange_all(self) -> None:
        """Average the gradients over ranks, as DDP does; all ranks call it."""
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        has = torch.tensor([one.grad is not None for one in trained], dtype=torch.uint8, device=self.module.device)
        torch.distributed.all_reduce(has, op=torch.distributed.ReduceOp.MAX)
        used = [parameter for parameter, one in zip(trained, has.tolist(), strict=True) if one]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        bucket: list[torch.Tensor] = []
        for number, parameter in enumerate(used, 1):
            assert parameter.grad is not None
            bucket.append(parameter.grad)
            other = number < len(used) and used[number].dtype != parameter.dtype
            if number == len(used) or other or sum(one.numel() for one in bucket) >= _BUCKET_ELEMENTS:
                _average(bucket)
                bucket = []


def _average(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([one.reshape(-1) for one in gradients]).div_(torch.distributed.get_world_size())
    torch.distributed.all_reduce(flat)
    parts: Any = torch.split(flat, [one.numel() for one in gradients])
    for one, part in zip(gradients, parts, strict=True):
        one.copy_(part.view_as(one))


def cannot_repeat(strategy: str) -> UserError:
    """Return the refusal of repeated steps under a strategy whose ranks wait for each other within them."""
    return UserError(
        f"{KEY}: under {strategy} ranks exchange weights or gradients while they compute, and would wait for one whose "
        "memory ran out. Set it to false and lower data.micro_batch_tokens, or take trainer.strategy ddp."
    )


def cannot_repeat_fused(optimizer: str) -> UserError:
    """Return the refusal of repeated steps with an optimizer that updates weights within the backward pass."""
    return UserError(
        f"{KEY}: {optimizer} has changed weights when memory runs out, so its step cannot be repeated. Set it to "
        "false, and data.global_batch_size to what fits, or take another optimizer."
    )


class Recutting:
    """Computes steps, in smaller micro-batches where memory ran out.

    Args:
        module: an `InstructionModule`.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.events: list[dict[str, Any]] = []
        """When memory ran out: step, in training or validation, and the budget from then on."""
        self._budgets: dict[str, int] = {}
        self._failure: UserError | None = None

    @property
    def _data(self) -> Any:
        return self._module.trainer.datamodule

    def check(self, *, fitting: bool) -> None:
        """Refuse to repeat steps where that cannot be; before weights load.

        Args:
            fitting: whether there will be updates.

        Raises:
            UserError: with the setting.
        """
        if not self._data.auto_micro_batch:
            return
        traits, strategy = self._module.optimizer_traits, self._module.trainer.strategy
        if traits.fused and fitting:
            raise cannot_repeat_fused(traits.name)
        # DeepSpeedStrategy is a DDPStrategy to Lightning.
        if isinstance(strategy, ZeroStrategy) or not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise cannot_repeat(name_of(strategy))

    def engine(self, engine: Engine) -> Engine:
        """Return the engine to use: under DDP, one that lets ranks agree before they exchange gradients."""
        trainer = self._module._trainer
        if trainer is None:  # a model is looked at, not trained
            return engine
        automatic = getattr(getattr(trainer, "datamodule", None), "auto_micro_batch", False)
        several = isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1
        return HeldBackEngine(self._module) if automatic and several else engine

    def gradient(self, compute: Callable[[Step], torch.Tensor], step: Step, engine: Engine) -> torch.Tensor:
        """Compute the gradient of a step, again and in smaller parts while memory runs out.

        Args:
            compute: adds up the gradient of a step as it is cut, and returns the summed loss.
            step: as the loader has cut it.
            engine: of `engine`.

        Raises:
            UserError: memory ran out, and smaller parts are not asked for, or there are none.
        """
        agreed = isinstance(engine, HeldBackEngine)
        while True:
            total, smaller = self._attempt(compute, step, "training", f"step {step.index + 1}", agreed=agreed)
            if smaller is None:
                assert total is not None
                if isinstance(engine, HeldBackEngine):
                    engine.exchange_all()
                return total
            self._release()
            self._shrink("training", smaller, self._module.trainer.global_step + 1)

    @contextmanager
    def told(self, step: Step, *, updating: bool) -> Iterator[None]:
        """Say what to lower where memory runs out in what cannot be repeated.

        Args:
            step: as it is computed.
            updating: whether the gradient is there, and the weights are updated.

        Raises:
            UserError: it did.
        """
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = first_line(error)
        where = f"step {step.index + 1}"
        if not updating:
            raise self._error(step, where, failure, budget=self._budget("training"))
        raise LocalError(
            f"{where}: memory ran out in the update of the weights ({failure}), which no way of cutting steps makes "
            "smaller. Train fewer weights (model.adapter), take a model.optimizer that holds less "
            "(bitsandbytes.optim.AdamW8bit), or share them out (trainer.strategy fsdp)."
        )

    def validation(self, compute: Callable[[Step], torch.Tensor], step: Step) -> torch.Tensor:
        """Compute the sums of a validation step, again and in smaller parts while memory runs out.

        Where ranks compute on their own, one whose memory ran out leaves out the rest, and all hear of it in
        `end_validation`: none may be missing where they meet before.

        Raises:
            UserError: as `gradient`, where no other rank would wait for this one.
        """
        if self._failure is None:
            try:
                return self._sums(compute, step)
            except LocalError as error:
                if self._module.trainer.world_size == 1 or self._module.engine.in_step:
                    raise
                self._failure = error
        return torch.zeros(2, dtype=torch.float64, device=self._module.device)

    def _sums(self, compute: Callable[[Step], torch.Tensor], step: Step) -> torch.Tensor:
        while True:
            total, smaller = self._attempt(compute, step, "validation", self._validation, agreed=False)
            if smaller is None:
                assert total is not None
                return total
            self._release()
            self._shrink("validation", smaller, self._module.trainer.global_step)

    def end_validation(self) -> None:
        """Let all ranks know, after their last step of a validation, whether all could compute theirs.

        Raises:
            UserError: memory ran out on some rank, and smaller parts are not asked for, or there are none.
        """
        failure, self._failure = self._failure, None
        if not self._module.trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            return
        raise failure or UserError(
            f"{self._validation}: memory ran out on another rank; its own message says what to lower."
        )

    @property
    def _validation(self) -> str:
        return f"validation after step {self._module.num_steps_done}"

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on."""
        return {"budgets": dict(self._budgets), "events": list(self.events)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._budgets, self.events = dict(state["budgets"]), list(state["events"])

    def _budget(self, kind: str) -> int:
        configured = int(self._data.micro_batch_tokens)
        return min(configured, self._budgets.get(kind, configured))

    def _cut(self, step: Step, budget: int) -> Step:
        if budget >= self._data.micro_batch_tokens:
            return step
        choice = self._data.row_layout_choice
        return recut(step, budget, choice=choice, pad_token_id=self._data.encoder.pad_token_id)

    def _attempt(
        self, compute: Callable[[Step], torch.Tensor], step: Step, kind: str, where: str, *, agreed: bool
    ) -> tuple[torch.Tensor | None, int | None]:
        """Return what was computed, or the smaller budget to try next; on all ranks the same, where they agree."""
        budget, total, failure = self._budget(kind), None, None
        cut = self._cut(step, budget)
        try:
            total = compute(cut)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Only its text is kept: the error holds on to the frames, and these to the memory.
            failure = first_line(error)
        wanted = budget if failure is None else self._next_budget(step, cut, budget)
        if agreed:
            together = torch.tensor(wanted, dtype=torch.int64, device=self._module.device)
            torch.distributed.all_reduce(together, op=torch.distributed.ReduceOp.MIN)
            wanted = int(together)
        if wanted == 0:
            raise self._error(cut, where, failure, budget=budget)
        return (total, None) if wanted == budget else (None, wanted)

    def _next_budget(self, step: Step, cut: Step, budget: int) -> int:
        """Return the next half that cuts the step otherwise; 0 if there is none, or none is to be tried."""
        if not self._data.auto_micro_batch or all(_is_single(batch.lengths) for batch in cut.micro_batches):
            return 0
        shapes = [batch.lengths for batch in cut.micro_batches]
        while True:
            budget //= 2
            if budget == 0 or [batch.lengths for batch in self._cut(step, budget).micro_batches] != shapes:
                return budget

    def _shrink(self, kind: str, budget: int, step: int) -> None:
        self._budgets[kind] = budget
        self.events.append({"step": step, "in": kind, "micro_batch_tokens": budget})
        if self._module.trainer.is_global_zero:
            tqdm.write(
                f"step {step}: memory ran out in {kind}; micro-batches hold at most {budget} positions from now on, "
                f"instead of data.micro_batch_tokens {self._data.micro_batch_tokens}.",
                file=sys.stderr,
            )

    def _release(self) -> None:
        """Give back what the failed attempt held."""
        for parameter in self._module.parameters():
            if not self._module.trainer.validating:
                parameter.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _error(self, cut: Step, where: str, failure: str | None, *, budget: int) -> UserError:
        if failure is None:
            return UserError(f"{where}: memory ran out on another rank; its own message says what to lower.")
        return LocalError(self._advice(cut, where, failure, budget=budget))

    def _advice(self, cut: Step, where: str, failure: str, *, budget: int) -> str:
        longest = max(length for batch in cut.micro_batches for row in batch.lengths for length in row)
        rows, length = max((tuple(batch.input_ids.shape) for batch in cut.micro_batches), key=math.prod)
        text = (
            f"{where}: memory ran out ({failure}). Its longest example has {longest} tokens, its largest micro-batch "
            f"{rows} x {length} positions of at most {budget}. "
        )
        if all(_is_single(batch.lengths) for batch in cut.micro_batches):
            return text + (
                "It goes through the model example by example already: lower data.max_length, set "
                "model.gradient_checkpointing true, hold the base model in fewer bits (model.quantization), or train "
                "fewer weights (model.adapter)."
            )
        return text + (
            f"Lower data.micro_batch_tokens ({self._data.micro_batch_tokens}), which changes no result, or set {KEY} "
            "true, which does so when memory runs out; or set model.gradient_checkpointing true."
        )


def _is_single(lengths: tuple[tuple[int, ...], ...]) -> bool:
    return sum(map(len, lengths)) == 1
