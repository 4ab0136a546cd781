"""Whether predictions were asked as their protocol demands: under its template, options tokenized as it says."""

from collections.abc import Iterable
from pathlib import Path

from eval.benchmark import Benchmark
from eval.output import identity_of
from ift.records import Prediction

_BARE = "raw"
"""The template that adds nothing."""


def recipe_notes(benchmark: Benchmark, predictions: Iterable[Prediction], path: Path) -> tuple[str, ...]:
    """Return a note for each setting of `ift predict` by which the scores are not the protocol's own.

    Args:
        benchmark: under the protocol that scores.
        predictions: the answers.
        path: of their file; nothing can be told where no `predict.json` lies beside it.
    """
    identity = identity_of(path)
    notes = []
    template = identity.get("template")
    used = template.get("name", "tokenizer") if isinstance(template, dict) else benchmark.template
    if benchmark.template is not None and used != benchmark.template:
        bare = "bare text" if benchmark.template == _BARE else f"for template '{benchmark.template}'"
        notes.append(
            f"Asked under template '{used}'; {benchmark.protocol}'s prompts are {bare}: "
            f"--data.template={benchmark.template}. Scores are not comparable with those of this protocol elsewhere."
        )
    joined = any(one.meta.get("join_options") for one in predictions)
    if joined and identity.get("join_options") is False:
        notes.append(
            f"Asked with --data.join_options=false; {benchmark.protocol}'s options are tokenized together with the "
            "prompt: leave it out. Scores are not comparable with those of this protocol elsewhere."
        )
    return tuple(notes)
