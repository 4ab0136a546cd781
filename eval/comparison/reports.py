"""Reads report folders: `report.json` for the facts and averages, `items.jsonl` for the value of every item."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import UserError

_NEEDED = ("benchmark", "protocol", "protocol_version", "answers", "headline", "aggregates", "groups", "kinds")


@dataclass(frozen=True)
class Item:
    """One answered item."""

    id: str
    category: str
    group: str
    kinds: tuple[str, ...]
    value: float | None
    """`None` where it counts nowhere: excluded, or without a usable score of the judge."""
    weight: int = 1
    """Number of units, such as characters, that the value is the mean of."""


@dataclass(frozen=True)
class Reported:
    """A score as a report has it."""

    score: float
    interval: tuple[float, float]
    """NaN where unknown."""


@dataclass(frozen=True)
class RunReport:
    """One system's report on one benchmark."""

    folder: Path
    identity: Mapping[str, str]
    """What must be equal for scores to be comparable, by name."""
    headline: str
    """Name of the average that stands for the whole."""
    clustered: bool
    """Whether the categories are a sample too, so that intervals are drawn over them."""
    aggregates: Mapping[str, float]
    """Every average that it names."""
    parts: Mapping[tuple[str, str], Reported]
    """By kind of part (`overall`, `group`, `kind`, `category`) and name; `overall` has an empty name."""
    items: Mapping[str, Item]
    """By id, in the order of the data."""
    judgements: str | None = None
    """Where the judge's replies lie, if a judge gave the scores."""
    prompts: str | None = None
    """Hash of what was asked."""
    data: str | None = None
    """Hash of the data."""

    @property
    def counted(self) -> dict[str, float]:
        """The values of the items that count."""
        return {item.id: item.value for item in self.items.values() if item.value is not None}


def find_reports(folder: Path) -> dict[str, RunReport]:
    """Return the reports of a folder by benchmark.

    The folder is a report itself, or holds one folder per report, directly or under `eval`. A benchmark that occurs
    twice is told apart by the folders' names.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder. Give a report folder of `python -m eval score`, or one that holds some."
        )
    found = [folder] if (folder / "report.json").is_file() else _below(folder) or _below(folder / "eval")
    if not found:
        raise UserError(
            f"{folder}: no report.json in it, in its folders, or in those of {folder / 'eval'}. Give a report "
            "folder of `python -m eval score`, or one that holds some."
        )
    reports = [read_report(path) for path in found]
    names = [report.identity["benchmark"] for report in reports]
    return {
        name if names.count(name) == 1 else f"{name} ({report.folder.name})": report
        for name, report in zip(names, reports, strict=True)
    }


def _below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/report.json"))


def read_report(folder: Path) -> RunReport:
    """Read one report folder.

    Raises:
        UserError: a file is missing, or is not what `python -m eval score` writes.
    """
    facts = _json(folder / "report.json")
    missing = [key for key in _NEEDED if key not in facts]
    if missing:
        raise UserError(
            f"{folder / 'report.json'}: no '{missing[0]}' in it; compare needs a report with named averages. Score the "
            "predictions again with this version."
        )
    judgements = facts.get("judgements") or {}
    return RunReport(
        folder=folder,
        identity=_identity(facts, judgements),
        headline=facts["headline"]["name"],
        clustered=any("categories" in one.get("method", "") for one in facts["aggregates"].values()),
        aggregates={name: float(one["score"]) for name, one in facts["aggregates"].items()},
        parts=dict(_parts(facts)),
        items={item.id: item for item in _items(folder / "items.jsonl")},
        judgements=judgements.get("path"),
        prompts=facts.get("prompts_sha256"),
        data=facts.get("data", {}).get("sha256"),
    )


def _identity(facts: Mapping[str, Any], judgements: Mapping[str, Any]) -> dict[str, str]:
    named = {
        "benchmark": facts["benchmark"],
        "protocol": facts["protocol"],
        "protocol version": facts["protocol_version"],
        "answers": facts["answers"],
        "mode": facts.get("mode"),
        "shots": facts.get("shots"),
        "judge": _judge(judgements.get("identity") or judgements),
        "average": facts["headline"]["name"],
    }
    return {name: "none" if value is None else str(value) for name, value in named.items()}


def _judge(facts: Mapping[str, Any]) -> str | None:
    """Return the judge's name and settings, which decide its scores as much."""
    name = facts.get("model") or facts.get("run") or facts.get("base")
    settings = facts.get("sampling") or facts.get("predict_arguments")
    told = f" {json.dumps(settings, ensure_ascii=False, sort_keys=True)}" if settings else ""
    return f"{name}{told}" if name else None


def _parts(facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Reported]]:
    yield ("overall", ""), _reported(facts["headline"])
    for kind, key in (("group", "groups"), ("kind", "kinds"), ("category", "categories")):
        for name, score in facts[key].items():
            yield (kind, name), _reported(score)


def _reported(score: Mapping[str, Any]) -> Reported:
    low, high = (math.nan if bound is None else float(bound) for bound in score["interval"])
    return Reported(float(score["score"]), (low, high))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}). Score the predictions again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(value).__name__}. Score the predictions again.")
    return value


def _items(path: Path) -> Iterator[Item]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; compare pairs systems item by item. Score the predictions again.")
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        item = _item(f"{path} line {number}", line)
        if item.id in seen:
            raise UserError(f"{path} line {number}: the id '{item.id}' occurs twice. Score the predictions again.")
        seen.add(item.id)
        yield item


def _item(place: str, line: str) -> Item:
    try:
        value = json.loads(line)
        score = value["value"]
        return Item(
            id=value["id"],
            category=value["category"],
            group=value.get("group", ""),
            kinds=tuple(value.get("kinds", ())),
            value=None if score is None else float(score),
            weight=int(value.get("weight", 1)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: not an item of a report ({error}). Score the predictions again.") from error
