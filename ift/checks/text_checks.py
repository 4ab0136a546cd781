"""Invariants 1, 2 and 10, which need no model: what is supervised, what a prompt is, what becomes of rows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ift.checks.findings import Findings
from ift.checks.model_checks import examples_of
from ift.checks.tiny_data import Talk, damaged_rows, talks, write_lines
from ift.checks.workbench import World
from ift.data.chat_template_export import chat_messages, prompt_format
from ift.data.conversation import Conversation, Message
from ift.data.encoding import IGNORE_INDEX, Encoder
from ift.data.micro_batches import MicroBatch, RowLayoutChoice
from ift.data.templates import TEMPLATES

LAYOUTS: tuple[Any, ...] = ("packed", "flattened", "grouped")
_NUM_TALKS = 24
_MARK = "\ue0f1"
_LONG = 1 << 16


def all_templates() -> tuple[str, ...]:
    """Return the named templates."""
    return tuple(sorted(TEMPLATES))


class Texts:
    """Conversations of a check as a run prepares them.

    Args:
        folder: for files and the cache.
        base: folder of a tokenizer, or of a model with one.
        data: settings of the data, `template` among them.
    """

    def __init__(self, folder: Path, base: Path, data: Mapping[str, Any]) -> None:
        from ift.data.datamodule import InstructionDataModule
        from ift.data.rows import Source

        self.talks = talks(_NUM_TALKS)
        self.path = write_lines(folder / "talks.jsonl", [talk.row() for talk in self.talks])
        sizes = {"max_length": _LONG, "global_batch_size": 6, "micro_batch_tokens": _LONG}
        options = {"cache_dir": str(folder / "cache"), "validation": 4, **sizes, **data}
        self.data = InstructionDataModule([Source(str(self.path), "messages")], str(base), **options)
        self.data.load()
        self.data.micro_batch_tokens = 4 * self.data.longest_example

    @property
    def encoder(self) -> Encoder:
        """Tokenizer and template."""
        return self.data.encoder

    def batches(self, layout: Any) -> list[MicroBatch]:
        """Return all micro-batches of training and validation in a row layout."""
        # Rows of several examples are wanted, whatever they would cost.
        self.data.row_layout_choice = RowLayoutChoice(layout, "to be checked", square_cost_length=1 << 30)
        steps = self.data._training_steps(0, 1)
        found = [batch for index in range(steps.num_steps_per_epoch) for batch in steps[index].micro_batches]
        held_out: Any = self.data.val_dataloader()
        return found + [batch for step in held_out for batch in step.micro_batches]


def check_labels(folder: Path, base: Path, findings: Findings, *, title: str, data: Mapping[str, Any]) -> None:
    """Invariant 1 for a tokenizer and a template, in every row layout.

    Args:
        folder: for files.
        base: with the tokenizer.
        findings: gain the cases.
        title: of the case.
        data: settings of the data, `template` among them.
    """

    def compute() -> float:
        texts = Texts(folder, base, data)
        return sum(wrong_texts(texts, layout) for layout in LAYOUTS)

    findings.measure(1, title, compute, quantity="texts wrong", allowed=0)


def wrong_texts(texts: Texts, layout: Any) -> int:
    """Return how many conversations are not supervised as they should be, or are missing."""
    expected = Counter(expected_texts(texts.encoder, talk, texts.data.train_on) for talk in texts.talks)
    found: Counter[tuple[str, ...]] = Counter()
    stops = set(texts.encoder.stop_token_ids)
    for batch in texts.batches(layout):
        for row, begin, end in examples_of(batch):
            found[decoded(texts.encoder, batch.labels[row, begin:end].tolist(), stops)] += 1
    return max((expected - found).total(), (found - expected).total())


def decoded(encoder: Encoder, labels: Sequence[int], stops: set[int]) -> tuple[str, ...]:
    """Return the texts of the supervised stretches of an example; one that nothing ends says so."""
    found = []
    for stretch in stretches(labels):
        ended = "" if any(label in stops for label in stretch) else " (never ends)"
        found.append(encoder.decode([label for label in stretch if label not in stops]) + ended)
    return tuple(found)


def stretches(labels: Sequence[int]) -> list[list[int]]:
    """Return the stretches of labels that count."""
    found: list[list[int]] = []
    for before, label in pairwise([IGNORE_INDEX, *labels]):
        if label != IGNORE_INDEX:
            found = [*found, [label]] if before == IGNORE_INDEX else [*found[:-1], [*found[-1], label]]
    return found


def expected_texts(encoder: Encoder, talk: Talk, train_on: str) -> tuple[str, ...]:
    """Return what should be learned of a conversation: its responses, with words that the template puts around one."""
    responses = list(talk.responses)
    around = words_around(encoder)
    last = len(responses) - 1
    only_last = getattr(encoder.template, "last_output_only", False) or train_on == "last_output"
    return tuple(
        _with_words(encoder, around[-1 if number == last else 0], response)
        for number, response in enumerate(responses)
        if number == last or not only_last
    )


def _with_words(encoder: Encoder, parts: Sequence[str], response: str) -> str:
    """Return a response as it is read back; between it and words of the template, a tokenizer may write a blank."""
    if len(parts) == 1:
        return response
    texts = [part.replace(_MARK, response) for part in parts]
    read = encoder.decode([token for text in texts for token in encoder.response_ids(text)])
    return read if response in read else response


def words_around(encoder: Encoder) -> dict[int, list[str]]:
    """Return what is learned of an earlier (0) and of the last (-1) response that is a single mark, text by text."""
    asked = Message("user", "a")
    answered = Message("assistant", _MARK, supervised=True)
    learned: list[list[str]] = []
    before = False
    for segment in encoder.template.render(Conversation((asked, answered, asked, answered))):
        if segment.supervised and segment.kind == "text" and not segment.begins_response:
            learned = (
                [*learned[:-1], [*learned[-1], segment.text]] if before and learned else [*learned, [segment.text]]
            )
        before = segment.supervised
    marked = [texts for texts in learned if any(_MARK in text for text in texts)]
    return {0: marked[0], -1: marked[-1]}


def check_prompts(folder: Path, base: Path, findings: Findings, *, title: str, data: Mapping[str, Any]) -> None:
    """Invariant 2 for a tokenizer and a template: training, validation, predict and the exported chat template.

    Args:
        folder: for files.
        base: with the tokenizer.
        findings: gain the case.
        title: of the case.
        data: settings of the data, `template` among them.
    """
    findings.measure(
        2, title, lambda: wrong_prompts(Texts(folder, base, data), base), quantity="prompts differ", allowed=0
    )


def wrong_prompts(texts: Texts, base: Path) -> int:
    """Return how many prompts are not the same wherever they are written."""
    from ift.inference.prompts import PromptDataModule

    data = texts.data
    options: dict[str, Any] = {"template": data.template or "tokenizer"}
    asked = PromptDataModule(
        str(texts.path), str(base), template_options=data.template_options or None, batch_size=4, **options
    )
    asked.load()
    exported = prompt_format(texts.encoder, [conversation_of(talk) for talk in texts.talks]).chat_template
    told_apart = data.train_on != "everything"  # else nothing in the labels says where a prompt ends
    held_out = data.validation_prompts(data.num_validation_examples) if told_apart else []
    validation = [prompt for prompt, _ in held_out]
    wrong = sum(prompt not in [one.ids for one in asked.prompts] for prompt in validation)
    by_line = {data.store.place(index)[1]: data.store[index] for index in range(len(data.store))}
    for number, (talk, prompt) in enumerate(zip(texts.talks, asked.prompts, strict=True)):
        example = by_line[number + 1]
        known = trained_prompt(example, texts.encoder) if told_apart else example.input_ids[: len(prompt.ids)].tolist()
        wrong += known != prompt.ids
        if exported is not None:
            theirs = texts.encoder.tokenizer.apply_chat_template(
                chat_messages(conversation_of(talk).prompt),
                chat_template=exported,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            wrong += list(theirs) != prompt.ids
    return wrong


def trained_prompt(example: Any, encoder: Encoder) -> list[int]:
    """Return the ids before the last response of an example, by its labels."""
    counted = np.flatnonzero(example.labels == example.input_ids)
    breaks = np.flatnonzero(np.diff(counted) > 1)
    begin = int(counted[breaks[-1] + 1] if len(breaks) else counted[0])
    opening = encoder.opening_ids
    if opening and example.input_ids[begin : begin + len(opening)].tolist() == opening:
        begin += len(opening)
    return [int(token) for token in example.input_ids[:begin]]


def conversation_of(talk: Talk) -> Conversation:
    """Return a talk as a conversation."""
    messages = [
        message
        for request, response in zip(talk.requests, talk.responses, strict=True)
        for message in (Message("user", request), Message("assistant", response))
    ]
    return Conversation(tuple(messages), system=talk.system)


def check_rows_accounted(world: World, findings: Findings) -> None:
    """Invariant 10: rows that can and cannot be used, with each way to leave rows out."""
    settings: dict[str, dict[str, Any]] = {
        "as they are": {},
        "duplicates left out": {"deduplicate": "exact"},
        "long ones cut": {"over_long": "cut_end"},
    }
    for title, data in settings.items():
        lost = partial(rows_lost, world, data)
        findings.measure(10, title, lost, quantity="rows lost or doubled", allowed=0)


def rows_lost(world: World, data: Mapping[str, Any]) -> int:
    """Return how many rows became neither an example nor a reject, or more than one of them, or are miscounted."""
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    number = 70
    path = write_lines(world.root / "damaged.jsonl", damaged_rows(number, long="long " * 400))
    module = InstructionDataModule(
        [Source(str(path), "alpaca")],
        str(world.base),
        max_length=200,
        global_batch_size=4,
        micro_batch_tokens=400,
        max_rejected=1.0,
        cache_dir=str(world.root / "cache"),
        **data,
    )
    module.load()
    (counts,) = module.store.counts
    lines = Counter(module.store.place(index)[1] for index in range(len(module.store)))
    rejected, removed = (_lines_of(files) for files in (module.rejects_files(), module.removed_files()))
    ends = lines + rejected + removed
    wrong = sum(ends[line] != 1 for line in range(1, number + 1)) + sum(line > number for line in ends)
    told = [counts.rows, counts.examples, sum(counts.rejected.values()), sum(counts.removed.values())]
    found = [number, lines.total(), rejected.total(), removed.total()]
    return wrong + sum(abs(a - b) for a, b in zip(told, found, strict=True))


def _lines_of(files: Iterable[Path]) -> Counter[int]:
    import json

    return Counter(
        int(json.loads(line)["line"]) for file in files for line in file.read_text(encoding="utf-8").splitlines()
    )
