"""The 25 subjects of MMCU and their four disciplines, by the names that files, sheets and rows use."""

import re
import unicodedata
from dataclasses import dataclass

from ift.errors import UserError, unknown_name

DISCIPLINES = ("医疗", "法律", "心理", "教育")
"""In the order of the published table."""
_SUBJECTS = {
    "医疗": (
        *("医学三基", "药理学", "护理学", "病理学", "临床医学", "传染病学", "外科学", "解剖学", "寄生虫学", "免疫学"),
        *("儿科学", "皮肤性病学", "组织胚胎学", "药物分析学", "医学影像学"),
    ),
    "法律": ("法律",),
    "心理": ("心理",),
    "教育": tuple(f"教育_{name}" for name in ("语文", "数学", "物理", "化学", "政治", "历史", "地理", "生物")),
}
SUBJECTS = {subject: discipline for discipline, own in _SUBJECTS.items() for subject in own}
"""Subject to discipline."""
_OTHER_NAMES = {"医学": "医疗", "心理学": "心理", "法学": "法律"}


@dataclass(frozen=True)
class Subject:
    """A subject, or a discipline as a whole where the data does not tell its subjects apart."""

    name: str
    discipline: str


def find_subject(name: str, *, within: str = "") -> Subject | None:
    """Return the subject that a name stands for, or `None`.

    Args:
        name: of a file, a sheet or a row: `心理`, `教育_语文`, `临床医学101题` (the number of questions is left out).
        within: a discipline that `语文` alone may belong to.
    """
    bare = re.sub(r"\d+题$", "", unicodedata.normalize("NFKC", name).strip()).strip()
    bare = _OTHER_NAMES.get(bare, bare)
    for candidate in (bare, f"{within}_{bare}", f"教育_{bare}"):
        if candidate in SUBJECTS and (not within or SUBJECTS[candidate] == within):
            return Subject(candidate, SUBJECTS[candidate])
    return Subject(bare, bare) if bare in DISCIPLINES else None


def get_subject(place: str, name: str, *, within: str = "") -> Subject:
    """Return the subject that a name stands for.

    Raises:
        UserError: it stands for none; names the nearest and the known ones.
    """
    subject = find_subject(name, within=within)
    if subject is None:
        raise unknown_name(place, name, [*DISCIPLINES, *(one for one in SUBJECTS if one not in DISCIPLINES)])
    return subject


def has_subjects(discipline: str) -> bool:
    """Return whether a discipline has several subjects: 医疗 and 教育 do."""
    if discipline not in DISCIPLINES:
        raise UserError(f"'{discipline}' is no discipline of MMCU.")
    return len(_SUBJECTS[discipline]) > 1
