"""What a run says of its data at the start: what cannot be used, what is held out, what was decided for the user."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ift.data.audit import audit
from ift.data.conversation import TrainOn
from ift.data.counts import SourceCounts, describe_blocks, reject_report, rejected_advice
from ift.data.encoding import Encoder
from ift.data.order import IndexArray, Members, Mixing, Mixture, Permutation
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.streaming import Stream
from ift.data.templates import Renderer, Template
from ift.data.text_blocks import SHORTEST
from ift.errors import UserError


def num_outcomes(counts: SourceCounts) -> int:
    """Return the number of conversations that a source held, used or not."""
    return counts.num_used + counts.num_rejected + counts.num_removed


def counted_as(counts: Sequence[SourceCounts]) -> str:
    """Return what `num_outcomes` counts: rows, or conversations where rows hold several."""
    return "rows" if sum(map(num_outcomes, counts)) == sum(one.rows for one in counts) else "conversations"


def check_rejected(key: str, store: ExampleStore, *, max_rejected: float) -> None:
    """Refuse a store of which too many rows cannot be used.

    Raises:
        UserError: with the reasons and the first places.
    """
    everything = sum(map(num_outcomes, store.counts))
    rejected = sum(counts.num_rejected for counts in store.counts)
    if rejected > max_rejected * everything:
        raise UserError(
            f"{key}: {rejected} of {everything} {counted_as(store.counts)} cannot be used, more than data.max_rejected "
            f"{max_rejected:g} allows:\n{reject_report(store.counts)}\nAll of them: {store.rejects_path}\n"
            + rejected_advice(reason for counts in store.counts for reason in counts.rejected)
        )


def describe_store(store: ExampleStore) -> dict[str, Any]:
    """Return the counts, the audit, the key and the hash of the labels of a store, for the manifest."""
    sources = [counts.describe() for counts in store.counts]
    return {"sources": sources, "audit": audit(store).describe(), "prepared": store.key, "labels": store.labels_hash}


def choose_held_out(asked: int | float, size: int, *, seed: int) -> IndexArray:
    """Return the sorted indices of the examples that are held out for validation.

    Args:
        asked: a number of examples, or a share of them.
        size: examples of all prepared sources.
        seed: of the choice.

    Raises:
        UserError: nothing would be left to train on.
    """
    if not size:
        raise UserError(
            f"data.validation: {asked} can only be held out of sources that do not stream, and all do. List sources of "
            "its own."
        )
    number = asked if isinstance(asked, int) else max(1, round(asked * size))
    if number >= size:
        raise UserError(f"data.validation: {number} examples held out of {size} leave none to train on.")
    # A stream of its own, so that the split does not move when anything else draws random numbers.
    return np.sort(Permutation(size, seed, 0x5EED)(np.arange(number)))


def members_of(
    store: ExampleStore, sources: Sequence[Source], held_out: IndexArray, *, seed: int
) -> tuple[Members, ...]:
    """Return the examples of each source that are trained on.

    Args:
        store: of the sources.
        sources: in order.
        held_out: sorted indices of the examples that are not.
        seed: of the choice under a cap.
    """
    members = []
    for number, source in enumerate(sources):
        start, stop = store.source_range(number)
        own = held_out[(held_out >= start) & (held_out < stop)]
        members.append(Members(start, stop, own, cap=source.max_examples, seed=(seed, number, 0xCA9)))
    return tuple(members)


def check_sizes(max_length: int, global_batch_size: int, *, micro_batch_tokens: int, text_blocks: bool) -> None:
    """Refuse sizes by which no step can be made.

    Raises:
        UserError: with the setting.
    """
    for name, value in (("max_length", max_length), ("global_batch_size", global_batch_size)):
        if value < 1:
            raise UserError(f"data.{name}: {value} is less than 1.")
    if text_blocks and max_length < SHORTEST:
        raise UserError(
            f"data.max_length: {max_length} is less than {SHORTEST}, the shortest block of data.text_blocks."
        )
    if micro_batch_tokens < max_length:
        raise UserError(
            f"data.micro_batch_tokens: {micro_batch_tokens} is less than data.max_length {max_length}, so the "
            f"longest example would not fit. Set it to {max_length} or more."
        )


def check_shares(max_rejected: float, shuffle_buffer: int) -> None:
    """Refuse a share that is none, and a buffer that holds nothing.

    Raises:
        UserError: with the setting.
    """
    if not 0 <= max_rejected <= 1:
        raise UserError(f"data.max_rejected: {max_rejected} is no share between 0 and 1.")
    if shuffle_buffer < 1:
        raise UserError(f"data.shuffle_buffer: {shuffle_buffer} is less than 1; 1 keeps the order of the rows.")


def check_loss(train_on: TrainOn, renderer: Renderer, *, text_blocks: bool) -> None:
    """Refuse to learn what the model only reads, where it reads in both directions.

    Raises:
        UserError: with the setting.
    """
    if text_blocks and isinstance(renderer, Template) and renderer.last_output_only:
        raise UserError(
            "data.text_blocks: true joins texts for a model that predicts each token from all before it, and this one "
            "reads what comes before a response in both directions. Leave it out."
        )
    if train_on == "everything" and isinstance(renderer, Template) and renderer.prompt_end:
        raise UserError(
            "data.train_on: 'everything' counts requests too, which the encoder of an encoder-decoder model reads and "
            "no one predicts. Set it to last_output, or leave it out."
        )


def check_held_out(asked: int | float) -> None:
    """Refuse what is neither a number of examples nor a share of them.

    Raises:
        UserError: with the setting.
    """
    if not (asked >= 1 if isinstance(asked, int) else 0 < asked < 1):
        raise UserError(
            f"data.validation: {asked} is neither a share between 0 and 1 (0.05), nor a number of examples "
            "(200), nor a list of sources."
        )


def check_validation_sources(sources: Sequence[Source]) -> None:
    """Refuse keys that mean nothing for validation, which counts every example once.

    Raises:
        UserError: a source that streams, is weighted or capped.
    """
    for number, source in enumerate(sources):
        for key, value, usual in (
            ("stream", source.stream, False),
            ("weight", source.weight, 1.0),
            ("max_examples", source.max_examples, None),
        ):
            if value != usual:
                raise UserError(
                    f"data.validation[{number}].{key}: {value} means nothing here, as validation counts every example "
                    "of a source once. Leave it out."
                )


def check_not_empty(key: str, store: ExampleStore) -> None:
    """Refuse sources that give no example at all.

    Raises:
        UserError: with the sources, and whether they hold no row or none that can be used.
    """
    if not store.counts or len(store):
        return
    paths = ", ".join(counts.path for counts in store.counts)
    if not any(counts.rows for counts in store.counts):
        raise UserError(f"{key}: no row in {paths}. Give files that hold rows.")
    raise UserError(f"{key}: nothing in {paths} can be used.\n{rejected_text([store])}".rstrip())


def check_members(sources: Sequence[Source], members: Mapping[int, Members], *, with_streams: bool) -> None:
    """Refuse a prepared source of which nothing is left to train on.

    Args:
        sources: all of them.
        members: of the prepared ones, by their numbers.
        with_streams: whether others stream; then each must have a part.

    Raises:
        UserError: with the source.
    """
    for number, own in members.items():
        # Of a source without any example the audit says why, unless a filter left everything out, as was asked for.
        if not len(own) and (own.stop > own.start or with_streams):
            raise UserError(
                f"data.sources[{number}]: all examples of '{sources[number].path}' are held out or left out, and none "
                "is left to train on. Hold out fewer (data.validation), or leave the source out."
            )


def check_uses(sources: Sequence[Source], mixture: Mixture, *, global_batch_size: int) -> None:
    """Refuse a mixture that never uses a source, or that is smaller than a step.

    Raises:
        UserError: with the setting.
    """
    for number, uses in enumerate(mixture.uses):
        weight, size = sources[number].weight, len(mixture.members[number])
        if size and not uses:
            raise UserError(
                f"data.sources[{number}].weight: {weight:g} of {size} examples is none per epoch. Raise it, or leave "
                "the source out."
            )
    if len(mixture) < global_batch_size:
        raise UserError(
            f"data.global_batch_size: a step takes {global_batch_size} examples, and an epoch has only {len(mixture)}. "
            "Lower it, or add data."
        )


def rejected_text(stores: Sequence[ExampleStore]) -> str:
    """Return how many rows became no example and why, or an empty text where all did."""
    counts = [one for store in stores for one in store.counts if one.num_rejected]
    if not counts:
        return ""
    number, everything = sum(one.num_rejected for one in counts), sum(map(num_outcomes, counts))
    return f"{number} of {everything} {counted_as(counts)} cannot be used and are left out:\n{reject_report(counts)}"


def source_notes(stores: Sequence[ExampleStore], *, max_length: int) -> list[str]:
    """Return what was found out, cut and left out of prepared sources, one line each."""
    lines = []
    for counts in (one for store in stores for one in store.counts):
        if counts.detected:
            lines.append(f"{counts.path}: no layout is named; its first rows have layout '{counts.layout}'")
        if counts.cut:
            lines.append(f"{counts.path}: {counts.cut} examples cut to data.max_length {max_length}")
        lines += _loss_notes(counts, counts.path)
        lines += [f"{counts.path}: {n} conversations left out ({name})" for name, n in counts.removed.items()]
    return lines


def _loss_notes(counts: SourceCounts, place: str) -> list[str]:
    """Return what of the examples themselves is lost to a model, one line each."""
    lines = []
    if counts.unknown_tokens:
        lines.append(
            f"{place}: {counts.unknown_tokens} of {counts.tokens} tokens are the tokenizer's token for text that it "
            "does not know; a model can neither read nor write that text"
        )
    if counts.left_out_texts:
        lines.append(
            f"{place}: {counts.left_out_texts} texts before the last responses are not learned, as the model reads all "
            "before the last response at once"
        )
    return lines


def block_notes(
    stores: Sequence[ExampleStore], streams: Sequence[Stream], *, text_blocks: bool, validation: object
) -> list[str]:
    """Return what became of plain texts under `data.text_blocks`, one line each."""
    if not text_blocks:
        return []
    joined = [one for store in stores for one in store.counts if one.texts]
    lines = [f"{counts.path}: {describe_blocks(counts)}" for counts in joined]
    streamed = [stream.source.path for stream in streams if stream.tried.texts]
    lines += [f"{path}: a stream; its texts are joined within each step" for path in streamed]
    if not lines:
        return ["data.text_blocks: true, but no source holds plain text (layout text), so it changes nothing"]
    if joined and isinstance(validation, int | float):
        lines.append(
            f"data.validation: {validation} holds out blocks, and a text may reach from one that is held out into one "
            "that is trained on. List sources of their own to hold out whole texts."
        )
    return lines


def stream_notes(streams: Sequence[Stream], *, mixing: Mixing) -> list[str]:
    """Return what was found out of streams, one line each."""
    lines = []
    for stream in streams:
        path = stream.source.path
        if stream.resolved.detected:
            lines.append(f"{path}: no layout is named; its first rows have layout '{stream.resolved.layout}'")
        lines += _loss_notes(stream.tried, f"{path}, its first {stream.tried.rows} rows")
        if mixing == "tokens":
            estimate = f"{stream.mean_tokens:.0f} tokens per row, estimated from its first {stream.tried.rows}"
            lines.append(f"{path}: a stream; {estimate}")
    return lines


def token_notes(encoder: Encoder) -> list[str]:
    """Return what the tokenizer cannot say: special tokens of the template, and line breaks; one line each."""
    lines = [] if encoder.keeps_lines else ["the tokenizer keeps no line breaks, so no response is learned with any"]
    return lines + [
        f"data.template: the tokenizer lacks the special token '{token}'; {instead} is written instead"
        for token, instead in encoder.missing_tokens().items()
    ]
