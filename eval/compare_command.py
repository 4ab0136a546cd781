"""`python -m eval compare`: systems beside one another, with paired tests against a baseline or an untuned base."""

import argparse
from pathlib import Path

from eval.comparison.damage import measure_damage, read_bases
from eval.comparison.files import as_text, write_files
from eval.comparison.numbers import compare, with_adjusted
from eval.comparison.systems import contests, read_systems
from eval.comparison.tables import Comparison
from ift.errors import UserError, unknown_name


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser("compare", parents=[common], help="compare systems on the same items")
    command.add_argument(
        "systems",
        nargs="+",
        metavar="[NAME=]FOLDER[,FOLDER]",
        help="a report folder, or one that holds a report folder per benchmark; several of one name are seeds",
    )
    command.add_argument(
        "--baseline", metavar="NAME", help="the system to hold the others against (default: the first)"
    )
    command.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="reports of the untuned base: of all, or of one system",
    )
    command.add_argument(
        "--skills",
        type=_names,
        default=(),
        metavar="BENCHMARK,…",
        help="held-out skills, where a loss against the base is damage",
    )
    command.add_argument("--common", action="store_true", help="leave out benchmarks and items that some system lacks")
    command.add_argument("--chart", choices=("bar", "radar"), help="default: radar for 3 to 12 parts, else bars")
    command.add_argument("--output", type=Path, metavar="DIR", help="gets Markdown, LaTeX, CSV, JSON and charts")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Compare, print and write."""
    comparison = _comparison(options)
    print(as_text(comparison))
    if options.output is not None:
        paths = write_files(options.output, comparison, options.chart)
        print(f"\n{options.output}: {', '.join(path.name for path in paths)}")


def _comparison(options: argparse.Namespace) -> Comparison:
    systems = read_systems(options.systems)
    names = [system.name for system in systems]
    if len(systems) == 1 and not options.base:
        raise UserError("compare: one system only. Give two or more, or its untuned base with --base.")
    if options.skills and not options.base:
        raise UserError("--skills: damage is measured against the untuned base. Give its reports with --base.")
    baseline = names[0] if options.baseline is None else options.baseline
    if baseline not in names:
        raise unknown_name("--baseline", baseline, names)
    damage = None
    if options.base:
        damage = measure_damage(systems, read_bases(options.base, systems), options.skills, common=options.common)
    tables = with_adjusted([compare(contest, baseline) for contest in contests(systems, common=options.common)])
    return Comparison(tuple(names), baseline, tuple(tables), damage)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
