"""`python -m eval`: lists benchmarks, writes their prompts, and scores the predictions that `ift predict` made."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import agree_command, compare_command, extract_command, judge_command, run_command, score_command
from eval.benchmark import find_benchmarks, get_benchmark, how_asked, prompts_of
from eval.matching import select
from ift.errors import exit_code
from ift.records import write_jsonl


class NearestParser(argparse.ArgumentParser):
    """Names the nearest option where one is unknown, before it misses those that are required."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; of the parser of all commands, leave the options to theirs."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in args or () if self._subparsers is None else ():
            name = argument.partition("=")[0]
            if name.startswith("--") and not any(one.startswith(name) for one in known):
                nearest = difflib.get_close_matches(name, known, n=1)
                self.error(f"unknown option '{name}'." + (f" Did you mean '{nearest[0]}'?" if nearest else ""))
        return super().parse_known_args(args, namespace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for a mistake of the user."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    parser = make_parser()
    options = parser.parse_args(given[:end], argparse.Namespace(further=given[end + 1 :]))
    if options.further and options.run is not run_command.run:
        parser.error("what stands behind '--' is for `ift predict`, which only `run` calls")
    return exit_code(lambda: options.run(options), debug=options.debug)


def _list(options: argparse.Namespace) -> None:
    for benchmark in find_benchmarks().values():
        print(f"{benchmark.name}  {benchmark.protocol} {benchmark.version}  {benchmark.description}")
        for name, other in benchmark.protocols.items():
            print(f"    --protocol {name} {other.version}  {other.description}")


def _prepare(options: argparse.Namespace) -> None:
    benchmark = get_benchmark(options.benchmark, options.protocol)
    asked = how_asked(benchmark, mode=options.mode, shots=options.shots)
    prompts = select(prompts_of(benchmark, options.data, asked), limit=options.limit, seed=options.seed)
    count = write_jsonl(options.output, prompts)
    print(f"{options.output}: {count} prompts")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    common = NearestParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = NearestParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("list", parents=[common], help="show the benchmarks")
    command.set_defaults(run=_list)

    command = commands.add_parser("prepare", parents=[common], help="write the prompts of a benchmark")
    command.add_argument("benchmark", metavar="BENCHMARK", help="one of those that `list` shows")
    command.add_argument("--data", type=Path, required=True, metavar="PATH", help="the benchmark's own data")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="prompts.jsonl for `ift predict`")
    command.add_argument("--protocol", help="wording, reading and averaging, where the benchmark knows several")
    command.add_argument("--mode", help="how to ask, where the benchmark knows several ways")
    command.add_argument("--shots", type=int, metavar="K", help="worked examples before each question")
    command.add_argument("--limit", type=int, metavar="N", help="only a random sample of N rows; the same for score")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample (default: 0)")
    command.set_defaults(run=_prepare)

    for one in (judge_command, score_command, run_command, compare_command, agree_command, extract_command):
        one.add_parser(commands, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
