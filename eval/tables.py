"""The text of `report.md`, made from the facts of `report.json`, so that both say the same."""

import json
from collections.abc import Mapping
from typing import Any

_SHOWN = 10


def report_markdown(facts: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    headline = facts["headline"]
    lines = [
        f"# {facts['benchmark']}",
        "",
        f"Protocol {facts['protocol']}, version {facts['protocol_version']}; {_how(facts)}.",
        "",
        f"**{headline['name']}: {headline['score']:.4f}** {_interval(headline)}, n {headline['n']}",
        "",
    ]
    of_rules = {rule["average"] for rule in facts.get("rules", {}).values()}
    lines += _table("average", {name: one for name, one in facts["aggregates"].items() if name not in of_rules})
    lines += _rules(facts)
    for title, key in (("group", "groups"), ("kind", "kinds"), ("category", "categories")):
        if facts[key]:
            lines += _table(title, facts[key])
    return "\n".join([*lines, *_facts(facts), *_shown("Unparsed responses", facts["unparsed_responses"])]) + "\n"


def _how(facts: Mapping[str, Any]) -> str:
    parts = [f"answers {facts['answers']}"]
    if facts.get("mode") is not None:
        parts.append(f"mode {facts['mode']}")
    if facts.get("shots") is not None:
        parts.append(f"{facts['shots']} shots")
    if facts.get("scoring") is not None:
        parts.append(f"scoring {facts['scoring']}")
    if facts.get("system") is not None:
        parts.append(f"system {facts['system']}")
    return ", ".join(parts)


def _table(title: str, scores: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name.replace('|', '&#124;')} | {one['n']} | {one['score']:.4f} | {_interval(one)} | {one['method']} |"
        for name, one in scores.items()
    ]
    return [f"| {title} | n | score | 95 % interval | interval by |", "|---|---:|---:|---|---|", *rows, ""]


def _rules(facts: Mapping[str, Any]) -> list[str]:
    """Return how far the score depends on the rule that chooses from likelihoods."""
    rules, averages = facts.get("rules", {}), facts["aggregates"]
    if not rules:
        return []
    own = averages[rules[facts["scoring"]]["average"]]
    lines = []
    for name, rule in rules.items():
        one = averages[rule["average"]]
        told = f"**{name}**" if name == facts["scoring"] else name
        difference = "" if name == facts["scoring"] else f"{one['score'] - own['score']:+.4f}"
        numbers = f"{one['score']:.4f} | {_interval(one)} | {difference} | {rule['changed']} | {rule['tied']}"
        lines.append(f"| {told} | {numbers} |")
    title = next(iter(rules.values()))["average"].rpartition("_")[2]
    head = f"| rule | {title} | 95 % interval | less {facts['scoring']} | other answers | tied |"
    return [head, "|---|---:|---|---:|---:|---:|", *lines, ""]


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return "unknown" if low is None or high is None else f"{low:.4f} – {high:.4f}"


def _facts(facts: Mapping[str, Any]) -> list[str]:
    data, predictions = facts["data"], facts["predictions"]
    sample = f", a sample of {data['limit']} rows (seed {data['seed']})" if "limit" in data else ""
    lines = [f"- {note}" for note in facts["notes"]]
    if data["path"] is not None:
        lines.append(f"- data: `{data['path']}`{sample}, sha256 `{data['sha256']}`")
    lines.append(f"- predictions: `{predictions['path']}`, sha256 `{predictions['sha256']}`")
    lines += _model(facts)
    if facts["prompts_sha256"] is not None:
        lines.append(f"- prompts: sha256 `{facts['prompts_sha256']}`")
    if "judgements" in facts:
        judge = facts["judgements"]
        lines.append(f"- judge: `{judge.get('identity', {}).get('model', 'unknown')}`, replies in `{judge['path']}`")
    return [
        *lines,
        f"- excluded: {_counts(facts['excluded'])}",
        f"- without a usable score of the judge, left out: {facts['unread']}",
        f"- unparsed, counted as wrong: {facts['unparsed']}",
        f"- tied, counted as wrong: {facts['tied']}",
        f"- responses ended by: {_counts(facts['finish_reasons'])}",
        *_shown("Left out for want of a score", facts["unread_items"]),
    ]


def _model(facts: Mapping[str, Any]) -> list[str]:
    """Return what answered: where it lay, its hashes, and how it wrote, where it did."""
    predictions, lines = facts["predictions"], []
    if "model" in predictions:
        named = [f"{name} `{path}`" for name, path in predictions["model"].items() if path is not None]
        lines.append(f"- model: {', '.join(named)}")
    if "base" in predictions:
        base = json.dumps(predictions["base"], ensure_ascii=False)
        lines.append(f"- hashes of the model: base `{base}`, adapter {predictions['adapter']}")
        if facts["answers"] == "generated":
            lines.append(f"- decoding: `{json.dumps(predictions['decoding'])}`")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"


def _shown(title: str, texts: Mapping[str, str]) -> list[str]:
    if not texts:
        return []
    shown = list(texts.items())[:_SHOWN]
    head = f"## {title} (first {len(shown)} of {len(texts)}; all in report.json)"
    return ["", head, "", *(f"- {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in shown)]
