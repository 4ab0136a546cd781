"""Writes a report as `report.json` (for programs), `report.md` (for people) and `items.jsonl` (one line per item)."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.benchmark import Asked, Benchmark
from eval.report import Outcome, Report, Score
from eval.tables import report_markdown
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAMES = ("report.json", "report.md", "items.jsonl")
_MODEL = ("base", "adapter", "merged_adapters", "quantization", "rope", "attention", "dtype", "precision")
_IDENTITY = (*_MODEL, "template", "join_options", "decoding", "seed", "batch_size")
"""What is told of the run of `ift predict` that answered."""


@dataclass(frozen=True)
class Sources:
    """What a report was computed from."""

    data: Path | None
    """`None` where a published result file holds the labels."""
    predictions: Path
    limit: int | None = None
    """Size of the sample of the data, `None` for all of it."""
    seed: int = 0
    """Of the sample."""
    asked: Asked | None = None
    """How the prompts were made, where the predictions say so."""
    prompts_sha256: str | None = None
    """Hash of all prompts that were asked."""
    judgements: Path | None = None
    """The folder of the judge's replies."""
    system: str | None = None
    """Name of the judged system."""


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that holds a report, and a file in its place.

    Raises:
        UserError: there is one.
    """
    for path in (folder, *(folder / name for name in NAMES)):
        if path.is_file():
            raise UserError(f"--output: {path} exists and nothing is overwritten. Give another folder, or remove it.")


def write_report(folder: Path, benchmark: Benchmark, report: Report, sources: Sources) -> dict[str, Any]:
    """Write the files into a folder, each whole or not at all, and return what `report.json` holds."""
    refuse_existing(folder)
    facts = report_facts(benchmark, report, sources)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_item(outcome, facts), ensure_ascii=False) + "\n" for outcome in report.items)
    _write(folder / "items.jsonl", "".join(lines))
    _write(folder / "report.md", report_markdown(facts))
    _write(folder / "report.json", json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    return facts


def report_facts(benchmark: Benchmark, report: Report, sources: Sources) -> dict[str, Any]:
    """Return what `report.json` holds; README.md describes it."""
    name, headline = report.headline
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "protocol_version": benchmark.version,
        "answers": report.answers,
        **_scoring(report),
        **_asked(sources),
        "data": _data(report, sources),
        "predictions": _predictions(sources.predictions),
        **_judged(sources),
        "headline": {"name": name, **_score_facts(headline)},
        "overall": _score_facts(report.overall),
        "macro": report.macro,
        "aggregates": _scores(report.aggregates),
        "groups": _scores(report.groups),
        "kinds": _scores(report.kinds),
        "categories": _scores(report.categories),
        "excluded": dict(report.excluded),
        "unread": len(report.unread),
        "unread_items": dict(report.unread),
        "unparsed": len(report.unparsed),
        "unparsed_responses": dict(report.unparsed),
        "tied": report.tied,
        "finish_reasons": dict(report.finish_reasons),
        "notes": list(report.notes),
    }


def prompts_hash(prompts: Iterable[PromptRecord]) -> str:
    """Return a hash of what the prompts ask: ids, messages, options and references, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        told = [prompt.id, list(prompt.messages), list(prompt.options), prompt.reference]
        digest.update(json.dumps(told, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def asked_of(predictions: Iterable[Prediction]) -> Asked | None:
    """Return how the prompts of predictions were made, `None` where they do not say.

    Raises:
        UserError: they were not all made in one way.
    """
    found = {json.dumps(one.meta.get("asked"), sort_keys=True) for one in predictions}
    if len(found) > 1:
        raise UserError("--predictions: they were asked in several ways. Score each file of `prepare` apart.")
    facts = json.loads(found.pop()) if found else None
    return Asked(**facts) if facts else None


def identity_of(predictions: Path) -> Mapping[str, Any]:
    """Return what decided the answers of a `predictions.jsonl`, as `ift predict` wrote it beside; empty where unknown.

    Among it are `base` and `adapter` (hashes), `template` (its fields), `decoding`, and `join_options` where it was
    set.
    """
    return dict(_about(predictions).get("identity", {}))


def sha256(path: Path) -> str | None:
    """Return the hash of a file, or of the names and contents of a folder's files; `None` where nothing lies there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for own in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{own.relative_to(path).as_posix()} {sha256(own)}\n".encode())
    return digest.hexdigest()


def _asked(sources: Sources) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if sources.asked is not None:
        facts = {"mode": sources.asked.mode, "shots": sources.asked.shots}
    return facts | {"prompts_sha256": sources.prompts_sha256}


def _scoring(report: Report) -> dict[str, Any]:
    """Return by which rule options were chosen and what others give, where the benchmark offers several."""
    facts: dict[str, Any] = {} if report.scoring is None else {"scoring": report.scoring}
    return facts | ({"rules": {name: asdict(rule) for name, rule in report.rules.items()}} if report.rules else {})


def _data(report: Report, sources: Sources) -> dict[str, Any]:
    num_items = report.overall.n + sum(report.excluded.values()) + len(report.unread)
    facts: dict[str, Any] = {"path": None, "sha256": None, "n": num_items}
    if sources.data is not None:
        facts |= {"path": str(sources.data), "sha256": sha256(sources.data)}
    return facts if sources.limit is None else facts | {"limit": sources.limit, "seed": sources.seed}


def _predictions(path: Path) -> dict[str, Any]:
    """Return where predictions lie, and what `ift predict` wrote beside them: model, template, decoding."""
    facts: dict[str, Any] = {"path": str(path), "sha256": sha256(path)}
    identity, model = identity_of(path), _about(path).get("model")
    facts |= {"model": model} if model else {}
    return facts | {name: identity[name] for name in _IDENTITY if name in identity}


def _about(path: Path) -> dict[str, Any]:
    about = path.parent / "predict.json"
    if path.name != "predictions.jsonl" or not about.is_file():
        return {}
    return dict(json.loads(about.read_text(encoding="utf-8")))


def _judged(sources: Sources) -> dict[str, Any]:
    if sources.judgements is None:
        return {}
    about = sources.judgements / "judge.json"
    facts = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    return {"system": sources.system, "judgements": {"path": str(sources.judgements), **facts}}


def _scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: _score_facts(score) for name, score in scores.items()}


def _score_facts(score: Score) -> dict[str, Any]:
    interval = [None if math.isnan(bound) else bound for bound in score.interval]
    return {"n": score.n, "score": score.score, "interval": interval, "method": score.method}


def _item(outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, Any]:
    item = asdict(outcome)
    del item["correct"]
    return item | {"value": outcome.score if outcome.counts else None}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Half of a surrogate pair, which UTF-8 cannot say, is written as an escape.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
