"""`ift plan`: what a run will take, before anything is loaded. Imports nothing heavy until the options are read."""

import json

from ift.commands.option_parser import OptionParser

OWN_OPTIONS = ("--card", "--devices", "--skip_data", "--json")
_DESCRIPTION = """Predict parameters, memory per rank, steps, operations and rough time of the run that 'ift fit' would
make of the same configuration, under its strategy and under others, and say what fits. Reads the base model's
config.json and tokenizer, no weights; prepares the data as 'ift fit' does, once. All keys of 'ift fit' may be given."""


def make_parser() -> OptionParser:
    """Return the options beside those of `ift fit`."""
    parser = OptionParser("ift plan", _DESCRIPTION)
    parser.add_argument("--config", action="append", metavar="FILE.yaml", help="configuration of the run, as ift fit's")
    parser.add_argument("--card", help="a card's name (h100-80g) or its GiB (24, 24GB); default: this machine's")
    parser.add_argument("--devices", type=int, help="of the strategies compared; default: the run's, or 8")
    parser.add_argument("--skip_data", action="store_true", help="prepare no data; take all examples as longest")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the options that are this command's own, and those of the run."""
    own: list[str] = []
    others: list[str] = []
    waiting = list(arguments)
    while waiting:
        one = waiting.pop(0)
        name, equals, _ = one.partition("=")
        if name not in OWN_OPTIONS:
            others.append(one)
            continue
        own.append(one)
        if name in ("--card", "--devices") and not equals and waiting:
            own.append(waiting.pop(0))
    return own, others


def run(command: str, arguments: list[str]) -> None:
    """Run `plan`.

    Raises:
        UserError: a wrong setting, wrong data, or a model that cannot be planned.
    """
    parser = make_parser()
    if any(one in ("-h", "--help") for one in arguments) or not arguments:
        parser.print_help()
        return
    own, others = split_arguments(arguments)
    options = parser.parse(own)
    from ift.commands.planning import plan

    report = plan(others, card=options.card, devices=options.devices, skip_data=options.skip_data)
    if options.json:
        print(json.dumps(report.describe(), indent=1))
        return
    from ift.commands.plan_text import text_of

    print(text_of(report))
