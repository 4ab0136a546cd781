"""The support matrix as Markdown tables, and their places in the README."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entries import FAMILIES

from ift.models.methods import METHODS

BEGIN, END = "<!-- support matrix: written by scripts/support_matrix -->", "<!-- support matrix: end -->"
TITLES = {
    "generate": "generates",
    "merge": "merges",
    "checkpointing": "checkpointing",
    "packed": "packed rows",
    "nf4": "NF4",
    "fp4": "FP4",
    "int8": "int8",
}
Found = Mapping[str, Mapping[str, Mapping[str, str]]]


def tables(found: Found) -> str:
    """Return a table of the short names, and one of PEFT's classes that folds away."""
    short = [name for name in found if name in METHODS]
    rest = [name for name in found if name not in METHODS]
    return "\n".join(
        [
            BEGIN,
            "",
            *_table(found, short, "method"),
            "",
            "<details><summary>Every configuration class of PEFT, and the ways of <code>LoraConfig</code></summary>",
            "",
            *_table(found, rest, "class"),
            "",
            "</details>",
            "",
            END,
        ]
    )


def in_readme(text: str, found: Found) -> str:
    """Return a README with the tables of today."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "the README has no place for the support matrix"
    return before + tables(found) + after


def write_readme(path: Path, found: Found) -> None:
    """Put the tables of today into a README."""
    path.write_text(in_readme(path.read_text(encoding="utf-8"), found), encoding="utf-8")


def _table(found: Found, names: Sequence[str], title: str) -> list[str]:
    head = f"| {title} | families | " + " | ".join(TITLES.values()) + " |"
    lines = [head, "|---|---|" + ":-:|" * len(TITLES)]
    for name in names:
        families = found[name]
        working = [one for one in FAMILIES if families[one]["train"] == families[one]["reload"] == "yes"]
        # Where not even LoRA works, as packed rows of Bloom or quantized layers of Falcon, no method does.
        cells = [
            _cell({one: families[one][column] for one in working if found["lora"][one][column] == "yes"})
            for column in TITLES
        ]
        lines.append(f"| `{name}` | {_families(working)} | " + " | ".join(cells) + " |")
    return lines


def _families(working: Sequence[str]) -> str:
    if len(working) == len(FAMILIES):
        return "all"
    missing = [one for one in FAMILIES if one not in working]
    if not working:
        return "none"
    return f"not {', '.join(missing)}" if len(missing) < len(working) else ", ".join(working)


def _cell(answers: Mapping[str, str]) -> str:
    failing = [family for family, answer in answers.items() if answer != "yes"]
    if not answers or len(failing) == len(answers):
        return "–"
    return "✓" if not failing else f"not {', '.join(failing)}"
