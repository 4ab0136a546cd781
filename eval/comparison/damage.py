"""What tuning gave and what it took: every system against its untuned base, on benchmarks and on held-out skills."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eval.comparison.numbers import BenchmarkTable, Entry, compare
from eval.comparison.systems import System, contests, read_systems
from eval.comparison.wording import Scale
from eval.paired import Difference, with_holm
from ift.errors import UserError, unknown_name


@dataclass(frozen=True)
class Change:
    """One system less its base on one benchmark."""

    system: str
    base: str
    label: str
    """The benchmark."""
    is_skill: bool
    """Whether it is a held-out skill, where a loss is damage."""
    scale: Scale
    lower_is_better: bool
    before: Entry
    after: Entry
    difference: Difference | None
    """After less before; `None` where the average cannot be computed from the items."""

    @property
    def gain(self) -> float:
        """How much better the system is than its base; below 0 is damage."""
        change = self.after.score - self.before.score if self.difference is None else self.difference.estimate
        return -change if self.lower_is_better else change


def read_bases(texts: Sequence[str], systems: Sequence[System]) -> dict[str, System]:
    """Return the base of every system: `FOLDER` for all that have no own, `NAME=FOLDER` for the one of that name.

    Raises:
        UserError: a name is no system's, a system has no base or two.
    """
    names = [system.name for system in systems]
    own: dict[str, System] = {}
    shared: System | None = None
    for text in texts:
        (base,) = read_systems([text])
        named = "=" in text and text.partition("=")[0] == base.name
        if named and base.name not in names:
            raise unknown_name("--base", base.name, names, hint="A folder without a name is the base of all systems.")
        if base.name in own or (not named and shared is not None):
            raise UserError(f"--base: '{text}': there is a base already. Give one for all, or NAME=FOLDER for each.")
        if named:
            own[base.name] = replace(base, name=f"base of {base.name}")
        else:
            shared = replace(base, name=base.name if base.name not in names else f"{base.name} (base)")
    lacking = [name for name in names if name not in own]
    if shared is None and lacking:
        raise UserError(f"--base: no base for {', '.join(lacking)}. Give a folder without a name for all others.")
    return {name: own.get(name, shared) for name in names}  # type: ignore[misc]


def changes(
    systems: Sequence[System], bases: Mapping[str, System], skills: Sequence[str], *, common: bool
) -> list[Change]:
    """Compare every system with its base; p values are adjusted among gains and among damages.

    Args:
        systems: those compared.
        bases: by the name of the system.
        skills: the benchmarks that are held-out skills; the others show gains.
        common: whether benchmarks and items that one of the two lacks are left out; refused otherwise.

    Raises:
        UserError: a skill that no system was measured on, or reports that cannot be compared.
    """
    known = {label for system in systems for label in system.runs[0]}
    for skill in skills:
        if skill not in known:
            raise unknown_name("--skills", skill, known)
    found: list[Change] = []
    for system in systems:
        base = bases[system.name]
        for contest in contests([base, system], common=common):
            table = compare(contest, base.name, overall_only=True)
            found.append(_change(table, is_skill=table.label in skills))
    return _adjusted(found)


def _change(table: BenchmarkTable, *, is_skill: bool) -> Change:
    before, after = table.rows[0].entries
    return Change(
        system=after.system,
        base=before.system,
        label=table.label,
        is_skill=is_skill,
        scale=table.scale,
        lower_is_better=table.lower_is_better,
        before=before,
        after=after,
        difference=after.difference,
    )


def _adjusted(found: Sequence[Change]) -> list[Change]:
    families = {
        skill: iter(with_holm([one.difference for one in found if one.difference and one.is_skill is skill]))
        for skill in (True, False)
    }
    return [replace(one, difference=next(families[one.is_skill])) if one.difference else one for one in found]
