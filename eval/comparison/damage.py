"""What tuning gave and what it took: every system against its untuned base, on benchmarks and on held-out skills."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from eval.comparison.numbers import Entry, compare
from eval.comparison.systems import Contest, System, contests, read_systems
from eval.comparison.wording import Scale
from eval.paired import Difference, with_holm
from ift.errors import UserError, unknown_name

_PERPLEXITY = "token_perplexity"
"""Name of the average."""


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
    perplexities: tuple[float, float] | None = None
    """Per token, before and after, where these were measured."""

    @property
    def ratio(self) -> float:
        """Tuned by base: of the perplexities per token where there are any, else of the scores."""
        before, after = self.perplexities or (self.before.score, self.after.score)
        return after / before if before else math.nan

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


@dataclass(frozen=True)
class Damage:
    """All systems against their bases."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def measure_damage(
    systems: Sequence[System], bases: Mapping[str, System], skills: Sequence[str], *, common: bool
) -> Damage:
    """Compare every system with its base; p values are adjusted among gains and among damages.

    Args:
        systems: those compared.
        bases: by the name of the system.
        skills: the benchmarks that are held-out skills, which the bases must have too; the others show gains.
        common: whether items that one of the two lacks are left out; refused otherwise.

    Raises:
        UserError: a skill that was not measured, or reports that cannot be compared.
    """
    found: list[Change] = []
    notes: list[str] = []
    for system in systems:
        base = bases[system.name]
        labels = [label for label in system.runs[0] if label in base.runs[0]]
        for skill in skills:
            if skill not in labels:
                known = ", ".join(labels) or "nothing"
                raise UserError(
                    f"--skills: '{skill}' was not measured for both '{system.name}' and its base '{base.name}'; both "
                    f"have {known}."
                )
        lacking = ", ".join(label for label in system.runs[0] if label not in labels)
        if not labels:
            raise UserError(f"--base: '{base.name}' was measured on nothing that '{system.name}' was: {lacking}.")
        if lacking:
            notes.append(f"{base.name}, base of {system.name}, was not measured on {lacking}.")
        for contest in contests([_only(base, labels), _only(system, labels)], common=common):
            found.append(_change(contest, base, system, is_skill=contest.label in skills))
    return Damage(tuple(_adjusted(found)), tuple(notes))


def _only(system: System, labels: Sequence[str]) -> System:
    return System(system.name, tuple({label: run[label] for label in labels} for run in system.runs))


def _change(contest: Contest, base: System, system: System, *, is_skill: bool) -> Change:
    table = compare(contest, base.name, overall_only=True)
    before, after = table.rows[0].entries
    perplexities = [
        [run.aggregates[_PERPLEXITY] for run in contest.reports[one.name] if _PERPLEXITY in run.aggregates]
        for one in (base, system)
    ]
    whole = all(perplexities) and not contest.left_out
    return Change(
        system=system.name,
        base=base.name,
        label=table.label,
        is_skill=is_skill,
        scale=table.scale,
        lower_is_better=table.lower_is_better,
        before=before,
        after=after,
        difference=after.difference,
        perplexities=(mean(perplexities[0]), mean(perplexities[1])) if whole else None,
    )


def _adjusted(found: Sequence[Change]) -> list[Change]:
    families = {
        skill: iter(with_holm([one.difference for one in found if one.difference and one.is_skill is skill]))
        for skill in (True, False)
    }
    return [replace(one, difference=next(families[one.is_skill])) if one.difference else one for one in found]
