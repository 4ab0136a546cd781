"""Plans a run: its own settings, the alternatives, and what to change where it does not fit."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from ift.commands.cards import Card, card_here, card_of
from ift.commands.plan_report import Course, PlanReport, Row
from ift.commands.plan_settings import RunSettings, run_settings
from ift.errors import UserError
from ift.models.adapters import peft_config_of
from ift.models.base_weights import SampledLayers
from ift.models.loading import read_config
from ift.models.methods import qlora
from ift.models.packing import choose_row_layout
from ift.models.quantization import Quantization, is_quantized
from ift.training.memory_plan import GIB, ONE_DEVICE, PLANNED, RankMemory
from ift.training.refusals import Surroundings
from ift.training.run_plan import RunPlanner, Variant
from ift.training.step_shapes import StepShapes, assumed_shapes, counted_shapes, with_budget

COMPARED_DEVICES = 8
"""Of the strategies for several devices, where the run has one."""
CPU_ERROR = (-0.30, 0.20)
"""Of predicted peaks, measured on a CPU by scripts/bench/plan_accuracy.py: the most that was missing of what was
needed, and the most that was predicted beyond it, each with a margin of about 5 %."""
CPU_BFLOAT16_ERROR = (-0.40, 0.20)
"""Assumed in bfloat16, of which oneDNN makes copies that are not predicted."""
GPU_MARGIN, GPU_CONTEXT_GIB = 0.15, 1.5
"""Not measured: what an allocator cannot use, and what CUDA and NCCL hold."""
ASSUMED_UTILIZATION = {"cpu": 0.5, "cuda": 0.4}
"""Of the fastest matrix products, for the rough time."""


def plan(arguments: list[str], *, card: str | None, devices: int | None, skip_data: bool) -> PlanReport:
    """Plan the run of a configuration.

    Args:
        arguments: of `ift fit`.
        card: what it is to fit on; `None` for what is here.
        devices: number of ranks of the strategies compared.
        skip_data: whether no data are prepared.

    Raises:
        UserError: a wrong setting, wrong data, or a model that cannot be planned.
    """
    if devices is not None and devices < 2:
        raise UserError(f"--devices: {devices} is no number of ranks that share anything out. Give 2 or more.")
    named = card_of(card) if card is not None else None
    settings = run_settings(arguments, card_named=named is not None)
    return _Planning(settings, named or card_here("cuda" if settings.on_gpu and _has_gpu() else "cpu"), devices).report(
        skip_data=skip_data
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class _Planning:
    def __init__(self, settings: RunSettings, card: Card, devices: int | None) -> None:
        self._settings, self._card = settings, card
        self._compared = devices or (settings.world_size if settings.world_size > 1 else COMPARED_DEVICES)
        self._planner = RunPlanner(settings.module, precision=settings.precision, on_gpu=settings.on_gpu)
        self._skipped: dict[str, str] = {}
        self._shapes: dict[int, StepShapes] = {}

    def report(self, *, skip_data: bool) -> PlanReport:
        """Plan the run and its alternatives; what cannot be planned is among the report's `skipped`."""
        module, settings = self._settings.module, self._settings
        self._read_shapes(skip_data=skip_data)
        own = self._row(self._planner, self._planner.own, settings.strategy, settings.world_size, own=True)
        rows = [own, *self._alternatives(own)]
        model = self._planner.model(module.quantization)
        optimizer = module.optimizer_traits.name
        return PlanReport(
            base=module.base,
            method=module.method.name,
            dtype=module.dtype_name,
            optimizer=optimizer,
            parameters=model.weights.num_parameters,
            trainable=model.weights.num_trainable,
            card=self._card.name,
            card_gib=self._capacity(),
            margin=self._margin_text(),
            rows=tuple(rows),
            course=self._course(),
            advice=tuple(self._advice(rows)),
            notes=settings.notes,
            error=f"error of predicted peaks: {self._error_text()}",
            skipped=self._skipped,
        )

    def _read_shapes(self, *, skip_data: bool) -> None:
        module, data = self._settings.module, self._settings.data
        data.row_layout_choice = choose_row_layout(
            "data.row_layout",
            data.row_layout,
            base=module.base,
            adapter=peft_config_of(module.method),
            attention=module.attention,
            device=None if self._settings.on_gpu else "cpu",
        )
        if module.optimizer_traits.fused:
            data.row_layout_choice = replace(data.row_layout_choice, whole_step=True)
        streams = any(source.stream for source in data.sources)
        if not skip_data and not streams:
            data.load()
        for number in {1, self._settings.world_size, self._compared}:
            self._shapes[number] = self._shapes_of(number, counted=not skip_data and not streams)

    def _shapes_of(self, world_size: int, *, counted: bool) -> StepShapes:
        data = self._settings.data
        if not counted:
            return assumed_shapes(data, world_size=world_size)
        kept, width = self._planner.widths()
        settings = self._settings
        # On CPUs, sdpa computes one example after the other, and FlashAttention has no mask.
        masks = data.row_layout_choice.layout == "packed" and (settings.on_gpu or settings.module.attention == "eager")
        sizes: dict[str, Any] = {"vocabulary": kept, "width": width}
        return counted_shapes(data, world_size=world_size, num_steps=settings.max_steps, masks=masks, **sizes)

    @property
    def _in_bfloat16(self) -> bool:
        return self._settings.module.dtype_name == "bfloat16" or self._settings.precision == "bf16-mixed"

    def _error_text(self) -> str:
        if self._settings.on_gpu:
            return "not measured on GPUs"
        if self._in_bfloat16:
            return f"not measured in bfloat16; {CPU_BFLOAT16_ERROR[0]:+.0%} is assumed"
        return f"{CPU_ERROR[0]:+.0%} to {CPU_ERROR[1]:+.0%}, measured on CPUs (scripts/bench/RESULTS_plan.md)"

    def _error(self) -> tuple[float, float]:
        return CPU_BFLOAT16_ERROR if self._in_bfloat16 else CPU_ERROR

    def _capacity(self) -> float:
        return self._card.gib if self._settings.on_gpu else self._card.gib / self._settings.ranks_per_node

    def _needed(self, gib: float) -> float:
        if self._settings.on_gpu:
            return gib * (1 + GPU_MARGIN) + GPU_CONTEXT_GIB
        return gib / (1 + self._error()[0]) + _resident_gib()

    def _margin_text(self) -> str:
        if self._settings.on_gpu:
            return f"{GPU_MARGIN:.0%} and {GPU_CONTEXT_GIB} GiB for CUDA and NCCL (not measured)"
        return f"the measured error, and {_resident_gib():.1f} GiB that the process holds without a model"

    def _row(self, planner: RunPlanner, variant: Variant, strategy: str, devices: int, *, own: bool = False) -> Row:
        memory = self._memory(planner, variant, self._shapes[devices])
        parts = memory.parts(strategy, devices)
        needed = self._needed(parts.total / GIB)
        capacity = self._capacity() if self._settings.on_gpu or devices == 1 else self._card.gib / devices
        scheme = variant.quantization.scheme if variant.quantization is not None else None
        return Row(
            strategy,
            devices,
            variant.checkpointing,
            scheme,
            planner.method,
            parts,
            needed,
            needed <= (self._capacity() if own else capacity),
            own,
            self._changed(planner, variant, strategy, devices),
            planner.refusal(variant, strategy, self._around(own=own)),
        )

    def _around(self, *, own: bool) -> Surroundings:
        settings, data = self._settings, self._settings.data
        # An alternative asks DDP to look for weights without gradients where the method needs it.
        finds_unused = settings.finds_unused or not own
        return Surroundings(settings.on_gpu, settings.precision, data.auto_micro_batch, finds_unused)

    def _memory(self, planner: RunPlanner, variant: Variant, shapes: StepShapes) -> RankMemory:
        return planner.memory(variant, shapes)

    def _changed(self, planner: RunPlanner, variant: Variant, strategy: str, devices: int) -> dict[str, Any]:
        """Return the keys by which a row differs from the run, and their values."""
        settings, own = self._settings, self._planner.own
        changed: dict[str, Any] = {}
        if strategy != settings.strategy:
            sampled = strategy == "ddp" and isinstance(settings.module.method.config, SampledLayers)
            named = "ddp_find_unused_parameters_true" if sampled else strategy
            changed["trainer.strategy"] = "auto" if strategy == ONE_DEVICE else named
        if devices != settings.world_size:
            changed["trainer.devices"] = devices
        if variant.checkpointing != own.checkpointing:
            changed["model.gradient_checkpointing"] = variant.checkpointing
        if planner is not self._planner:
            changed["model.adapter"] = planner.method
        elif variant.quantization != own.quantization and variant.quantization is not None:
            changed["model.quantization"] = {"scheme": variant.quantization.scheme}
        return changed

    def _alternatives(self, own: Row) -> list[Row]:
        fused = self._settings.module.optimizer_traits.fused
        strategies = (ONE_DEVICE,) if fused else PLANNED
        if fused:
            name = self._settings.module.optimizer_traits.name
            self._skipped["several devices"] = f"{name} updates weights before gradients could be exchanged"
        rows: list[Row] = []
        for planner, variant in self._variants():
            for strategy in strategies:
                devices = 1 if strategy == ONE_DEVICE else self._compared
                try:
                    row = self._row(planner, variant, strategy, devices)
                except UserError as error:
                    self._skipped[f"{planner.method}, {_told(variant)}"] = str(error)
                    break
                if row.settings:
                    rows.append(row)
        return rows

    def _variants(self) -> list[tuple[RunPlanner, Variant]]:
        own, settings = self._planner.own, self._settings
        found = [(self._planner, replace(own, checkpointing=one)) for one in (False, True)]
        config = read_config(settings.module.base)
        if is_quantized(config, own.quantization) or settings.module.merged_chain or settings.module.growth is not None:
            return found
        planner, quantization = self._planner, Quantization("nf4")
        if settings.module.method.trains_base:
            module = copy.copy(settings.module)
            module.method = qlora()
            planner = RunPlanner(module, precision=settings.precision, on_gpu=settings.on_gpu, is_alternative=True)
        return found + [(planner, Variant(one, quantization)) for one in (False, True)]

    def _course(self) -> Course:
        settings, shapes = self._settings, self._shapes[self._settings.world_size]
        memory = self._memory(self._planner, self._planner.own, shapes)
        flops = self._planner.flops(memory, shapes)
        steps = settings.max_steps
        if steps is None and shapes.steps_per_epoch is not None and (settings.max_epochs or 0) > 0:
            steps = shapes.steps_per_epoch * int(settings.max_epochs or 0)
        rate, told = self._rate()
        seconds = flops.hardware / (rate * settings.world_size) if rate is not None else None
        largest = shapes.largest
        return Course(
            steps_per_epoch=shapes.steps_per_epoch,
            steps=steps,
            tokens_per_step=shapes.tokens,
            supervised_tokens_per_step=shapes.supervised,
            padding_share=1 - shapes.tokens / shapes.positions,
            tokens=shapes.tokens * steps if steps is not None else None,
            micro_batches=shapes.num_micro_batches,
            largest_micro_batch=f"{largest.rows} x {largest.length}, {largest.supervised} supervised",
            model_flops_per_step=flops.model,
            hardware_flops_per_step=flops.hardware,
            seconds_per_step=seconds,
            seconds=seconds * steps if seconds is not None and steps is not None else None,
            time_is_for=told,
            counted=shapes.counted,
        )

    def _rate(self) -> tuple[float | None, str]:
        """Return the operations per second that a device may do in training, and by what they are guessed."""
        import torch

        from ift.training.matmul_peak import matmul_peak
        from ift.training.throughput import compute_dtype

        dtype = compute_dtype(self._settings.module, self._settings.precision)
        kind = "cuda" if self._settings.on_gpu else "cpu"
        share = ASSUMED_UTILIZATION[kind]
        if kind == "cpu" or _has_gpu():
            peak = matmul_peak(torch.device(kind), dtype, folder=Path(self._settings.data.cache_dir))
            told = f"{share:.0%} (assumed) of the fastest matrix products measured here ({peak.device})"
            return peak.flops_per_second * share, told
        published = self._card.bfloat16_flops_per_second
        if published is None or dtype != torch.bfloat16:
            return None, "not known: name a card (--card h100-80g) and train in bfloat16"
        return published * share, f"{share:.0%} (assumed) of {self._card.name}'s published bfloat16 rate"

    def _advice(self, rows: list[Row]) -> list[str]:
        own = rows[0]
        sizes = f"{own.needed_gib:.1f} of {self._capacity():.1f} GiB for each rank"
        told = [f"It fits: {sizes}." if own.fits else f"It does not fit: {sizes}."]
        if own.refused is not None:
            told.insert(0, f"'ift fit' would refuse this run: {own.refused}")
        if own.advisable:
            return told
        changes = self._smaller_budgets(own) if own.refused is None else []
        for row in sorted((row for row in rows[1:] if row.advisable), key=lambda row: _distance(row, own))[:4]:
            keys = ", ".join(f"{key}: {_yaml(value)}" for key, value in row.settings.items())
            changes.append(f"{keys} fits ({row.needed_gib:.1f} GiB).")
        nothing = "Nothing that was tried fits: take a smaller base model, or more devices (--devices)."
        return [*told, *(changes or [nothing])]

    def _smaller_budgets(self, own: Row) -> list[str]:
        """Return the largest budget of micro-batches, halved until it fits, with which the run fits as it is."""
        data, variant = self._settings.data, self._planner.own
        shapes, budget = self._shapes[own.devices], data.micro_batch_tokens
        if self._settings.module.optimizer_traits.fused:
            return []
        while budget > data.max_length:
            budget = max(data.max_length, budget // 2)
            parts = self._memory(self._planner, variant, with_budget(shapes, budget)).parts(own.strategy, own.devices)
            needed = self._needed(parts.total / GIB)
            if needed <= self._capacity():
                return [f"data.micro_batch_tokens: {budget} fits ({needed:.1f} GiB), with the same result."]
        return []


def _distance(row: Row, own: Row) -> tuple[bool, bool, int, float]:
    """Return how far a row is from the run's settings: no more devices and the same result stand first."""
    changes_result = "model.adapter" in row.settings or "model.quantization" in row.settings
    return row.devices > own.devices, changes_result, len(row.settings), row.needed_gib


def _told(variant: Variant) -> str:
    scheme = variant.quantization.scheme if variant.quantization is not None else "not quantized"
    return f"{scheme}, gradient_checkpointing {str(variant.checkpointing).lower()}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def _resident_gib() -> float:
    """Return what this process holds: libraries, as in training, and no model."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 1.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmRSS:")), 1.0)
