"""`ift data list | show | chart`: the catalogue of instruction collections as a table, as one entry, as an image."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ift.commands.catalogue_chart import draw_png, draw_svg
from ift.commands.catalogue_text import entry, table
from ift.commands.option_parser import OptionParser
from ift.data.catalogue import CatalogueFilter, find_collection, load_catalogue, select
from ift.data.catalogue_schema import GENERATIONS, LANGUAGES, TASKS, Collection
from ift.errors import UserError, unknown_name

_LICENCES = {"commercial": "yes", "non-commercial": "no", "unclear": "unclear"}


def run(subcommand: str, arguments: list[str]) -> None:
    """Run `list`, `show` or `chart`.

    Raises:
        UserError: an unknown option, value or name; an image that cannot be drawn.
    """
    commands: dict[str, Callable[[list[str]], None]] = {"list": _list, "show": _show, "chart": _chart}
    commands[subcommand](arguments)


def _list(arguments: list[str]) -> None:
    parser = OptionParser("ift data list", "List the catalogue of instruction collections.")
    _add_filters(parser)
    parser.add_argument("--sort", metavar="ORDER", default="name", help="name (the default) or records, largest first")
    parser.add_argument("--json", action="store_true", help="all facts of each collection as JSON instead of a table")
    options = parser.parse(arguments)
    _choice("--sort", options.sort, {"name": "", "records": ""})
    collections = list(select(load_catalogue(), _filter(options)))
    if options.sort == "records":
        collections.sort(key=lambda collection: -(collection.records or 0))
    print(_as_json(collections) if options.json else table(collections))


def _show(arguments: list[str]) -> None:
    parser = OptionParser("ift data show", "Show all that the catalogue knows of one collection.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="its name, as `ift data list` shows it")
    options = parser.parse(arguments)
    if options.name is None:
        parser.error("needs a NAME; `ift data list` shows them")
    print(entry(find_collection("data show", options.name)))


def _chart(arguments: list[str]) -> None:
    parser = OptionParser("ift data chart", "Draw the number of records of the collections, on a logarithmic scale.")
    parser.add_argument("--output", metavar="FILE", help="image to write: .svg, or .png where matplotlib is installed")
    _add_filters(parser)
    options = parser.parse(arguments)
    if options.output is None:
        parser.error("needs --output FILE.svg or FILE.png")
    path = Path(options.output)
    draw = {".svg": draw_svg, ".png": draw_png}.get(path.suffix.lower())
    if draw is None:
        raise UserError(f"data chart --output: '{path}' must end in .svg or .png.")
    collections = select(load_catalogue(), _filter(options))
    sized = [collection for collection in collections if collection.records is not None]
    if not sized:
        raise UserError("data chart: no collection of known size passes these filters. Loosen them.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(sized, path, unsized=[collection.name for collection in collections if collection.records is None])
    print(f"{path}: {len(sized)} collections drawn, {len(collections) - len(sized)} of unknown size named below them")


def _add_filters(parser: OptionParser) -> None:
    filters = parser.add_argument_group("filters")
    filters.add_argument("--lang", metavar="TAG", help=_tags(LANGUAGES))
    filters.add_argument("--task", metavar="TAG", help=_tags(TASKS))
    filters.add_argument("--generation", metavar="TAG", help=_tags(GENERATIONS))
    filters.add_argument(
        "--license",
        metavar="KIND",
        help="commercial (the licence allows commercial use), non-commercial (it forbids it) or unclear",
    )
    filters.add_argument("--layout", metavar="NAME", help="layout of the rows, such as alpaca")
    filters.add_argument("--search", metavar="TEXT", default="", help="text in name, title, origin, citation or note")


def _tags(known: Mapping[str, str]) -> str:
    return ", ".join(f"{tag.lower()} ({meaning})" for tag, meaning in known.items())


def _filter(options: argparse.Namespace) -> CatalogueFilter:
    layouts = {collection.layout: "" for collection in load_catalogue() if collection.layout}
    licence = _choice("--license", options.license, _LICENCES)
    chosen: dict[str, Any] = {
        "language": _choice("--lang", options.lang, LANGUAGES),
        "task": _choice("--task", options.task, TASKS),
        "generation": _choice("--generation", options.generation, GENERATIONS),
        "commercial": None if licence is None else _LICENCES[licence],
        "layout": _choice("--layout", options.layout, layouts),
    }
    return CatalogueFilter(search=options.search, **chosen)


def _choice(option: str, value: str | None, known: Mapping[str, str]) -> str | None:
    """Return the known value that an option names, in any capitals."""
    if value is None:
        return None
    by_lower = {one.lower(): one for one in known}
    if value.lower() not in by_lower:
        raise unknown_name(option, value, by_lower)
    return by_lower[value.lower()]


def _as_json(collections: Sequence[Collection]) -> str:
    return json.dumps([asdict(collection) for collection in collections], ensure_ascii=False, indent=2)
