"""Which prompts a run consists of, and that its predictions answer exactly these."""

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from eval.baselines import OF
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

_SHOWN = 5


def select(prompts: Iterable[PromptRecord], *, limit: int | None, seed: int) -> list[PromptRecord]:
    """Return all prompts, or a random sample in the order of the data.

    A prompt without content that belongs to a question (`eval/baselines.py`) is no row: it is there where that is.

    Args:
        prompts: every prompt of the data.
        limit: number of rows in the sample; `None` for all.
        seed: of the sample; the same data, limit and seed give the same sample.

    Raises:
        UserError: two prompts share an id, or the limit is out of range.
    """
    everything = list(prompts)
    seen: set[str] = set()
    for prompt in everything:
        if prompt.id in seen:
            raise UserError(f"--data: the id '{prompt.id}' occurs twice. Ids must be unique in the file.")
        seen.add(prompt.id)
    if limit is None:
        return everything
    rows = [prompt.id for prompt in everything if OF not in prompt.meta]
    if not 1 <= limit <= len(rows):
        raise UserError(
            f"--limit: {limit} is out of range; the data{_benchmark(everything)} has {len(rows)} rows. Give 1 to that "
            "many."
        )
    chosen = set(random.Random(seed).sample(rows, limit))
    return [prompt for prompt in everything if prompt.meta.get(OF, prompt.id) in chosen]


def match(
    prompts: Sequence[PromptRecord], predictions: Sequence[Prediction], *, outside: Collection[str] = ()
) -> list[Prediction]:
    """Return the predictions in the order of their prompts.

    Args:
        prompts: of the sample.
        predictions: one for each.
        outside: ids of the data outside the sample; predictions for these are left out.

    Raises:
        UserError: a prompt without a prediction, a prediction without a prompt, or one made for another reference.
    """
    everything, predictions = predictions, [one for one in predictions if one.id not in outside]
    by_id = {prediction.id: prediction for prediction in predictions}
    known = {prompt.id for prompt in prompts}
    missing = [prompt.id for prompt in prompts if prompt.id not in by_id]
    unknown = [prediction.id for prediction in predictions if prediction.id not in known]
    if missing or unknown:
        left_out = len(everything) - len(predictions)
        more = f" (and {left_out} outside the sample)" if left_out else ""
        found = [_count(missing, "missing"), _count(unknown, "not in the data")]
        raise UserError(
            f"--predictions: {len(predictions)} predictions for {len(prompts)} prompts{more}: "
            f"{'; '.join(part for part in found if part)}. Predict every prompt that `prepare` wrote, and judge "
            "and score with the same --data, --limit and --seed."
        )
    changed = [prompt.id for prompt in prompts if by_id[prompt.id].reference not in (None, prompt.reference)]
    if changed:
        raise UserError(
            f"--data: {_count(changed, 'whose reference differs from the prediction')}. The file changed after "
            "`prepare`; score with the file that the prompts came from."
        )
    return [replace(by_id[prompt.id], reference=prompt.reference) for prompt in prompts]


def _benchmark(prompts: Sequence[PromptRecord]) -> str:
    """Return of which benchmark the prompts are, where they say so; a command may ask several."""
    names = sorted({prompt.meta["asked"]["benchmark"] for prompt in prompts if "asked" in prompt.meta})
    return f" of {', '.join(names)}" if names else ""


def _count(ids: Sequence[str], what: str) -> str:
    if not ids:
        return ""
    more = ", …" if len(ids) > _SHOWN else ""
    return f"{len(ids)} {what} ({', '.join(ids[:_SHOWN])}{more})"
