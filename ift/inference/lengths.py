"""Refuses prompts that do not fit into a model, and says what helps: a shorter response only where one would fit."""

from collections.abc import Iterable

from ift.errors import UserError
from ift.inference.prompts import Prompt


def check_lengths(
    prompts: Iterable[Prompt],
    *,
    limit: int | None,
    num_virtual_tokens: int,
    max_new_tokens: int,
    decoding_key: str = "model.decoding.max_new_tokens",
    data_key: str = "data.path",
) -> None:
    """Refuse prompts that are longer with their responses or options than the model's positions.

    Args:
        prompts: all of them; texts that stand alone are cut into windows and may be of any length.
        limit: the model's positions; `None` where any number will do.
        num_virtual_tokens: positions that an adapter takes before the text.
        max_new_tokens: longest response.
        decoding_key: what the user sets that with.
        data_key: what the user names the prompts with.

    Raises:
        UserError: some are too long.
    """
    prompts = list(prompts)
    if limit is None:
        return
    sizes = {one.id: num_virtual_tokens + tokens_of(one, max_new_tokens) for one in prompts}
    long = [one for one in prompts if not one.standing_alone and sizes[one.id] > limit]
    if not long:
        return
    # What is left for a response beside the longest of them; nothing that decoding decides makes an option shorter.
    room = 0 if any(one.options for one in long) else limit - num_virtual_tokens - max(len(one.ids) for one in long)
    ranked = all(one.options for one in long)
    behind = f", {num_virtual_tokens} of them virtual" if num_virtual_tokens else ""
    advice = f"Set {decoding_key} to at most {room}, or ask" if room > 0 else "Ask"
    raise UserError(
        f"{decoding_key if room > 0 else data_key}: {len(long)} of {len(prompts)} prompts with their "
        f"{'options' if ranked else 'responses'} are longer than the model's {limit} positions, first '{long[0].id}' "
        f"with {sizes[long[0].id]} tokens{behind}. {advice} with fewer worked examples (--shots, where a benchmark "
        "made them), take those prompts out, or take a model with more positions."
    )


def tokens_of(prompt: Prompt, max_new_tokens: int) -> int:
    """Return the most tokens of a prompt with its response or longest option."""
    return len(prompt.ids) + (max(map(len, prompt.option_ids)) if prompt.options else max_new_tokens)
