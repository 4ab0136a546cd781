"""The prompts of a run on which a merge is certified, and its conversations by which chat templates are compared."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ift.artifacts import RunFolder
from ift.commands.inspect_config import configured_data
from ift.data.conversation import Conversation
from ift.data.datamodule import InstructionDataModule
from ift.data.encoding import Encoder
from ift.data.layouts import RowError
from ift.data.row_conversations import resolve_source, to_conversations
from ift.data.rows import Source, read_rows
from ift.data.store import first_prompts
from ift.errors import UserError
from ift.inference.prompts import PromptDataModule
from ift.models.certificate import PromptSample
from ift.models.export import PromptSet

_CONVERSATIONS = 64
"""Compared for a chat template, of each source."""


def run_prompts(run: RunFolder, *, base: str, number: int, most_tokens: int) -> PromptSet:
    """Return prompts of a run: of those held out, else of those trained on.

    Args:
        run: the run folder.
        base: folder or hub id whose tokenizer prepares the data.
        number: of prompts.
        most_tokens: of each response.

    Raises:
        UserError: none can be had.
    """
    try:
        data = _data(run, base)
        pairs, origin = _pairs(data, number)
    except (UserError, OSError) as error:
        raise UserError(
            f"--prompts: required, as no prompt of the run's own data can be had: {' '.join(str(error).split())} Name "
            "a file of prompts on which to compare the merged model."
        ) from error
    return PromptSet([PromptSample(prompt, response[:most_tokens]) for prompt, response in pairs], origin)


def _data(run: RunFolder, base: str) -> InstructionDataModule:
    own = ["--model.base", base]
    if run.read_manifest().get("vocabulary"):  # its tokenizer may be gone, and the run has a copy
        own += ["--model.vocabulary.tokenizer", str(run.tokenizer), "--model.vocabulary.special_tokens", "null"]
    return configured_data(["--config", str(run.config), *own])


def _pairs(data: InstructionDataModule, number: int) -> tuple[list[tuple[list[int], list[int]]], str]:
    if not data.stored_numbers and not isinstance(data.validation, list):
        raise UserError("all of its sources stream, and none is kept for validation.")
    store, held_out = data.look(validation=True)
    if pairs := first_prompts(store, held_out, number):
        return pairs, "the run's first validation examples"
    import numpy as np

    if pairs := first_prompts(store, np.arange(len(store)), number):
        return pairs, "the run's first training examples"
    raise UserError("none of its examples has a prompt.")


def file_prompts(path: str, *, run: RunFolder, template: Any, options: dict[str, Any], most_tokens: int) -> PromptSet:
    """Return the prompts of a file, as `ift predict` reads it; a `reference` or last response is the response.

    Raises:
        UserError: a row that is no prompt.
    """
    prompts = PromptDataModule(
        path, base=str(run.tokenizer), template=template, template_options=options or None, batch_size=1
    )
    prompts.load()
    samples = []
    for one in prompts.prompts:
        response = prompts.encoder.response_ids(one.reference) if one.reference else []
        samples.append(PromptSample(one.ids, response[:most_tokens]))
    return PromptSet(samples, f"the file {Path(path).name}")


def run_conversations(run: RunFolder, *, base: str) -> Iterator[Conversation]:
    """Yield the first conversations of each source of a run; none where the data are no longer there."""
    try:
        yield from _conversations(_data(run, base).sources)
    except (UserError, OSError):
        return


def _conversations(sources: Sequence[Source]) -> Iterator[Conversation]:
    for number, source in enumerate(sources):
        key = f"data.sources[{number}]"
        function = resolve_source(key, source).function
        for row in islice(read_rows(source, key=key), _CONVERSATIONS):
            found = to_conversations(row, function, needs_response=True)
            yield from (one for one in found if not isinstance(one, RowError) and one.prompt.messages)


def encoder_of(run: RunFolder, template: Any, options: dict[str, Any]) -> Encoder:
    """Return the tokenizer and template of a run."""
    from ift.data.encoding import load_tokenizer, make_renderer
    from ift.data.templates import resolve_template

    tokenizer = load_tokenizer("RUN", str(run.tokenizer))
    return Encoder(tokenizer, make_renderer(tokenizer, resolve_template("RUN", template), options))
