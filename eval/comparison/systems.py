"""Which systems are compared: their names and runs, and that all of them answered the same in the same way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmark import get_benchmark
from eval.comparison.reports import Item, RunReport, find_reports
from ift.errors import UserError

_SHOWN = 3
_PLAIN = ("eval", "report", "reports")
"""Names of folders that say nothing about the system; the folder above does."""


@dataclass(frozen=True)
class System:
    """A configuration with one run, or several that differ in their seeds."""

    name: str
    runs: tuple[Mapping[str, RunReport], ...]
    """The reports of every run by benchmark."""


@dataclass(frozen=True)
class Contest:
    """One benchmark that all systems answered."""

    label: str
    reports: Mapping[str, tuple[RunReport, ...]]
    """By system, one per seed."""
    items: tuple[Item, ...]
    """Those that count for every run, in the order of the data."""
    left_out: int = 0
    """Number of items that count for some run only."""
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> RunReport:
        """Any of the reports, for what all of them share."""
        return next(iter(self.reports.values()))[0]


def read_systems(texts: Sequence[str]) -> list[System]:
    """Read `FOLDER`, `NAME=FOLDER` or, for several seeds, `NAME=FOLDER,FOLDER`.

    Raises:
        UserError: two systems have one name, a folder is named twice, or holds no report.
    """
    systems: dict[str, System] = {}
    for text in texts:
        name, folders = named_folders(text)
        if name in systems:
            raise UserError(f"compare: two systems are called '{name}'. Name them: NAME=FOLDER.")
        resolved = [folder.resolve() for folder in folders]
        if len(set(resolved)) < len(resolved):
            raise UserError(f"compare: '{text}' names one folder twice. Give the folder of every seed once.")
        runs = tuple(find_reports(folder) for folder in folders)
        systems[name] = System(name, _relabelled(runs))
    return list(systems.values())


def named_folders(text: str) -> tuple[str, list[Path]]:
    """Return the name and the folders that a text on the command line means."""
    name, sign, folders = text.partition("=")
    if Path(text).exists() or not sign:
        path = Path(text).resolve()
        return (path.parent.name if path.name in _PLAIN else path.name), [Path(text)]
    if not name or not all(folders.split(",")):
        raise UserError(f"compare: '{text}' is not NAME=FOLDER or NAME=FOLDER,FOLDER.")
    return name, [Path(folder) for folder in folders.split(",")]


def _relabelled(runs: tuple[Mapping[str, RunReport], ...]) -> tuple[Mapping[str, RunReport], ...]:
    for run in runs[1:]:
        if set(run) != set(runs[0]):
            raise UserError(
                f"compare: the seeds of one system were run on different benchmarks: {', '.join(runs[0])}; "
                f"{', '.join(run)}. Run the missing ones, or leave the others out."
            )
    return runs


def contests(systems: Sequence[System], *, common: bool) -> list[Contest]:
    """Return the benchmarks that the systems are compared on.

    Args:
        systems: at least one.
        common: whether benchmarks and items that some system lacks are left out; refused otherwise.

    Raises:
        UserError: the systems were not measured in the same way, or not on the same items.
    """
    labels = list(dict.fromkeys(label for system in systems for label in system.runs[0]))
    shared = [label for label in labels if all(label in system.runs[0] for system in systems)]
    if not shared or (shared != labels and not common):
        raise UserError(_lacking(systems, labels, shared))
    return [
        _contest(label, {one.name: tuple(run[label] for run in one.runs) for one in systems}, common=common)
        for label in shared
    ]


def _lacking(systems: Sequence[System], labels: Sequence[str], shared: Sequence[str]) -> str:
    lacks = [
        f"'{system.name}' lacks {', '.join(label for label in labels if label not in system.runs[0])}"
        for system in systems
        if any(label not in system.runs[0] for label in labels)
    ]
    repair = "Run what is missing, or give --common to leave it out." if shared else "Compare reports of one benchmark."
    return f"compare: the systems were not measured on the same benchmarks: {'; '.join(lacks)}. {repair}"


def _contest(label: str, reports: Mapping[str, tuple[RunReport, ...]], *, common: bool) -> Contest:
    _check_equal(label, reports)
    runs = [(name, run) for name, own in reports.items() for run in own]
    first = runs[0][1]
    counted = [run.counted for _, run in runs]
    everything = dict.fromkeys(item for own in counted for item in own)
    kept = [item for item in everything if all(item in own for own in counted)]
    if len(kept) < len(everything) and not common:
        raise UserError(_missing(label, runs, everything))
    if not kept:
        raise UserError(f"{label}: the systems share no item that counts. Score them on the same data.")
    _check_items(label, runs, kept)
    notes = [
        f"The systems' {what} differ (sha256 in report.json), though their items have the same ids."
        for what, hashes in (
            ("prompts", {run.prompts for _, run in runs}),
            ("data files", {run.data for _, run in runs}),
        )
        if len(hashes - {None}) > 1
    ]
    return Contest(label, reports, tuple(first.items[item] for item in kept), len(everything) - len(kept), tuple(notes))


def _check_equal(label: str, reports: Mapping[str, tuple[RunReport, ...]]) -> None:
    """Refuse reports that were not made in one way."""
    for key in next(iter(reports.values()))[0].identity:
        found = {name: run.identity[key] for name, own in reports.items() for run in own}
        if len({run.identity[key] for own in reports.values() for run in own}) > 1:
            told = ", ".join(f"'{name}' {value}" for name, value in found.items())
            raise UserError(
                f"{label}: the reports were not made in one way; {key}: {told}. Compare equally made reports."
            )
    paths = {run.judgements for own in reports.values() for run in own}
    if len(paths) > 1 and _judged_together(next(iter(reports.values()))[0]):
        raise UserError(
            f"{label}: its scores are relative to the systems that the judge saw beside one another, and these reports "
            f"come from {len(paths)} judgings. Judge all systems together."
        )


def _judged_together(report: RunReport) -> bool:
    try:
        judge = get_benchmark(report.identity["benchmark"], report.identity["protocol"]).judge
    except UserError:  # a benchmark that is no longer in the folder
        return False
    return judge is not None and not judge.single


def _missing(label: str, runs: Sequence[tuple[str, RunReport]], everything: Iterable[str]) -> str:
    told = []
    for name, run in runs:
        absent = [item for item in everything if item not in run.items]
        uncounted = [item for item in everything if item in run.items and run.items[item].value is None]
        parts = [_ids(absent, "missing"), _ids(uncounted, "without a score")]
        if any(parts):
            told.append(f"'{name}' ({run.folder}): {', '.join(part for part in parts if part)}")
    return (
        f"{label}: the systems were not scored on the same items: {'; '.join(told)}. Score all on the same data, limit "
        "and seed, or give --common to compare on the items that all have."
    )


def _ids(ids: Sequence[str], what: str) -> str:
    more = ", …" if len(ids) > _SHOWN else ""
    return f"{len(ids)} {what} ({', '.join(ids[:_SHOWN])}{more})" if ids else ""


def _check_items(label: str, runs: Sequence[tuple[str, RunReport]], kept: Sequence[str]) -> None:
    """Refuse items of one id that stand in different categories: they are not the same items."""
    place: Callable[[Item], tuple[str, str]] = lambda item: (item.category, item.group)  # noqa: E731
    first = runs[0][1]
    for name, run in runs[1:]:
        moved = [one for one in kept if place(run.items[one]) != place(first.items[one])]
        if moved:
            raise UserError(
                f"{label}: {_ids(moved, 'items')} stand in other categories for '{name}' than for '{runs[0][0]}'. The "
                "data changed between the reports; score both on the same data."
            )
