"""`python -m eval score`: from predictions (and a judge's replies) to a report."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.benchmark import Asked, Benchmark, Prepare, get_benchmark, how_asked, prompts_of
from eval.judge_usable import quoted
from eval.matching import match, select
from eval.output import Sources, asked_of, prompts_hash, refuse_existing, write_report
from eval.recipe import recipe_notes
from eval.report import Report
from ift.errors import UserError, unknown_name
from ift.records import Prediction, PromptRecord, read_predictions


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser("score", parents=[common], help="score predictions and write the report")
    command.add_argument("benchmark", metavar="BENCHMARK", help="one of those that `list` shows")
    command.add_argument("--data", type=Path, metavar="PATH", help="the data that the prompts came from")
    command.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="what `ift predict` wrote, the file or its folder; several where a judge compared systems",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets report.json and report.md")
    command.add_argument("--protocol", help="as for prepare; where left out, what the predictions say")
    command.add_argument("--scoring", metavar="NAME", help="rule for likelihoods, such as letter_max or text_sum_pmi")
    command.add_argument("--judgements", type=Path, metavar="DIR", help="what `python -m eval judge` wrote")
    command.add_argument("--limit", type=int, metavar="N", help="only a random sample of N rows; the same as prepare")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample (default: 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Score and write."""
    refuse_existing(options.output)
    files = named_files(options.predictions)
    if options.data is None:
        _score_published(options, files)
        return
    for path in files.values():
        if path.is_dir():
            raise UserError(f"--predictions: {path}: a folder without predictions.jsonl. Give a file of `ift predict`.")
    systems = {name: read_predictions(path) for name, path in files.items()}
    asked = asked_of([one for own in systems.values() for one in own])
    benchmark = chosen_benchmark(options, asked)
    rule = _rule(options, benchmark)
    prompts = _prompts(options, benchmark, asked)
    matched = {name: match(prompts, own) for name, own in systems.items()}
    reports = (
        _judged(options, benchmark, matched) if benchmark.judge else _scored(benchmark, matched, options.data, rule)
    )
    for name, report in reports.items():
        folder = options.output if len(files) == 1 else options.output / name
        warnings = recipe_notes(benchmark, matched[name], files[name])
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        report = replace(report, notes=(*warnings, *report.notes))
        sources = Sources(
            data=options.data,
            predictions=files[name],
            limit=options.limit,
            seed=options.seed,
            asked=asked,
            prompts_sha256=prompts_hash(prompts),
            judgements=options.judgements,
            system=name if benchmark.judge else None,
        )
        write_report(folder, benchmark, report, sources)
        _print(folder, report)


def named_files(texts: Sequence[str]) -> dict[str, Path]:
    """Return the files of `NAME=FILE` or `FILE` by name; a file alone has the name of its folder or its own.

    The folder that `ift predict` wrote stands for the predictions in it.

    Raises:
        UserError: two have the same name.
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or "/" in name:
            name, path = "", text
        if (Path(path) / "predictions.jsonl").is_file():  # the folder that `ift predict` wrote
            path = str(Path(path) / "predictions.jsonl")
        own = Path(path)
        name = name or (own.parent.name if own.name == "predictions.jsonl" else "") or own.stem
        if name in files:
            raise UserError(f"--predictions: two systems are called '{name}'. Name them: NAME=FILE.")
        files[name] = own
    return files


def _score_published(options: argparse.Namespace, files: Mapping[str, Path]) -> None:
    benchmark = get_benchmark(options.benchmark, options.protocol)
    if benchmark.published is None:
        raise UserError(f"--data: {benchmark.name} needs the data that the prompts came from.")
    _rule(options, benchmark)
    for name, path in files.items():
        folder = options.output if len(files) == 1 else options.output / name
        report = benchmark.published(path)
        write_report(folder, benchmark, report, Sources(data=None, predictions=path))
        _print(folder, report)


def chosen_benchmark(options: argparse.Namespace, asked: Asked | None) -> Benchmark:
    """Return the benchmark under the protocol that was asked for, and refuse predictions of another."""
    if asked is not None and asked.benchmark != options.benchmark:
        raise UserError(f"--predictions: these answer '{asked.benchmark}', not '{options.benchmark}'.")
    protocol = options.protocol or (asked.protocol if asked is not None else None)
    benchmark = get_benchmark(options.benchmark, protocol)
    if asked is not None:
        _check_asked(benchmark, get_benchmark(options.benchmark, asked.protocol), asked)
    return benchmark


def _check_asked(benchmark: Benchmark, before: Benchmark, asked: Asked) -> None:
    """Refuse answers to other prompts than the benchmark's own; a protocol with the same prompts will do."""
    if asked.protocol != benchmark.protocol and _prepare(before, asked) is not _prepare(benchmark, asked):
        raise UserError(
            f"--protocol: '{benchmark.protocol}', but the predictions were asked under '{asked.protocol}', whose "
            "prompts differ. Prepare and predict again, or leave --protocol out."
        )
    if asked.version != before.version:
        raise UserError(
            f"--predictions: asked under version {asked.version} of {asked.protocol}; this is version "
            f"{before.version}, whose scores may differ. Prepare and predict again."
        )


def _prepare(benchmark: Benchmark, asked: Asked) -> Prepare | None:
    return benchmark.prepare if asked.mode is None else benchmark.modes.get(asked.mode)


def _prompts(options: argparse.Namespace, benchmark: Benchmark, asked: Asked | None) -> list[PromptRecord]:
    mode, shots = (asked.mode, asked.shots) if asked is not None else (None, None)
    how = how_asked(benchmark, mode=mode, shots=shots)
    return select(prompts_of(benchmark, options.data, how), limit=options.limit, seed=options.seed)


def _rule(options: argparse.Namespace, benchmark: Benchmark) -> dict[str, str]:
    """Return what `score` is told of the rule for likelihoods: nothing where the benchmark decides."""
    name: str | None = options.scoring
    if name is None:
        return {}
    if not benchmark.scorings:
        raise UserError(
            f"--scoring: '{name}': {benchmark.name} ({benchmark.protocol}) chooses in one way. Leave --scoring out."
        )
    if name not in benchmark.scorings:
        raise unknown_name("--scoring", name, benchmark.scorings)
    return {"scoring": name}


def _scored(
    benchmark: Benchmark, systems: Mapping[str, Sequence[Prediction]], data: Path, rule: Mapping[str, str]
) -> Mapping[str, Report]:
    if benchmark.score is None:
        raise UserError(f"{benchmark.name}: nothing scores its answers.")
    return {name: benchmark.score(predictions, data, **rule) for name, predictions in systems.items()}


def _judged(
    options: argparse.Namespace, benchmark: Benchmark, systems: Mapping[str, Sequence[Prediction]]
) -> Mapping[str, Report]:
    assert benchmark.judge is not None
    if options.judgements is None:
        raise UserError(
            f"--judgements: {benchmark.name} is scored by a judge. Run `python -m eval judge {benchmark.name}` "
            "first and give its folder."
        )
    replies = read_predictions(options.judgements / "predictions.jsonl")
    try:
        return benchmark.judge.score(replies, systems, options.data)
    except UserError as error:
        if not str(error).startswith("nothing to score") or not replies:
            raise
        file, first = options.judgements / "predictions.jsonl", quoted(replies[0].response or "")
        raise UserError(f"{error} The judge's first reply: {first} ({file} holds all).") from error


def _print(folder: Path, report: Report) -> None:
    name, headline = report.headline
    low, high = headline.interval
    by = f" by {report.scoring}" if report.scoring is not None else ""
    print(f"{folder}: {name}{by} {headline.score:.4f} [{low:.4f}, {high:.4f}], n {headline.n}")
