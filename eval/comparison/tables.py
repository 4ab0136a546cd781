"""Arranges a comparison as tables: an overview, one per benchmark, seeds, and gains beside damage."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.comparison.damage import Change, Damage
from eval.comparison.grids import Grid
from eval.comparison.numbers import BenchmarkTable, Entry, Row
from eval.comparison.wording import MISSING, interval, number, p_value, verdict

_DIFFERENCES = 5
"""Columns up to which a wide table has room for differences."""
_ALONE = 4
"""Columns of a benchmark's table before those that compare."""
READING = (
    "p values are Holm-adjusted: overall scores over systems and benchmarks, parts over parts and systems. "
    "Distinguishable: adjusted p < 0.05. Intervals are 95 % each, not adjusted. Intervals of scores are over items, or "
    "over seeds (Student's t) where a system has several."
)


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown."""

    systems: tuple[str, ...]
    baseline: str
    tables: tuple[BenchmarkTable, ...]
    """One per benchmark."""
    damage: Damage | None = None
    """Against untuned bases, where these were given."""


def grids(comparison: Comparison) -> list[Grid]:
    """Return the tables in the order in which they are shown."""
    found = []
    if len(comparison.tables) > 1:
        found.append(overview(comparison))
    found += [_detail(table, comparison.baseline) for table in comparison.tables]
    if any(entry.seeds.num_seeds > 1 for table in comparison.tables for entry in table.rows[0].entries):
        found.append(_seeds(comparison))
    if comparison.damage:
        found += [_side_by_side(comparison), _damage(comparison.damage)]
    return found


def overview(comparison: Comparison) -> Grid:
    """Return systems by benchmarks, as papers print them: overall scores, differences to the baseline, best in bold."""
    columns = [(table, table.rows[0]) for table in comparison.tables]
    return _wide("Overview", comparison, [(table.label, table, row) for table, row in columns])


def wide_tables(comparison: Comparison, most: int) -> Iterator[Grid]:
    """Yield systems by parts for every benchmark, as papers print them, where the parts are 2 to so many."""
    for table in comparison.tables:
        parts = shown_parts(table)
        if 2 <= len(parts) <= most:
            rows = [*((row.name, table, row) for row in parts), (f"{table.rows[0].name}", table, table.rows[0])]
            yield _wide(f"{table.label}: systems by parts", comparison, rows)


def shown_parts(table: BenchmarkTable) -> list[Row]:
    """Return the parts for charts and wide tables: groups where there are several, else categories."""
    groups = [row for row in table.rows if row.kind == "group"]
    return groups if len(groups) > 1 else [row for row in table.rows if row.kind == "category"]


def _wide(title: str, comparison: Comparison, columns: Sequence[tuple[str, BenchmarkTable, Row]]) -> Grid:
    bare = len(columns) > _DIFFERENCES
    rows = [
        (name, *(_short(row.entries[place], table, bare=bare) for _, table, row in columns))
        for place, name in enumerate(comparison.systems)
    ]
    alone = len(comparison.systems) == 1  # nothing to be better than, and no difference to tell of
    bold = set() if alone else {(_best(row, table), column) for column, (_, table, row) in enumerate(columns, 1)}
    percent = "Shares in percent." if any(table.scale.percent for _, table, _ in columns) else ""
    brackets = "" if bare else f"In brackets: the difference to {comparison.baseline}. "
    note = f"{brackets}*: distinguishable from {comparison.baseline} (Holm-adjusted p < 0.05)."
    names = (f"{name} ↓" if table.lower_is_better else name for name, table, _ in columns)
    notes = " ".join(one for one in ("" if alone else note, percent) if one)
    return Grid(title, ("system", *names), tuple(rows), bold=frozenset(bold), notes=(notes,) if notes else ())


def _short(entry: Entry, table: BenchmarkTable, *, bare: bool) -> str:
    score = number(entry.score, table.scale)
    if entry.difference is None:
        return score
    star = "*" if entry.difference.verdict == "distinguishable" else ""
    estimate = number(entry.difference.estimate, table.scale, sign=True)
    return f"{score}{star}" if bare else f"{score} ({estimate}{star})"


def _best(row: Row, table: BenchmarkTable) -> int:
    sign = -1 if table.lower_is_better else 1
    return max(range(len(row.entries)), key=lambda place: sign * row.entries[place].score)


def title_of(table: BenchmarkTable) -> str:
    """Return what was measured, in one line."""
    facts = table.identity
    parts = [f"{facts['protocol']} {facts['protocol version']}", facts["answers"]]
    parts += [f"mode {facts['mode']}"] if facts["mode"] != "none" else []
    parts += [f"{facts['shots']} shots"] if facts["shots"] != "none" else []
    parts += [f"scoring {facts['scoring']}"] if facts["scoring"] != "none" else []
    parts += [f"judge {facts['judge']}"] if facts["judge"] != "none" else []
    parts += ["in %"] if table.scale.percent else []
    parts += ["lower is better"] if table.lower_is_better else []
    return f"{table.label}: {', '.join(parts)}"


def _detail(table: BenchmarkTable, baseline: str) -> Grid:
    rows = [_line(row, entry, place, table) for row in table.rows for place, entry in enumerate(row.entries)]
    header: tuple[str, ...] = (
        "part",
        "n",
        "system",
        "score [95 %]",
        f"less {baseline} [95 %]",
        "p",
        "won/tied/lost",
        "verdict",
    )
    if all(len(row.entries) == 1 for row in table.rows):  # a system alone is compared with nothing
        header, rows = header[:_ALONE], [line[:_ALONE] for line in rows]
    left_out = f"{table.left_out} items that do not count for every system are left out." if table.left_out else ""
    tests = dict.fromkeys(
        f"{entry.difference.test}; interval: {entry.difference.method}"
        for row in table.rows
        for entry in row.entries
        if entry.difference is not None
    )
    notes = [*table.notes, *([left_out] if left_out else []), *(f"Test: {test}." for test in tests)]
    return Grid(title_of(table), header, tuple(rows), left=frozenset((0, 2, 7)), notes=tuple(notes))


def _line(row: Row, entry: Entry, place: int, table: BenchmarkTable) -> tuple[str, ...]:
    label = {"overall": f"overall: {row.name}", "group": f"group {row.name}", "kind": f"kind {row.name}"}
    named = (label.get(row.kind, row.name), str(row.n)) if place == 0 else ("", "")
    score = f"{number(entry.score, table.scale)} {interval(entry.interval, table.scale)}"
    if place == 0 and entry.difference is None:
        return (*named, entry.system, score, "", "", "", "")
    return (*named, entry.system, score, *_tested(entry, table))


def _tested(entry: Entry, table: BenchmarkTable) -> tuple[str, str, str, str]:
    difference = entry.difference
    if difference is None:
        return ("", "", "", "")
    adjusted = difference.p_value if difference.adjusted is None else difference.adjusted
    estimate = number(difference.estimate, table.scale, sign=True)
    bounds = interval(difference.interval, table.scale, sign=True)
    counts = f"{difference.wins}/{difference.ties}/{difference.losses}"
    return (
        f"{estimate} {bounds}",
        p_value(adjusted),
        counts,
        verdict(difference, lower_is_better=table.lower_is_better),
    )


def _seeds(comparison: Comparison) -> Grid:
    rows = []
    for table in comparison.tables:
        for entry in table.rows[0].entries:
            seeds, against = entry.seeds, entry.seed_difference
            shown = ("", "", "")
            if against is not None:
                shown = (
                    number(against.estimate, table.scale, sign=True),
                    interval(against.interval, table.scale, sign=True),
                    p_value(against.p_value),
                )
            mean = number(seeds.mean, table.scale)
            spread = number(seeds.deviation, table.scale)
            bounds = interval(seeds.interval, table.scale)
            rows.append((table.label, entry.system, str(seeds.num_seeds), mean, spread, bounds, *shown))
    header = (
        "benchmark",
        "system",
        "seeds",
        "mean",
        "deviation",
        "[95 %]",
        f"less {comparison.baseline}",
        "[95 %]",
        "p",
    )
    notes = (
        "Over seeds: Student's t for means, Welch's test for differences, p not adjusted. It answers whether training "
        "again would give the difference; the tests above, whether other items would.",
    )
    return Grid("Seeds", header, tuple(rows), left=frozenset((0, 1)), notes=notes)


def _side_by_side(comparison: Comparison) -> Grid:
    """Return systems by benchmarks: what was gained and, on held-out skills, what was lost."""
    changes = comparison.damage.changes if comparison.damage else ()
    by_place = {(one.system, one.label): one for one in changes}
    columns = dict.fromkeys((one.is_skill, one.label) for one in sorted(changes, key=lambda one: one.is_skill))
    rows = [(name, *(_forgotten(by_place.get((name, label))) for _, label in columns)) for name in comparison.systems]
    header = ("system", *(f"{'damage' if is_skill else 'gain'}: {label}" for is_skill, label in columns))
    notes = (
        "Against the untuned base of each system. Gain: tuned less base; damage: base less tuned, on held-out skills; "
        "both turned where lower is better. *: distinguishable from none (Holm-adjusted p < 0.05).",
    )
    return Grid("Gains beside damage", header, tuple(rows), notes=notes)


def _forgotten(one: Change | None) -> str:
    if one is None:
        return MISSING
    star = "*" if one.difference is not None and one.difference.verdict == "distinguishable" else ""
    return number(-one.gain if one.is_skill else one.gain, one.scale, sign=True) + star


def _damage(damage: Damage) -> Grid:
    rows = [
        (
            one.system,
            f"{one.label} ↓" if one.lower_is_better else one.label,
            "damage" if one.is_skill else "gain",
            *_change(one),
        )
        for one in sorted(damage.changes, key=lambda one: one.is_skill)
    ]
    header = ("system", "benchmark", "kind", "base", "tuned", "gain [95 %]", "ratio", "p", "verdict")
    notes = (
        "Gain: how much better a system is than its untuned base on the same items; below 0 it is a loss, which on a "
        "held-out skill is damage. ↓: lower is better, and the sign is turned.",
        "Ratio: tuned by base, of perplexities per token where these were measured. p is Holm-adjusted among gains and "
        "among damages.",
        *damage.notes,
    )
    return Grid("Gains and damage in full", header, tuple(rows), left=frozenset((0, 1, 2, 8)), notes=notes)


def _change(one: Change) -> tuple[str, str, str, str, str, str]:
    before, after = (number(own.score, one.scale) for own in (one.before, one.after))
    ratio = MISSING if math.isnan(one.ratio) else f"{one.ratio:.3f}"
    gain = number(one.gain, one.scale, sign=True)
    if one.difference is None:
        return before, after, gain, ratio, MISSING, "not tested"
    low, high = one.difference.interval
    bounds = (-high, -low) if one.lower_is_better else (low, high)
    adjusted = one.difference.p_value if one.difference.adjusted is None else one.difference.adjusted
    return (
        before,
        after,
        f"{gain} {interval(bounds, one.scale, sign=True)}",
        ratio,
        p_value(adjusted),
        _told(one),
    )


def _told(one: Change) -> str:
    assert one.difference is not None
    if one.difference.verdict == "not distinguishable":
        return "not distinguishable"
    return "distinguishable, " + ("gained" if one.gain > 0 else "lost")
