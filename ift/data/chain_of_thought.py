"""Chain-of-thought records: question, answer and rationale in, alpaca rows out, worded by one of a set of templates.

The template sets and the "think first" sentences are data, in `chain_of_thought.yaml` beside this file. Which template
a record gets depends on the seed and the record's number in its file alone.
"""

import functools
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift.data.quoted_tsv import TsvRecord, read_quoted_tsv
from ift.seeds import mixed_seed

FIELDS = ("question", "answer", "rationale")
"""The fields of a record in the order of its file."""
_SLOT = re.compile(r"\{(question|answer|rationale)\}")


@dataclass(frozen=True)
class ThoughtTemplate:
    """How a record is worded."""

    instruction: str
    """The request, with `{question}`."""
    output: str
    """The response, with `{rationale}` and `{answer}`."""


@dataclass(frozen=True)
class Wordings:
    """What `chain_of_thought.yaml` holds."""

    datasets: Mapping[str, tuple[ThoughtTemplate, ...]]
    """Name of a data set to its templates."""
    think_first: Mapping[str, str]
    """Language (en, cn) to the sentence that may end an instruction."""


@dataclass(frozen=True)
class Thought:
    """A question with its answer and the reasoning that leads to it; backslashes and line breaks as in the file."""

    question: str
    answer: str
    rationale: str


@dataclass(frozen=True)
class Converted:
    """What became of one record of a file."""

    line: int
    """Line of the file on which the record begins, from 1."""
    row: Mapping[str, str] | None = None
    """The alpaca row: instruction, input (empty), output; `None` where `problem` says why there is none."""
    template: int | None = None
    """Place of the row's template in the set, from 0."""
    loosely_quoted: bool = False
    """As in `TsvRecord`: quotation marks around a part of a field were read as CSV quoting, and are gone."""
    problem: str = ""


@functools.cache
def wordings() -> Wordings:
    """Return the template sets and suffixes that come with the package."""
    import yaml

    text = importlib.resources.files("ift.data").joinpath("chain_of_thought.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    datasets = {
        name: tuple(ThoughtTemplate(one["instruction"], one["output"]) for one in templates)
        for name, templates in values["datasets"].items()
    }
    return Wordings(datasets, values["think_first"])


def choose(num_templates: int, seed: int, *, number: int) -> int:
    """Return the place of the template of a record.

    Args:
        num_templates: length of the template set.
        seed: not negative.
        number: of the record in its file, from 0; refused records count.
    """
    return mixed_seed(seed, number) % num_templates


def fill(template: ThoughtTemplate, thought: Thought, *, suffix: str = "") -> dict[str, str]:
    """Return the alpaca row of a record, its texts unchanged whatever characters they hold.

    Args:
        template: of the set of the record's data set.
        thought: the record.
        suffix: a "think first" sentence; goes on a line of its own after the instruction.
    """
    instruction = _fill(template.instruction, thought)
    if suffix:
        instruction = instruction.removesuffix("\n") + "\n" + suffix
    return {"instruction": instruction, "input": "", "output": _fill(template.output, thought)}


def explain(
    published: Mapping[str, str], thought: Thought, *, templates: Sequence[ThoughtTemplate], suffix: str = ""
) -> tuple[int, ...]:
    """Return the places of the templates that turn a record into exactly this row; empty where none does.

    Args:
        published: an alpaca row, with no other keys than instruction, input, output.
        thought: the record that it was made of.
        templates: the set of the record's data set.
        suffix: the "think first" sentence that the row was made with.
    """
    return tuple(
        place for place, template in enumerate(templates) if fill(template, thought, suffix=suffix) == dict(published)
    )


def convert(path: Path, templates: Sequence[ThoughtTemplate], *, seed: int, suffix: str = "") -> Iterator[Converted]:
    """Yield what becomes of each record of a file of questions, answers and rationales, in file order.

    Args:
        path: tab-separated with CSV quoting, UTF-8, no header; see `ift.data.quoted_tsv`.
        templates: the set of the file's data set.
        seed: not negative.
        suffix: a "think first" sentence, or nothing.
    """
    for number, record in enumerate(read_quoted_tsv(path)):
        problem = record.problem or _problem(record)
        if problem:
            yield Converted(record.line, problem=problem)
            continue
        place = choose(len(templates), seed, number=number)
        row = fill(templates[place], Thought(*record.fields), suffix=suffix)
        yield Converted(record.line, row, place, record.loosely_quoted)


def _problem(record: TsvRecord) -> str:
    if len(record.fields) != len(FIELDS):
        return f"{len(record.fields)} field(s) where 3 are needed, separated by tabs: {', '.join(FIELDS)}"
    empty = [name for name, text in zip(FIELDS, record.fields, strict=True) if not text.strip()]
    return f"empty: {', '.join(empty)}" if empty else ""


def _fill(pattern: str, thought: Thought) -> str:
    # The pattern is gone through once, so braces in the texts are never taken for slots; a function as replacement
    # keeps `re` from reading their backslashes.
    return _SLOT.sub(lambda slot: str(getattr(thought, slot[1])), pattern)
