"""The callback: when a benchmark is asked during training, and where its score goes."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from eval.benchmark import Benchmark, get_benchmark, how_asked, prompts_of
from eval.during_training.answering import LiveModel, read_prompts
from eval.during_training.points import PointFile, curves, point_facts
from eval.matching import match, select
from eval.output import prompts_hash
from eval.report import Report
from ift.artifacts import RunFolder, write_json
from ift.errors import UserError
from ift.models.adapters import num_virtual_tokens
from ift.records import Prediction, PromptRecord


class EvaluateDuringTraining(Callback):
    """Asks a benchmark while a model is trained, and shows its scores beside the loss; training is as without it.

    Each rank answers its share of the prompts, greedily, and the first one scores all of them. The scores are curves in
    TensorBoard (`eval/BENCHMARK/...`) and, with counts, lines of `RUN/evaluation.jsonl`. The last point always follows
    the last step: it is what `python -m eval run` gives for the finished run, and stands in the manifest.

    Args:
        benchmark: one that `python -m eval list` shows, scored without a judge.
        data: the benchmark's own data.
        protocol: wording, reading and averaging, where the benchmark knows several.
        mode: how to ask, where the benchmark knows several ways.
        shots: worked examples before each question.
        limit: asks a random sample of so many rows only.
        seed: of that sample.
        every_n_steps: asks before the first step and after every so many; none asks after each validation.
        max_new_tokens: longest response, in tokens, where the model writes.
        batch_size: prompts that go through the model at once.
        join_options: whether options are tokenized together with the text before them, as `data.join_options` of
            `ift predict`.
        name: of the curves, where a benchmark is asked in two ways; the benchmark's own where not given.
    """

    def __init__(
        self,
        benchmark: str,
        data: str,
        protocol: str | None = None,
        mode: str | None = None,
        shots: int | None = None,
        limit: int | None = None,
        seed: int = 0,
        every_n_steps: int | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 8,
        join_options: bool | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or benchmark
        with self._told():
            if every_n_steps is not None and every_n_steps < 1:
                raise UserError(f"every_n_steps: {every_n_steps} is less than 1; leave it out to ask at validations.")
            if max_new_tokens < 1:
                raise UserError(f"max_new_tokens: {max_new_tokens} is less than 1.")
            self._benchmark = get_benchmark(benchmark, protocol)
            _check_unjudged(self._benchmark)
            self._asked = how_asked(self._benchmark, mode=mode, shots=shots)
        self._data, self._limit, self._seed = Path(data).expanduser(), limit, seed
        self._every_n_steps, self._max_new_tokens, self._batch_size = every_n_steps, max_new_tokens, batch_size
        self._join_options = join_options
        self._points: PointFile | None = None
        self._done: set[int] = set()
        self._resumed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the prompts, and refuse what cannot be asked or scored, before any weights load."""
        if stage != "fit":
            return
        with self._told():
            own: list[Any] = [one for one in trainer.callbacks if isinstance(one, EvaluateDuringTraining)]  # type: ignore[attr-defined]
            if sum(one.name == self.name for one in own) > 1:
                raise UserError("name: two of these callbacks have the same. Give each its own.")
            prompts = prompts_of(self._benchmark, self._data, self._asked)
            self._records = select(prompts, limit=self._limit, seed=self._seed)
            self._score([_pretended(record) for record in self._records])
            module: Any = pl_module
            self._model = LiveModel(
                module.base,
                read_prompts(
                    self._records,
                    trainer.datamodule,  # type: ignore[attr-defined]
                    batch_size=self._batch_size,
                    join_options=self._join_options,
                ),
                max_new_tokens=self._max_new_tokens,
                num_virtual_tokens=num_virtual_tokens(module.method),
                rope=module.rope,
            )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for points before the first one can be made, by any of these callbacks."""
        self._begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask after every so many steps, before the next one begins: its clock does not run yet.

        A run that goes on from a checkpoint which was written just before a validation has that made good here.
        """
        step, every = trainer.global_step, self._every_n_steps
        due = step % every == 0 if every is not None else self._resumed and _validates_at(trainer, step)
        if due:
            self._evaluate(trainer, pl_module)
        self._resumed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice whether training goes on."""
        self._begin(trainer)
        self._resumed = trainer.global_step > 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask after a validation, also one before the first step; not after a mere sanity check."""
        if self._every_n_steps is None and trainer.state.fn == "fit" and pl_module.validation_result is not None:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask what was trained."""
        self._evaluate(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the last point into the manifest of a finished run."""
        if stage != "fit" or not trainer.is_global_zero or self._points is None:
            return
        run, points = RunFolder(trainer.default_root_dir), self._points.of(self.name)
        manifest = run.read_manifest()
        if manifest["status"] == "finished" and points:
            write_json(
                run.manifest, {**manifest, "evaluation": {**manifest.get("evaluation", {}), self.name: points[-1]}}
            )

    def _begin(self, trainer: Trainer) -> None:
        """Find out, on the first rank for all, which points are there."""
        if self._points is not None:
            return
        self._points = PointFile(Path(trainer.default_root_dir) / "evaluation.jsonl")
        if trainer.is_global_zero:
            # Without a checkpoint a run begins anew, and TensorBoard's log with it.
            self._points.forget_after(trainer.global_step if trainer.ckpt_path else -1)
            self._done = {point["step"] for point in self._points.of(self.name)}
        self._done = trainer.strategy.broadcast(self._done)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask, unless this step has its point."""
        if trainer.global_step in self._done:
            return
        started = time.monotonic()
        answers = self._answers(trainer, pl_module)
        message = self._keep(trainer, answers, started) if trainer.is_global_zero else None
        if message := trainer.strategy.broadcast(message):  # on all ranks, or the others would wait for ever
            raise UserError(message)
        self._done.add(trainer.global_step)

    def _answers(self, trainer: Trainer, pl_module: Any) -> list[Prediction]:
        """Return all ranks' answers."""
        engine = pl_module.engine
        # Where a pass through the model takes all ranks, all of them answer all prompts.
        rank, world_size = (0, 1) if engine.in_step else (trainer.global_rank, trainer.world_size)
        batches = self._model.batches[rank::world_size]
        bar = tqdm(batches, desc=self.name, unit="batch", leave=False, disable=not _shows(trainer), mininterval=1.0)
        with engine.together(pl_module.model):
            own = self._model.answers(pl_module.model, bar)
        if world_size == 1:
            return own
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, own)
        return [answer for part in gathered for answer in part]

    def _keep(self, trainer: Trainer, answers: Sequence[Prediction], started: float) -> str | None:
        """Score and write a point; return what went wrong."""
        try:
            with self._told():
                report = self._score(answers)
        except UserError as error:
            return str(error)
        except Exception:  # a benchmark's own mistake, told with its place, and on all ranks
            return f"{self.name}: its score failed:\n{traceback.format_exc()}"
        step = trainer.global_step
        if trainer.logger is not None:
            trainer.logger.log_metrics(curves(self.name, report), step=step)
            experiment: Any = getattr(trainer.logger, "experiment", None)
            if hasattr(experiment, "flush"):
                experiment.flush()
        assert self._points is not None
        self._points.add(self._facts(step) | point_facts(report) | {"seconds": round(time.monotonic() - started, 3)})
        if _shows(trainer):
            name, headline = report.headline
            tqdm.write(f"step {step}: {self.name} {name} {headline.score:.4f}, n {headline.n}")
        return None

    def _score(self, answers: Sequence[Prediction]) -> Report:
        assert self._benchmark.score is not None
        return self._benchmark.score(match(self._records, answers), self._data)

    def _facts(self, step: int) -> dict[str, Any]:
        """Return what was asked."""
        sample = {"limit": self._limit, "seed": self._seed} if self._limit is not None else {}
        asked = {
            "benchmark": self._benchmark.name,
            "protocol": self._benchmark.protocol,
            "protocol_version": self._benchmark.version,
            "mode": self._asked.mode,
            "shots": self._asked.shots,
            "max_new_tokens": self._max_new_tokens,
        }
        return {"step": step, "name": self.name, **asked, **sample, "prompts_sha256": prompts_hash(self._records)}

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"trainer.callbacks: EvaluateDuringTraining ({self.name}): {error}") from error


def _check_unjudged(benchmark: Benchmark) -> None:
    if benchmark.judge is not None or benchmark.score is None:
        raise UserError(
            f"benchmark: a judge scores {benchmark.name}, which takes longer than training may wait. Take one that is "
            "scored without, or ask it of the finished run: python -m eval run."
        )


def _pretended(record: PromptRecord) -> Prediction:
    """Return an answer that says nothing: what cannot be scored shows before training."""
    if record.options:
        scores, sizes = (0.0,) * len(record.options), (1,) * len(record.options)
        return Prediction(record.id, "", None, None, record.options, scores, sizes, record.reference, record.meta)
    return Prediction(record.id, "", "", "stop", reference=record.reference, meta=record.meta)


def _validates_at(trainer: Trainer, step: int) -> bool:
    """Return whether Lightning validates after a step; one batch is one step here."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or every is None:
        return False
    if epochs is None:
        return bool(step % every == 0)
    epoch, before = divmod(step - 1, trainer.num_training_batches)  # of streams: infinity
    last = before + 1 == trainer.num_training_batches
    return (epoch + 1) % epochs == 0 and (last if every == float("inf") else (before + 1) % every == 0)


def _shows(trainer: Trainer) -> bool:
    return trainer.is_global_zero and trainer.progress_bar_callback is not None
