"""`python -m eval extract`: reads answers, scores or orders from replies of any file, and compares with known ones.

The rules are those that the benchmarks use. What cannot be read stays unread, and is counted.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.extraction import Extraction, Kind, extract_letters
from eval.extraction_legacy import ceval_chain_of_thought, gaokao_multi, last_letter, mmcu_first_match
from eval.extraction_lists import extract_answers
from eval.extraction_numbers import extract_number, flexible_extract, strict_match
from eval.judge_scores import JudgeScore, parse_rating, parse_score
from eval.judge_systems import parse_system_scores
from eval.judge_verdicts import parse_verdict
from eval.ordering import extract_ordering
from eval.rows import Row, read_rows
from ift.errors import UserError, unknown_name

_SHOWN = 20
_MOST_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Reading:
    """What a rule read from one reply."""

    value: object
    """Text, a number or a list of them; `None` where nothing was read."""
    status: str
    """`read`, or why not."""


def _score(found: JudgeScore) -> Reading:
    return Reading(found.value, found.status)


def _answers(reply: str, count: int, letters: str) -> Reading:
    found = extract_answers(reply, count, letters=letters)
    return Reading([one.letters for one in found], _worst([one.status for one in found]))


def _systems(reply: str, count: int, letters: str) -> Reading:
    found = parse_system_scores(reply, count)
    return Reading([one.value for one in found], _worst([one.status for one in found]))


def _order(reply: str, count: int, letters: str) -> Reading:
    found = extract_ordering(reply, count)
    return Reading(list(found.ranks) if found.ranks else None, found.status)


def _verdict(reply: str, count: int, letters: str) -> Reading:
    found = parse_verdict(reply)
    return Reading(found.winner, found.status)


def _number(reply: str, count: int, letters: str) -> Reading:
    found = extract_number(reply)
    whole = found.value is not None and found.value.denominator == 1
    return Reading(None if found.value is None else int(found.value) if whole else str(found.value), found.status)


def _text(found: str | None) -> Reading:
    return Reading(found, "read" if found is not None else "unparsed")


def _option(kind: Kind) -> Callable[[str, int, str], Reading]:
    def reading(reply: str, count: int, letters: str) -> Reading:
        found = extract_letters(reply, letters=letters, kind=kind)
        return Reading(found.letters, found.status)

    return reading


def _published(read: Callable[[str], Extraction]) -> Callable[[str, int, str], Reading]:
    def reading(reply: str, count: int, letters: str) -> Reading:
        found = read(reply)
        return Reading(found.letters, found.status)

    return reading


RULES: Mapping[str, Callable[[str, int, str], Reading]] = {
    "letters": _option("unknown"),
    "single": _option("single"),
    "multi": _option("multi"),
    "answers": _answers,
    "mmcu_first_match": _published(mmcu_first_match),
    "last_letter": _published(last_letter),
    "gaokao_multi": _published(gaokao_multi),
    "ceval_chain_of_thought": _published(ceval_chain_of_thought),
    "number": _number,
    "strict_match": lambda reply, count, letters: _text(strict_match(reply)),
    "flexible_extract": lambda reply, count, letters: _text(flexible_extract(reply)),
    "score": lambda reply, count, letters: _score(parse_score(reply)),
    "rating": lambda reply, count, letters: _score(parse_rating(reply)),
    "systems": _systems,
    "order": _order,
    "verdict": _verdict,
}
"""From a reply, the number of questions or systems in it and the letters of the options to what it says."""
_LETTER_RULES = ("letters", "single", "multi", "answers")


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser("extract", parents=[common], help="read answers or scores from replies of any file")
    command.add_argument("rule", metavar="RULE", help=f"what to read: {', '.join(RULES)}")
    command.add_argument("file", type=Path, metavar="FILE", help="JSON array or JSON lines of objects")
    command.add_argument(
        "--field", default="response", metavar="KEY", help="where the reply stands (default: response)"
    )
    command.add_argument("--records", metavar="KEY", help="where the array stands, if the file is one object")
    command.add_argument(
        "--count", type=int, metavar="N", help="questions or systems per reply (default: as expected, else 1)"
    )
    command.add_argument(
        "--letters",
        metavar="A-G",
        help=f"letters of the options, for {', '.join(_LETTER_RULES)}: a range or the letters (default: A-D)",
    )
    command.add_argument("--expected", metavar="KEY", help="the known value to compare with; also as a list of letters")
    command.add_argument("--output", type=Path, metavar="FILE", help="gets one JSON line per reply")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read, write and count."""
    if options.rule not in RULES:
        raise unknown_name("RULE", options.rule, RULES)
    if options.count is not None and options.count < 1:
        raise UserError(f"--count: {options.count} is less than 1.")
    if options.output is not None and options.output.exists():
        raise UserError(
            f"--output: {options.output} exists and nothing is overwritten. Give another path, or remove it."
        )
    letters = _option_letters(options.letters, options.rule)
    lines = [_line(row, letters, options) for row in _rows(options.file, options.records)]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        options.output.write_text(text, encoding="utf-8", errors="backslashreplace")
    statuses = Counter(str(line["status"]) for line in lines)
    print(f"{options.file}: {len(lines)} replies: {', '.join(f'{name} {count}' for name, count in statuses.items())}")
    if options.expected is not None:
        _compare(lines)


def _option_letters(given: str | None, rule: str) -> str:
    """Return the letters that `--letters` names, `A-G` or `ABCDEFG`."""
    if given is None:
        return "ABCD"
    if rule not in _LETTER_RULES:
        raise UserError(
            f"--letters: '{rule}' has letters of its own. Leave it away, or read {', '.join(_LETTER_RULES)}."
        )
    letters = _MOST_LETTERS[: _MOST_LETTERS.find(given[2:]) + 1] if re.fullmatch("A-[B-H]", given) else given
    if not letters or not _MOST_LETTERS.startswith(letters):
        raise UserError(f"--letters: '{given}' is neither a range from A to at most H nor its letters; such as A-G.")
    return letters


def _rows(path: Path, key: str | None) -> list[Row]:
    if key is None:
        return read_rows(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
    records = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"--records: {path} is no object with a list of objects under '{key}'.")
    return [Row(f"{path} {key}[{index}]", index, record) for index, record in enumerate(records)]


def _line(row: Row, letters: str, options: argparse.Namespace) -> dict[str, object]:
    if options.expected is not None and options.expected not in row.fields:
        raise UserError(f"--expected: {row.place} has no '{options.expected}'.")
    expected = row.fields.get(options.expected) if options.expected is not None else None
    found = RULES[options.rule](row.text(options.field), options.count or _length(expected), letters)
    line: dict[str, object] = {"place": row.place, "read": found.value, "status": found.status}
    return line if options.expected is None else line | {"expected": expected}


def _length(expected: object) -> int:
    return len(expected) if isinstance(expected, list) and expected else 1


def _compare(lines: Sequence[Mapping[str, object]]) -> None:
    other = [line for line in lines if _plain(line["read"]) != _plain(line["expected"])]
    equal = len(lines) - len(other)
    print(f"as expected: {equal} of {len(lines)} ({100 * equal / len(lines):.1f} %)")
    for line in other[:_SHOWN]:
        print(f"  {line['place']}: read {line['read']!r} ({line['status']}), expected {line['expected']!r}")
    if len(other) > _SHOWN:
        print(f"  … and {len(other) - _SHOWN} more")


def _plain(value: object) -> object:
    """Return a value in which one answer and a list of one are equal, none and an empty list, a number and its text."""
    if value == []:
        return None
    if isinstance(value, list):
        return _plain(value[0]) if len(value) == 1 else [_plain(one) for one in value]
    try:
        return float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else value
    except (ValueError, OverflowError):
        return value


def _worst(statuses: Sequence[str]) -> str:
    return next((status for status in statuses if status != "read"), "read")
