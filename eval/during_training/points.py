"""`RUN/evaluation.jsonl`: one line per evaluation, in the order of the steps; what a curve is made of."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report import Report, Score


class PointFile:
    """The points of a run, of all its callbacks.

    Args:
        path: the file, there or not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def forget_after(self, step: int) -> None:
        """Leave out what a killed run did after the checkpoint that it goes on from."""
        points = self._read()
        kept = [point for point in points if point["step"] <= step]
        if len(kept) < len(points):
            self._write(kept)

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return one callback's points."""
        return [point for point in self._read() if point["name"] == name]

    def add(self, point: Mapping[str, Any]) -> None:
        """Append a point; the file is the old one or the new one at any moment."""
        self._write([*self._read(), point])

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def _write(self, points: list[Any]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        text = "".join(json.dumps(point, ensure_ascii=False) + "\n" for point in points)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, self._path)


def point_facts(report: Report) -> dict[str, Any]:
    """Return what a point says of a report."""
    name, headline = report.headline
    return {
        "answers": report.answers,
        "n": headline.n,
        "headline": name,
        "aggregates": {key: _facts(score) for key, score in report.aggregates.items()},
        "groups": {key: _facts(score) for key, score in report.groups.items()},
        "kinds": {key: _facts(score) for key, score in report.kinds.items()},
        "excluded": sum(report.excluded.values()),
        "unparsed": len(report.unparsed),
        "tied": report.tied,
        "finish_reasons": dict(report.finish_reasons),
        "outcomes_sha256": outcomes_hash(report),
    }


def curves(name: str, report: Report) -> dict[str, float]:
    """Return the numbers of a report under their names in TensorBoard."""
    scores = {f"eval/{name}/{key}": score.score for key, score in report.aggregates.items()}
    scores |= {f"eval/{name}/group/{key}": score.score for key, score in report.groups.items()}
    scores |= {f"eval/{name}/kind/{key}": score.score for key, score in report.kinds.items()}
    return scores | {f"eval/{name}/unparsed": len(report.unparsed) / report.overall.n}


def outcomes_hash(report: Report) -> str:
    """Return a hash of all items: id, value, status and answer; with an equal one, every item was judged alike."""
    digest = hashlib.sha256()
    for item in report.items:
        told = [item.id, item.score if item.counts else None, item.status, item.answer]
        digest.update(json.dumps(told).encode() + b"\n")
    return digest.hexdigest()


def _facts(score: Score) -> dict[str, Any]:
    return {"n": score.n, "score": score.score, "interval": list(score.interval)}
