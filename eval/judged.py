"""What all judged benchmarks share: systems side by side, their order in a message, and replies as outcomes.

A judge prompt's `meta` says what it is about: `item`, the id of the judged prediction, and `systems`, the names in the
order in which the message shows them.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.benchmark import Systems
from eval.judge_reading import Reading
from eval.report import Outcome
from ift.errors import UserError
from ift.records import Json, Prediction, PromptRecord

Readings = Mapping[tuple[str, str], Reading]
"""By item and system."""


@dataclass(frozen=True)
class Compared:
    """One item, answered by every system."""

    id: str
    answers: Mapping[str, Prediction]
    """By system, in the order in which the systems were named."""


def side_by_side(systems: Systems) -> Iterator[Compared]:
    """Yield every item with each system's prediction, in the order of the data.

    Raises:
        UserError: the systems did not answer the same items.
    """
    first, *others = systems
    ids = [one.id for one in systems[first]]
    for name in others:
        if [one.id for one in systems[name]] != ids:
            raise UserError(
                f"--predictions: '{name}' and '{first}' did not answer the same prompts. Judge systems together only "
                "where they answered the same file."
            )
    for number, item in enumerate(ids):
        yield Compared(item, {name: systems[name][number] for name in systems})


def response_of(prediction: Prediction) -> str:
    """Return the written answer.

    Raises:
        UserError: options were ranked instead.
    """
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has no 'response'; a judge reads generated text.")
    return prediction.response


def rotations(names: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Return an order of the systems for each of so many messages.

    Every order is the systems' own, begun at another of them, so that over all messages each stands in each place
    equally often (up to one); the seed decides which message gets which.
    """
    starts = [number % len(names) for number in range(count)]
    random.Random(seed).shuffle(starts)
    return [(*names[start:], *names[:start]) for start in starts]


def judge_prompt(
    name: str, text: str, *, item: str, systems: Sequence[str], system_message: str | None = None, **meta: Json
) -> PromptRecord:
    """Return one message to the judge.

    Args:
        name: its id.
        text: what the judge reads.
        item: id of the judged prediction.
        systems: in the order in which the message shows them.
        system_message: goes before the text as a message of its own.
        **meta: further facts that `score` needs.
    """
    before = () if system_message is None else ({"role": "system", "content": system_message},)
    return PromptRecord(
        name, (*before, {"role": "user", "content": text}), meta={"item": item, "systems": list(systems), **meta}
    )


def read_replies(replies: Iterable[Prediction], read: Callable[[str, int], Sequence[Reading]]) -> Readings:
    """Return what the replies say, by item and system.

    Args:
        replies: raw, each with the `meta` of its judge prompt.
        read: from a reply and the number of systems in its message to one reading for each, in their order.
    """
    readings: dict[tuple[str, str], Reading] = {}
    for reply in replies:
        names = reply.meta["systems"]
        for name, reading in zip(names, read(response_of(reply), len(names)), strict=True):
            readings[reply.meta["item"], name] = reading
    return readings


def judged_outcome(
    readings: Readings, item: str, system: str, *, category: str, scale: float = 1.0, kinds: tuple[str, ...] = ()
) -> Outcome:
    """Return what became of one item of one system.

    Args:
        readings: of all replies.
        item: id of the prediction.
        system: whose.
        category: of the item.
        scale: the judge's score is multiplied by it, to stand as published tables have it.
        kinds: of the item.

    Raises:
        UserError: there is no reply about it.
    """
    if (item, system) not in readings:
        raise UserError(
            f"--judgements: no reply about '{item}' of '{system}'. Let `python -m eval judge` finish, with the same "
            "--predictions, --data, --limit and --seed."
        )
    reading = readings[item, system]
    if reading.value is None:
        return Outcome(item, category, status="unread", note=reading.problem, kinds=kinds)
    return Outcome(item, category, value=reading.value * scale, answer=f"{reading.value:g}", kinds=kinds)


def share_unread(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return a note on the judge's replies that gave no score; none where all did."""
    unread = sum(outcome.status == "unread" for outcome in outcomes)
    if not unread:
        return ()
    return (
        f"{unread} of {len(outcomes)} items ({unread / len(outcomes):.1%}) have no usable score of the judge and are "
        "left out of every mean.",
    )
