"""The table that `ift plan` prints."""

from collections.abc import Iterator

from ift.commands.plan_report import PlanReport, Row
from ift.training.memory_plan import GIB

_COLUMNS = ("weights", "gradients", "optimizer", "activations", "logits", "gathered")


def text_of(report: PlanReport) -> str:
    """Return the report as text."""
    return "\n".join([*_head(report), "", *_table(report), "", *_course(report), "", *_end(report)])


def _head(report: PlanReport) -> Iterator[str]:
    share = report.trainable / max(1, report.parameters)
    yield f"{report.base}: {report.parameters:,} parameters, {report.trainable:,} trainable ({share:.3%})"
    yield f"{report.method}, {report.dtype}, {report.optimizer}; GiB for each rank on {report.card}"
    yield f"{report.error}"


def _table(report: PlanReport) -> Iterator[str]:
    width = max(len(row.strategy) for row in report.rows) + 5
    yield f"{'':<{width}} " + " ".join(f"{name:>11}" for name in _COLUMNS) + f" {'peak':>8} {'needed':>8}"
    for title, rows in _groups(report.rows):
        yield title
        for row in rows:
            if row.refused is None or row.own:
                yield _line(row, width)
        yield from _refused([row for row in rows if row.refused is not None and not row.own])


def _groups(rows: tuple[Row, ...]) -> Iterator[tuple[str, list[Row]]]:
    own = [row for row in rows if row.own]
    yield "this run" + _described(own[0]), own
    others = [row for row in rows if not row.own]
    keys = list(dict.fromkeys((row.method, row.quantized, row.checkpointing) for row in others))
    for key in keys:
        group = [row for row in others if (row.method, row.quantized, row.checkpointing) == key]
        yield f"{key[0]}{_described(group[0])}", group


def _refused(rows: list[Row]) -> Iterator[str]:
    """Yield what 'ift fit' would not run, strategies with the same reason in one line."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(_short(str(row.refused), row.strategy), []).append(row.strategy)
    for reason, strategies in reasons.items():
        yield f"  refused: {', '.join(strategies)}: {reason}"


def _short(reason: str, strategy: str) -> str:
    """Return the first sentence of a refusal, which says why; what follows says what to take instead."""
    return (
        reason.partition(". ")[0].rstrip(".").replace(strategy, "it" if strategy.startswith("deepspeed") else strategy)
    )


def _described(row: Row) -> str:
    quantized = f", {row.quantized}" if row.quantized is not None else ""
    return f"{quantized}, gradient_checkpointing: {str(row.checkpointing).lower()}"


def _line(row: Row, width: int) -> str:
    name = row.strategy if row.devices == 1 else f"{row.strategy} x{row.devices}"
    values = " ".join(f"{getattr(row.parts, one) / GIB:11.2f}" for one in _COLUMNS)
    host = f", {row.parts.host / GIB:.1f} GiB of main memory" if row.parts.host else ""
    verdict = ("refused" if row.refused is not None else "fits" if row.fits else "too large") + host
    return f"  {name:<{width - 2}} {values} {row.parts.total / GIB:8.2f} {row.needed_gib:8.2f}  {verdict}"


def _course(report: PlanReport) -> Iterator[str]:
    course = report.course
    assumed = "" if course.counted else " (assumed: all examples as long as data.max_length, half of it supervised)"
    steps = f"{course.steps:,} steps" if course.steps is not None else "steps not known without the data"
    if course.steps_per_epoch is not None:
        steps += f" ({course.steps_per_epoch:,} per epoch)"
    tokens = f", {course.tokens:,.0f} tokens" if course.tokens is not None else ""
    yield f"{steps}{tokens}{assumed}"
    yield (
        f"a step: {course.tokens_per_step:,.0f} tokens, {course.supervised_tokens_per_step:,.0f} supervised, "
        f"{course.padding_share:.1%} padding; {course.micro_batches} micro-batches for a rank at most, the largest "
        f"{course.largest_micro_batch}"
    )
    yield (
        f"operations of a step: {course.model_flops_per_step:.3g} of the model, {course.hardware_flops_per_step:.3g} "
        "computed"
    )
    if course.seconds_per_step is not None:
        whole = f", {_duration(course.seconds)} in all" if course.seconds is not None else ""
        yield f"rough time: {course.seconds_per_step:.2g} s a step{whole}, at {course.time_is_for}"
    else:
        yield f"rough time: {course.time_is_for}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _end(report: PlanReport) -> Iterator[str]:
    yield from report.advice
    yield f"'needed' adds to the peak {report.margin}."
    for note in report.notes:
        yield f"note: {note}"
    for name, reason in report.skipped.items():
        yield f"not planned: {name}: {reason}"
