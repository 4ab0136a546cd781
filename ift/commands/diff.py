"""`ift diff RUN_A RUN_B`: what differed between two runs, and the first step at which their losses part."""

import json
from argparse import Namespace
from typing import TYPE_CHECKING

from ift.artifacts import write_json
from ift.commands.option_parser import OptionParser, writable_file

if TYPE_CHECKING:
    from ift.checks.run_difference import RunDifference


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift diff",
        "Compare two runs: the settings that differ; which parts of their fingerprints differ (data, labels, "
        "tokenizer, template, base model, initial weights, code, environment, strategy); the first step at which "
        "their losses part; and the largest difference of their final weights. Exit code 0 where losses, validation "
        "and final weights are the same to the last bit, whatever the settings say, and 1 where they are not.",
    )
    result.add_argument("run_a", metavar="RUN_A", help="a run folder")
    result.add_argument("run_b", metavar="RUN_B", help="another one")
    result.add_argument("--json", default=None, metavar="FILE", help="write all of it as JSON, too")
    return result


def run(command: str, arguments: list[str]) -> int:
    """Run `diff`.

    Returns:
        0 where the results are the same to the last bit, 1 where they are not.

    Raises:
        UserError: an option, or a run folder that is none.
    """
    options = parser().parse(arguments)
    report = writable_file("--json", options.json) if options.json is not None else None
    from ift.checks.run_difference import compare_runs

    found = compare_runs(options.run_a, options.run_b)
    if report is not None:
        write_json(report, json.loads(json.dumps(found.describe(), default=str)))
    print("\n".join(_lines(options, found)))
    return 0 if found.same else 1


def _lines(options: Namespace, found: "RunDifference") -> list[str]:
    return [
        f"A: {options.run_a}",
        f"B: {options.run_b}",
        "",
        *_reasons(found),
        "",
        *_results(found),
        "",
        _verdict(found),
    ]


def _verdict(found: "RunDifference") -> str:
    if found.same:
        return "the same bit for bit"
    within = found.losses.first is not None and (found.rounding or "").startswith("within")
    return "different (losses within rounding)" if within else "different"


def _reasons(found: "RunDifference") -> list[str]:
    from ift.checks.changes import texts
    from ift.checks.run_difference import PARTS

    differing = [part for part, same in found.parts.items() if same is False]
    unknown = [part for part, same in found.parts.items() if same is None]
    lines = ["settings that differ:" if found.settings else "settings: the same"]
    lines += [f"  {line}" for line in texts(found.settings)]
    lines += ["settings that differ, but change no weights and no losses:"] if found.settings_without_effect else []
    lines += [f"  {line}" for line in texts(found.settings_without_effect)]
    lines += [
        "parts that differ:" if differing else "parts: the same" if not unknown else "parts: none known to differ"
    ]
    lines += [f"  {part}: {PARTS[part]}" for part in differing]
    lines += [f"not known of both: {', '.join(unknown)} (a run of an older version of ift)"] if unknown else []
    lines += ["fingerprint: the same, so the results should be"] if found.same_fingerprint else []
    lines += ["what is known of them:"] if found.details else []
    lines += [f"  {line}" for line in texts(found.details)]
    return lines + _sessions(found)


def _sessions(found: "RunDifference") -> list[str]:
    """Return how the runs went on; of a session, what it changed of its own run, where the other did not, too."""
    from ift.checks.changes import texts

    if not any(found.sessions):
        return []
    steps = [" and ".join(str(session.from_step) for session in run) for run in found.sessions]
    told = [f"went on from step {one}" if one else "one session" for one in steps]
    if found.sessions[0] == found.sessions[1]:
        return [f"sessions: both {told[0]}, in the same way"]
    lines = [f"sessions: A {told[0]}; B {told[1]}"]
    for name, run in zip("AB", found.sessions, strict=True):
        for session in run:
            lines += [f"  {name}, session {session.number}: {line}" for line in texts(session.changes)]
    return lines


def _results(found: "RunDifference") -> list[str]:
    lines = [f"losses: {found.losses.text()}"]
    lines += [f"  {found.rounding}"] if found.rounding else []
    lines += [f"  {found.dropout}"] if found.dropout and found.losses.first is not None else []
    lines += [f"final weights: {found.weights.text()}"]
    return lines + [f"{change.name}: {change.one} -> {change.other}" for change in found.validation]
