"""`python -m eval`: lists benchmarks, writes their prompts, and scores the predictions that `ift predict` made."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.benchmark import Benchmark, Prepare, find_benchmarks, get_benchmark
from eval.matching import match, select
from eval.output import Sources, refuse_existing, write_report
from ift.errors import UserError, exit_code, unknown_name
from ift.records import read_predictions, write_jsonl


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for a mistake of the user."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.run(options), debug=options.debug)


def _list(options: argparse.Namespace) -> None:
    for benchmark in find_benchmarks().values():
        print(f"{benchmark.name}  {benchmark.protocol} {benchmark.version}  {benchmark.description}")


def _prepare(options: argparse.Namespace) -> None:
    benchmark = get_benchmark(options.benchmark)
    prompts = select(_ask(benchmark, options.mode)(options.data), limit=options.limit, seed=options.seed)
    count = write_jsonl(options.output, prompts)
    print(f"{options.output}: {count} prompts")


def _ask(benchmark: Benchmark, mode: str | None) -> Prepare:
    if mode is None:
        return benchmark.prepare
    if not benchmark.modes:
        raise UserError(f"--mode: '{mode}': {benchmark.name} has one way to ask only. Leave --mode out.")
    if mode not in benchmark.modes:
        raise unknown_name("--mode", mode, benchmark.modes)
    return benchmark.modes[mode]


def _score(options: argparse.Namespace) -> None:
    benchmark = get_benchmark(options.benchmark)
    refuse_existing(options.output)
    prompts = select(benchmark.prepare(options.data), limit=options.limit, seed=options.seed)
    predictions = match(prompts, read_predictions(options.predictions))
    report = benchmark.score(predictions, options.data)
    write_report(
        options.output, benchmark, report, Sources(options.data, options.predictions, options.limit, options.seed)
    )
    low, high = report.overall.interval
    print(f"{options.output}: overall {report.overall.score:.4f} [{low:.4f}, {high:.4f}], n {report.overall.n}")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("list", parents=[common], help="show the benchmarks")
    command.set_defaults(run=_list)

    command = commands.add_parser("prepare", parents=[common], help="write the prompts of a benchmark")
    _add_data_options(command)
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="prompts.jsonl for `ift predict`")
    command.add_argument("--mode", help="how to ask, where the benchmark knows several ways")
    command.set_defaults(run=_prepare)

    command = commands.add_parser("score", parents=[common], help="score predictions and write the report")
    _add_data_options(command)
    command.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="what `ift predict` wrote")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets report.json and report.md")
    command.set_defaults(run=_score)
    return parser


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("benchmark", metavar="BENCHMARK", help="one of those that `list` shows")
    command.add_argument("--data", type=Path, required=True, metavar="FILE", help="the benchmark's own data file")
    command.add_argument("--limit", type=int, metavar="N", help="only a random sample of N rows; the same for score")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample (default: 0)")


if __name__ == "__main__":
    sys.exit(main())
