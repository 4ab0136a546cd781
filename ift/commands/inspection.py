"""What `ift data inspect` looks at: a run's prepared data, their audit, and examples as pieces of text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ift.commands.audit_numbers import describe_layout, number, percent
from ift.commands.token_view import Piece, pieces
from ift.data.audit import Audit, audit, problems
from ift.data.data_report import check_not_empty, check_rejected
from ift.data.datamodule import InstructionDataModule
from ift.data.store import ExampleStore
from ift.errors import UserError


@dataclass(frozen=True)
class Inspection:
    """Prepared data and all that is said of them."""

    data: InstructionDataModule
    key: str
    """Of the sources in the configuration."""
    store: ExampleStore
    held_out: frozenset[int]
    """Indices of the examples that validation uses."""
    audit: Audit
    problems: tuple[str, ...]
    """What makes it senseless or impossible to train on them; `ift fit` refuses each."""

    @property
    def row_files(self) -> dict[str, Path]:
        """What to call the files of rows that became no example, where there are such rows, and their paths."""
        counts = self.store.counts
        files = {"all rejected rows": self.store.rejects_path} if any(one.num_rejected for one in counts) else {}
        return files | ({"all left out": self.store.removed_path} if any(one.num_removed for one in counts) else {})

    @property
    def template(self) -> str:
        """Name of the template."""
        return str(self.data.encoder.template.describe()["name"])


@dataclass(frozen=True)
class Shown:
    """An example and what is said of it."""

    index: int
    """In the store, from 0."""
    title: str
    facts: tuple[str, ...]
    """Source, place, layout, template, tokens."""
    pieces: Sequence[Piece]


def inspect(data: InstructionDataModule, *, validation: bool) -> Inspection:
    """Prepare the data and audit them, whatever became of their rows.

    Args:
        data: as `ift fit` would use it.
        validation: whether to look at what validation uses.

    Raises:
        UserError: nothing is held out, or the data cannot be read.
    """
    if validation and data.validation is None:
        raise UserError("data.validation: null holds nothing out, so there is nothing to show. Leave --validation out.")
    if not validation and any(source.stream for source in data.sources):
        streaming = ", ".join(f"data.sources[{n}]" for n, source in enumerate(data.sources) if source.stream)
        raise UserError(
            f"{streaming}: a stream is not prepared, so it cannot be audited as a whole. Leave 'stream' out, with a "
            "part of its files if they are many."
        )
    key = "data.validation" if validation and isinstance(data.validation, list) else "data.sources"
    store, held_out = data.look(validation=validation)
    audited = audit(store)
    numbers = data.stored_numbers if key == "data.sources" else None
    found = problems(audited, key, numbers=numbers)
    return Inspection(data, key, store, frozenset(held_out.tolist()), audited, (*found, *_refusals(data, key, store)))


def _refusals(data: InstructionDataModule, key: str, store: ExampleStore) -> list[str]:
    """Return for what else `ift fit` would refuse the data."""
    checks: list[Callable[[], None]] = [lambda: check_rejected(key, store, max_rejected=data.max_rejected)]
    if not len(store):
        checks.append(lambda: check_not_empty(key, store))
    elif key == "data.sources":
        checks.append(data.check_size)
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def show(inspected: Inspection, index: int) -> Shown:
    """Return an example for showing.

    Args:
        inspected: what `inspect` returned.
        index: in the store, from 0.
    """
    store = inspected.store
    example = store[index]
    source = next(place for place in range(len(store.counts)) if index < store.source_range(place)[1])
    file, line = store.place(index)
    supervised = int(store.num_supervised(np.array([index]))[0])
    size = len(example.input_ids)
    facts = [
        f"{inspected.key}[{source}]: {file} line {line}",
        describe_layout(store.counts[source]),
        f"template {inspected.template}",
        f"{number(size)} tokens, {number(supervised)} supervised ({percent(supervised / size)})",
        *(["held out for validation"] if index in inspected.held_out else []),
    ]
    title = f"example {number(index + 1)} of {number(len(store))}"
    return Shown(index, title, tuple(facts), pieces(example, inspected.data.tokenizer))
