"""The catalogue of instruction collections (`catalogue.yaml`, facts as data): look-up, filters, and names as sources.

In: names and filters. Out: `Collection`s, which say where the rows lie, in which layout, and under which licence.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from ift.data.catalogue_schema import Collection, Commercial, Generation, Language, Task, parse_collection
from ift.errors import UserError

CATALOGUE_PATH = Path(__file__).with_name("catalogue.yaml")


@dataclass(frozen=True)
class CatalogueFilter:
    """Which collections to keep; `None` and the empty text keep all."""

    language: Language | None = None
    task: Task | None = None
    generation: Generation | None = None
    commercial: Commercial | None = None
    layout: str | None = None
    search: str = ""
    """Text in name, title, hub id, address, citation or note; capitals do not matter."""


@lru_cache(maxsize=1)
def load_catalogue() -> tuple[Collection, ...]:
    """Return all collections, in the order of their names."""
    return parse_catalogue(CATALOGUE_PATH.read_text(encoding="utf-8"), place=CATALOGUE_PATH.name)


def parse_catalogue(text: str, *, place: str) -> tuple[Collection, ...]:
    """Return the collections that a catalogue file describes, in the order of their names.

    Args:
        text: of the file, YAML with one key `collections`.
        place: name of the file, for errors.

    Raises:
        UserError: no such YAML, an entry against the schema, or a name given twice.
    """
    import yaml

    try:
        document = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise UserError(f"{place}: is no YAML ({error}).") from error
    entries = document.get("collections") if isinstance(document, dict) else None
    if not isinstance(entries, list) or list(document) != ["collections"]:
        raise UserError(f"{place}: must hold one key 'collections' with a list.")
    collections: dict[str, Collection] = {}
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        collection = parse_collection(f"{place}: collections[{index}] ({name})", entry)
        if collection.name in collections:
            raise UserError(f"{place}: the name '{collection.name}' is given twice.")
        collections[collection.name] = collection
    return tuple(sorted(collections.values(), key=lambda collection: collection.name))


def _loader() -> type:
    """YAML's safe loader; the one in C, ten times as fast, where it is built."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find_collection(key: str, name: str) -> Collection:
    """Return the collection of a name.

    Args:
        key: where the name stands, for the error.
        name: as in the catalogue.

    Raises:
        UserError: an unknown name, with the nearest.
    """
    by_name = {collection.name: collection for collection in load_catalogue()}
    if name not in by_name:
        # A hundred names would bury the message, so only the nearest are named.
        nearest = " or ".join(f"'{one}'" for one in get_close_matches(name, by_name, n=3, cutoff=0.5))
        suggestion = f" Did you mean {nearest}?" if nearest else ""
        raise UserError(
            f"{key}: no collection '{name}' in the catalogue.{suggestion} `ift data list` shows all. As a source, a "
            "file is named with its suffix and a hub data set as owner/name."
        )
    return by_name[name]


def select(collections: Iterable[Collection], keep: CatalogueFilter) -> tuple[Collection, ...]:
    """Return the collections that pass a filter, in their order."""
    return tuple(collection for collection in collections if _passes(collection, keep))


def _passes(collection: Collection, keep: CatalogueFilter) -> bool:
    citation = collection.citation
    texts = (collection.name, collection.title, collection.hub, collection.address, collection.note)
    text = "\n".join(part or "" for part in (*texts, citation.authors, citation.title, citation.arxiv))
    return (
        (keep.language is None or keep.language in collection.languages)
        and (keep.task is None or keep.task in collection.tasks)
        and (keep.generation is None or keep.generation == collection.generation)
        and (keep.commercial is None or keep.commercial == collection.commercial)
        and (keep.layout is None or keep.layout == collection.layout)
        and keep.search.casefold() in text.casefold()
    )


def resolve(key: str, path: str) -> Collection | None:
    """Return the collection that the path of a source names, or `None` where it names a file or a hub data set.

    A name of the catalogue has no suffix and no slash, and a file of that name goes before it.

    Args:
        key: where the path stands in the configuration, for errors.
        path: of the source, as typed.

    Raises:
        UserError: an unknown name, or a collection that the hub does not have; the message says where to get it.
    """
    if "/" in path or "." in path or Path(path).expanduser().exists():
        return None
    collection = find_collection(key, path)
    if collection.access == "closed":
        raise UserError(f"{key}: '{path}' ({collection.title}) is listed in the catalogue, but was never published.")
    if collection.hub is None:
        layout = collection.layout or "package.module.function (a row function of your own)"
        raise UserError(
            f"{key}: '{path}' ({collection.title}) is not on the hub as a data set that can be loaded. Get it from "
            f"{collection.address}, and name the file instead: {{path: FOLDER/{path}.jsonl, layout: {layout}}}."
        )
    return collection
