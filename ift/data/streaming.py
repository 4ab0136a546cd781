"""What a run with streaming sources needs beside its prepared ones: a try, parts of the mixture, counts, refusals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from ift.data.audit import Audit, SourceAudit, problems
from ift.data.counts import SourceCounts, SpecialTokens, reject_report, rejected_advice
from ift.data.encoding import Encoder
from ift.data.length import LengthPolicy
from ift.data.order import Mixing
from ift.data.rendered_rows import render_rows
from ift.data.row_conversations import ResolvedSource, resolve_source
from ift.data.row_streams import RowStream, stream_files
from ift.data.rows import Source, read_file
from ift.data.steps import StreamProgress
from ift.data.stream_steps import Part, StoredPart, StreamedPart
from ift.errors import UserError

ROWS_TRIED = 100
"""Rows from the beginning of a stream that are encoded before training, to see whether anything can come of them."""
_ROWS_BEFORE_LIMIT = 1000
"""Rows of a stream after which the share of rejected ones means something."""


@dataclass(frozen=True)
class Stream:
    """A streaming source, tried out."""

    number: int
    """In `data.sources`."""
    source: Source
    resolved: ResolvedSource
    num_files: int
    tried: SourceCounts
    """What became of its first rows."""

    @property
    def mean_tokens(self) -> float:
        """Tokens per row, estimated from the first rows."""
        return self.tried.tokens / max(1, self.tried.rows)


def try_stream(number: int, source: Source, encoder: Encoder, length: LengthPolicy) -> Stream:
    """Encode the first rows of a streaming source.

    Raises:
        UserError: no row there, none that can be used, or what makes it senseless to train on them.
    """
    key = f"data.sources[{number}]"
    files = stream_files(key, source)
    rows = list(islice((row for file in files for row in read_file(file)), ROWS_TRIED))
    resolved = resolve_source(key, source, rows=rows)
    counts = SourceCounts(source.path, resolved.layout, source.weight, "", resolved.detected, rows=len(rows))
    conversations, rendered = [], []
    for one in render_rows(rows, resolved.function, length=length):
        if one.conversation is None:
            counts.reject(one.reason, f"{one.row.file or source.path} {one.row.place}: {one.reason}")
        else:
            rendered.append(one.segments)
            conversations.append(one.conversation)
    outcome = length.apply(encoder.encode_batch(rendered), conversations)
    for reason in outcome.rejected.values():
        counts.reject(reason.kind, f"{source.path}: {reason.text}")
    special = SpecialTokens.of(encoder)
    kept = [one for place, one in enumerate(conversations) if place not in outcome.rejected]
    others, blocks = length.with_blocks(outcome.batch, kept)
    counts.texts, counts.blocks = len(kept) - len(others), len(blocks)
    counts.left_out_texts = sum(map(length.num_left_out, kept))
    counts.add(others, special)
    counts.add(blocks, special)
    if not counts.examples:
        raise UserError(f"{key}: none of the first {len(rows)} rows can be used:\n{reject_report([counts])}")
    if found := problems(Audit((SourceAudit(counts, 0),), 0), "data.sources", numbers=[number]):
        raise UserError("\n".join(found))
    return Stream(number, source, resolved, len(files), counts)


@dataclass(frozen=True)
class StreamSettings:
    """What decides the examples of streams beside their rows."""

    length: LengthPolicy
    buffer: int
    """Rows that are shuffled together."""
    seed: int


def stream_parts(
    sources: Sequence[Source],
    streams: Sequence[Stream],
    stored: Sequence[StoredPart],
    *,
    encoder: Encoder,
    settings: StreamSettings,
    states: Sequence[dict[str, Any] | None],
) -> list[Part]:
    """Return the parts of the mixture in the order of the sources.

    Args:
        sources: all of them.
        streams: those that stream, in order.
        stored: those that do not, in order.
        encoder: tokenizer and template.
        settings: of all streams.
        states: per source from where a stream goes on; `None` from the beginning.
    """
    waiting, prepared = iter(streams), iter(stored)
    parts: list[Part] = []
    for source, state in zip(sources, states, strict=True):
        if not source.stream:
            parts.append(next(prepared))
            continue
        stream = next(waiting)
        files = stream_files(f"data.sources[{stream.number}]", source)
        rows = RowStream(files, buffer=settings.buffer, seed=(settings.seed, stream.number))
        if state is not None:
            rows.load_state(state)
        function = stream.resolved.function
        parts.append(StreamedPart(rows, function, encoder=encoder, length=settings.length, name=source.path))
    return parts


def row_shares(weights: Sequence[float], mean_tokens: Sequence[float], *, mixing: Mixing) -> list[float]:
    """Return the share of each source among the rows, together 1.

    Args:
        weights: of the sources; their shares of the rows, or with `tokens` of the tokens.
        mean_tokens: per row of each source.
        mixing: what the weights mean.
    """
    rates = [w / (m if mixing == "tokens" else 1) for w, m in zip(weights, mean_tokens, strict=True)]
    return [rate / sum(rates) for rate in rates]


def check_streams(sources: Sequence[Source], *, mixing: Mixing, deduplicate: str, num_benchmarks: int) -> None:
    """Refuse settings that need to know all rows, where a source streams.

    Raises:
        UserError: with the setting and what to do.
    """
    numbers = [number for number, source in enumerate(sources) if source.stream]
    if not numbers:
        return
    key = f"data.sources[{numbers[0]}]"
    if len(sources) > 1 and mixing == "repeats":
        raise UserError(
            f"data.mixing: 'repeats' needs to know how many examples a source has, and {key} streams. Set data.mixing "
            "to examples or tokens; the weights are then the sources' shares."
        )
    if deduplicate != "none":
        raise UserError(
            f"data.deduplicate: '{deduplicate}' needs to see all rows, and {key} streams. Leave duplicates out before, "
            "with `ift data deduplicate`."
        )
    if num_benchmarks:
        raise UserError(
            f"data.benchmarks: a stream is not searched, and {key} streams. Leave rows out before, with `ift data "
            "contamination --kept`."
        )
    for number in numbers:
        if sources[number].max_examples is not None:
            raise UserError(
                f"data.sources[{number}].max_examples: a stream has no end, so a choice of its examples cannot be "
                "made. Leave it out."
            )


@dataclass
class StreamCounts:
    """What became of the rows that streams have given so far."""

    rows: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    """Conversations that are in examples; a text counts once, however many blocks it is in."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason to number of rows, of all streams."""

    def add(self, progress: StreamProgress, *, max_rejected: float) -> None:
        """Count a step.

        Raises:
            UserError: too large a share of the rows cannot be used.
        """
        if not self.rows:
            self.rows, self.examples = [0] * len(progress.num_rows), [0] * len(progress.num_rows)
        self.rows = [a + b for a, b in zip(self.rows, progress.num_rows, strict=True)]
        self.examples = [a + b for a, b in zip(self.examples, progress.num_used, strict=True)]
        for _, reject in progress.rejected:
            kind = reject.kind if reject.kind in self.rejected or len(self.rejected) < 50 else "other reasons"
            self.rejected[kind] = self.rejected.get(kind, 0) + 1
        number, everything = sum(self.rejected.values()), sum(self.rejected.values()) + sum(self.examples)
        if sum(self.rows) >= _ROWS_BEFORE_LIMIT and number > max_rejected * everything:
            reasons = sorted(self.rejected.items(), key=lambda item: -item[1])[:5]
            told = "\n".join(f"  {times} x {reason}" for reason, times in reasons)
            unit = "rows" if everything == sum(self.rows) else "conversations"
            raise UserError(
                f"data.sources: {number} of {everything} {unit} of the streams cannot be used, more than "
                f"data.max_rejected {max_rejected:g} allows:\n{told}\n{rejected_advice(self.rejected)}"
            )


def describe_streams(streams: Sequence[Stream], counts: StreamCounts, *, buffer: int) -> dict[str, Any]:
    """Return what the streams are and what has become of their rows so far, for the manifest."""
    sources = [
        {"path": one.source.path, "layout": one.resolved.layout, "files": one.num_files, "weight": one.source.weight}
        for one in streams
    ]
    return {"sources": sources, "shuffle_buffer": buffer, **asdict(counts)}
