"""Collections of the catalogue as text for the terminal: a table of many, all facts of one."""

import textwrap
from collections.abc import Sequence

from ift.data.catalogue import load_catalogue
from ift.data.catalogue_schema import GENERATIONS, LANGUAGES, LISTS, TASKS, Collection

_WIDTH = 100
"""Columns of a terminal that the text fits into."""


def _count(collection: Collection) -> str:
    if collection.records is None:
        return "?"
    return f"{'~' if collection.rounded else ''}{collection.records:,}"


def _commercial(collection: Collection) -> str:
    return (
        f"{collection.commercial}*"
        if collection.commercial == "yes" and collection.output_of
        else collection.commercial
    )


def table(collections: Sequence[Collection]) -> str:
    """Return one line per collection, and a last line that counts them."""
    heads = ("name", "records", "lang", "task", "gen", "licence", "commercial")
    rows = [
        (
            collection.name,
            _count(collection),
            " ".join(collection.languages),
            " ".join(collection.tasks),
            collection.generation,
            textwrap.shorten(collection.licence, 24, placeholder="..."),
            _commercial(collection),
        )
        for collection in collections
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            cell.rjust(width) if n == 1 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if any(_commercial(collection).endswith("*") for collection in collections):
        lines.append("* in part the output of models whose terms of use may bind beside the licence")
    return "\n".join([*lines, _summary(collections)])


def _summary(collections: Sequence[Collection]) -> str:
    records = sum(collection.records or 0 for collection in collections)
    unknown = sum(collection.records is None for collection in collections)
    tail = f", {unknown} of unknown size" if unknown else ""
    return f"{len(collections)} of {len(load_catalogue())} collections, {records:,} records{tail}"


def entry(collection: Collection) -> str:
    """Return all facts of a collection, a source to paste, and what is not established."""
    facts = [(label, text) for label, text in _facts(collection) if text]
    lines = [collection.title]
    for label, text in facts:
        indent = " " * 15
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{label:<15}", subsequent_indent=indent, break_on_hyphens=False
        )
    return "\n".join([*lines, "", *_source(collection), *_open_questions(collection)])


def _facts(collection: Collection) -> list[tuple[str, str | None]]:
    citation = collection.citation
    arxiv = f" arXiv {citation.arxiv}." if citation.arxiv else ""
    commercial = {"yes": "allowed by the licence", "no": "not allowed", "unclear": "unclear"}[collection.commercial]
    return [
        ("name", collection.name),
        ("records", f"{_count(collection)}{' (rounded)' if collection.rounded else ''}"),
        ("languages", ", ".join(f"{tag} ({LANGUAGES[tag]})" for tag in collection.languages)),
        ("tasks", ", ".join(f"{tag} ({TASKS[tag]})" for tag in collection.tasks)),
        ("generation", f"{collection.generation} ({GENERATIONS[collection.generation]})"),
        ("layout", collection.layout or "needs a row function of its own"),
        ("columns", ", ".join(f"{field} is '{name}'" for field, name in collection.columns.items())),
        ("hub", _hub(collection)),
        ("address", collection.address),
        ("access", collection.access),
        ("licence", collection.licence),
        ("commercial use", f"{commercial}. {collection.commercial_note or ''}".strip()),
        ("output of", collection.output_of and f"models of {collection.output_of}, whose terms of use may bind too"),
        ("cite", f"{citation.authors} ({citation.year}). {citation.title.rstrip('.')}.{arxiv}"),
        ("listed in", ", ".join(LISTS[one] for one in collection.lists) or "neither list; a part or relative of one"),
        ("note", collection.note),
    ]


def _hub(collection: Collection) -> str | None:
    if collection.hub is None:
        return None
    parts = [collection.hub, f"split {collection.split}"]
    parts += [f"configuration {collection.config}"] if collection.config else []
    parts += [f"revision {collection.revision}"] if collection.revision else []
    parts += [f"files {', '.join(collection.files)}"] if collection.files else []
    return ", ".join(parts)


def _source(collection: Collection) -> list[str]:
    """Return lines to paste under `data.sources` of a run's YAML, or why there are none."""
    layout = "" if collection.layout else ", layout: package.module.function"
    if collection.access == "closed":
        return ["never published: no source can name it"]
    if collection.hub is None:
        layout = f", layout: {collection.layout}" if collection.layout else layout
        head = f"a source for data.sources, once the rows of {collection.address} lie in a file:"
        return [head, f"  - {{path: FOLDER/{collection.name}.jsonl{layout}}}"]
    return ["a source for data.sources:", f"  - {{path: {collection.name}{layout}}}"]


def _open_questions(collection: Collection) -> list[str]:
    questions = {
        "the number of records": collection.records is None,
        "where the rows lie": collection.hub is None and collection.address is None and collection.access != "closed",
        "the licence": collection.licence == "not established",
        "whether commercial use is allowed": collection.commercial == "unclear",
    }
    found = [question for question, is_open in questions.items() if is_open]
    return ["", f"not established: {', '.join(found)}"] if found else []
