"""Whether a judge's replies can be scored, said while there is still time to choose another judge."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.benchmark import Judge, Systems
from ift.errors import UserError
from ift.records import Prediction

_SHOWN_CHARACTERS = 100


def quoted(reply: str) -> str:
    """Return the start of a reply, on one line and in quotation marks."""
    text = " ".join(reply.split())
    return f"'{text}'" if len(text) <= _SHOWN_CHARACTERS else f"'{text[:_SHOWN_CHARACTERS]}…'"


def unusable_replies(judge: Judge, replies: Sequence[Prediction], *, systems: Systems, data: Path) -> Iterator[str]:
    """Yield a sentence per system for which replies hold no usable score; scores as `score` will.

    Args:
        judge: of the benchmark.
        replies: all of them.
        systems: whose answers were judged.
        data: the benchmark's.
    """
    for name, predictions in systems.items():
        own = [reply for reply in replies if name in reply.meta["systems"]]
        try:
            report = judge.score(replies, {name: predictions}, data)[name]
        except UserError as error:
            first = f" The first reply: {quoted(own[0].response or '')}" if own else ""
            yield f"{name}: no score can be made of the replies: {error}{first}"
            continue
        if report.unread:
            first = next((quoted(one.response or "") for one in own if one.meta["item"] in report.unread), "none")
            judged = len(report.items) - sum(report.excluded.values())
            yield (
                f"{name}: {len(report.unread)} of {judged} items have no usable score of the "
                f"judge; the first such reply: {first}"
            )
