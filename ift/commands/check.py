"""`ift check`: hold this machine, or a run's configuration, to what must stay true."""

import logging
import sys
from argparse import Namespace
from pathlib import Path

from ift.artifacts import write_json
from ift.checks.findings import ARTEFACTS, INVARIANTS, Findings
from ift.commands.option_parser import OptionParser, writable_file
from ift.errors import UserError


def parser() -> OptionParser:
    """Return the options."""
    known = "; ".join(f"{number} {title}" for number, title in INVARIANTS.items())
    result = OptionParser(
        "ift check",
        "Train and compare tiny models that are made on the spot, without any network, and measure whether what must "
        f"stay true does: {known}. Takes about two minutes on two CPU cores. Prints a table, and exits with 1 where "
        "anything is violated.",
    )
    result.add_argument(
        "--run",
        default=None,
        metavar="RUN",
        help="check the model family, method, quantization, template, tokenizer, row layout and strategy of a run, "
        "with a small model of the same kind, and the run's own files",
    )
    result.add_argument(
        "--config", default=None, metavar="FILE", help="the same for a configuration that was not run yet"
    )
    result.add_argument(
        "--only", default=None, metavar="NUMBERS", help="only these invariants, as 3,5 (default: all of them)"
    )
    result.add_argument("--json", default=None, metavar="FILE", help="write every measurement as JSON, too")
    result.add_argument(
        "--keep", default=None, metavar="DIR", help="new folder for the tiny runs; else they are removed"
    )
    return result


def run(command: str, arguments: list[str]) -> int:
    """Run `check`.

    Returns:
        0 where everything holds, 1 where anything is violated.

    Raises:
        UserError: an option, or a run or configuration that cannot be read.
    """
    options = parser().parse(arguments)
    wanted = _wanted(options)
    report = writable_file("--json", options.json) if options.json is not None else None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names kernels that are not needed
    from ift.commands.check_runs import check

    told = sys.stderr  # which the checks hide from the commands that they run
    findings = Findings(wanted, lambda text: print(text, file=told, flush=True))
    check(findings, options)
    print(findings.table())
    if report is not None:
        write_json(report, findings.describe())
    print("\neverything holds" if findings.holds else "\nVIOLATED")
    return 0 if findings.holds else 1


def _wanted(options: Namespace) -> frozenset[int]:
    if options.run is not None and options.config is not None:
        raise UserError("--config: a run has its own; give --run or --config.")
    if options.keep is not None and Path(options.keep).expanduser().exists():
        raise UserError(f"--keep: '{options.keep}' exists; name a new folder.")
    if options.only is None:
        return frozenset({*INVARIANTS, ARTEFACTS})
    try:
        numbers = frozenset(int(part) for part in options.only.split(","))
    except ValueError as error:
        raise UserError(f"--only: '{options.only}' is no list of numbers. Write it as 3,5.") from error
    if unknown := numbers - INVARIANTS.keys():
        raise UserError(f"--only: '{options.only}' names no invariant {sorted(unknown)}; they are 1 to 10, as in 3,5.")
    return numbers
