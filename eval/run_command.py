"""`python -m eval run`: prompts, predictions by `ift predict`, and the report in one go; starts no torch itself.

One benchmark is asked in DIR itself (`run_jobs.py` says what lies there). Several get a folder DIR/BENCHMARK each, and
with `--with-base` DIR/tuned and DIR/base have one for each. The same command goes on after a kill: what is predicted is
not predicted again, and what is scored is left alone.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval import score_command
from eval.benchmark import get_benchmark, how_asked, prompts_of
from eval.matching import select
from eval.output import NAMES, refuse_existing
from eval.run_jobs import Job, System, Task, begin, check_folder, predict
from ift.errors import UserError
from ift.records import write_jsonl

_DECIDED = ("--data.path", "--output_dir", "--run", "--untuned", "--model.base")
"""Options of `ift predict` that this command gives."""


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser(
        "run",
        parents=[common],
        help="prepare, predict and score in one go",
        usage="%(prog)s BENCHMARK[=PATH] ... [--data PATH] (--run RUN [--with-base] | --base MODEL) --output DIR "
        "[--protocol NAME] [--mode NAME] [--shots K] [--limit N] [--seed S] [-- OPTIONS OF ift predict]",
    )
    command.add_argument("benchmarks", nargs="+", metavar="BENCHMARK[=PATH]", help="as `list` shows, with its data")
    command.add_argument("--data", type=Path, metavar="PATH", help="the data, where one benchmark is named")
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", dest="run_folder", metavar="RUN", help="a run folder of `ift fit`")
    model.add_argument("--base", metavar="MODEL", help="model folder or hub id; its template: -- --data.template NAME")
    command.add_argument("--with-base", action="store_true", help="ask the run's untuned base model, too")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder, or one to go on with")
    command.add_argument("--protocol", help="wording, reading and averaging, where a benchmark knows several")
    command.add_argument("--mode", help="how to ask, where a benchmark knows several ways")
    command.add_argument("--shots", type=int, metavar="K", help="worked examples before each question")
    command.add_argument("--limit", type=int, metavar="N", help="only a random sample of N rows of each benchmark")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample (default: 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Ask and score; everything that can be refused is refused before the first prediction.

    Raises:
        UserError: a wrong argument, wrong data, or a folder that holds something else.
        SystemExit: `ift predict` failed, with its exit code; it has said why.
    """
    _check_further(options.further)
    tasks, systems = _tasks(options), _systems(options)
    jobs = [Job(task, system, _folder(options, task, system, len(tasks))) for system in systems for task in tasks]
    if all(job.is_scored for job in jobs):
        refuse_existing(jobs[0].folder)
    with TemporaryDirectory() as temporary:
        files = {task.benchmark.name: _prompts(task, options, Path(temporary)) for task in tasks}
        for job in jobs:
            check_folder(job, _about(job, options), files[job.task.benchmark.name])
        for job in jobs:
            begin(job, _about(job, options), files[job.task.benchmark.name])
    for job in jobs:
        if job.is_scored:
            print(f"{job.folder}: scored already")
            continue
        predict(job, _predict_options(job, options.further))
        if job.task.benchmark.judge is None:
            _score(job, options)
    _tell_judged([job for job in jobs if job.task.benchmark.judge is not None], options)


def _check_further(further: Sequence[str]) -> None:
    for argument in further:
        name = argument.partition("=")[0]
        if name in _DECIDED:
            raise UserError(f"{name}: `python -m eval run` decides it; give --run or --base, and --output.")


def _tasks(options: argparse.Namespace) -> list[Task]:
    tasks: dict[str, Task] = {}
    for text in options.benchmarks:
        name, _, path = text.partition("=")
        if name in tasks:
            raise UserError(f"BENCHMARK: '{name}' is named twice.")
        benchmark = get_benchmark(name, options.protocol)
        if not path and options.data is None:
            raise UserError(f"--data: required: the data of '{name}'. With several benchmarks, give {name}=PATH.")
        asked = how_asked(benchmark, mode=options.mode, shots=options.shots)
        tasks[name] = Task(benchmark, Path(path) if path else options.data, asked)
    if options.data is not None and (len(tasks) > 1 or "=" in options.benchmarks[0]):
        raise UserError("--data: it is the data of one benchmark alone. Give each its own: BENCHMARK=PATH.")
    return list(tasks.values())


def _systems(options: argparse.Namespace) -> list[System]:
    if options.run_folder is None:
        if options.with_base:
            raise UserError("--with-base: only a run has an untuned base model beside it. Give --run.")
        return [System("", ("--model.base", options.base))]
    folder = Path(options.run_folder)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"--run: '{folder}' is no run folder: it holds no manifest.json. A model is given with --base.")
    tuned = ("--run", options.run_folder)
    if not options.with_base:
        return [System("", tuned)]
    return [System("tuned", tuned), System("base", (*tuned, "--untuned", "true"))]


def _folder(options: argparse.Namespace, task: Task, system: System, num_tasks: int) -> Path:
    folder: Path = options.output / system.name
    return folder / task.benchmark.name if system.name or num_tasks > 1 else folder


def _prompts(task: Task, options: argparse.Namespace, temporary: Path) -> Path:
    path = temporary / f"{task.benchmark.name}.jsonl"
    prompts = prompts_of(task.benchmark, task.data, task.asked)
    count = write_jsonl(path, select(prompts, limit=options.limit, seed=options.seed))
    if not count:
        raise UserError(f"--data: {task.data} gives no prompt of {task.benchmark.name}.")
    return path


def _about(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Return what `run.json` holds; prompts are compared themselves."""
    return {"benchmark": job.task.benchmark.name, "model": list(job.system.arguments), "predict": options.further}


def _predict_options(job: Job, further: Sequence[str]) -> list[str]:
    """Return the user's options of `ift predict`, with the protocol's template for a model that nobody gave one."""
    template, given = job.task.benchmark.template, {argument.partition("=")[0] for argument in further}
    decided = job.system.arguments[0] == "--run" or given & {"--data.template", "--data", "--config"}
    return list(further) if template is None or decided else [f"--data.template={template}", *further]


def _score(job: Job, options: argparse.Namespace) -> None:
    for name in NAMES:  # of a report that was not finished
        (job.folder / name).unlink(missing_ok=True)
    arguments = argparse.Namespace(
        benchmark=job.task.benchmark.name,
        data=job.task.data,
        predictions=[job.named_answers],
        output=job.folder,
        protocol=options.protocol,
        scoring=None,
        judgements=None,
        limit=options.limit,
        seed=options.seed,
    )
    score_command.run(arguments)


def _tell_judged(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Print the commands with which a judge scores what was answered."""
    waiting = [job for job in jobs if not job.is_scored]
    groups: dict[str, list[Job]] = {}
    for job in waiting:
        judge = job.task.benchmark.judge
        alone = judge is not None and judge.single
        groups.setdefault(str(job.folder) if alone else job.task.benchmark.name, []).append(job)
    for group in groups.values():
        benchmark = group[0].task.benchmark
        folder = group[0].folder if len(group) == 1 else options.output / "judged" / benchmark.name
        print(f"{benchmark.name}: answered; a judge scores it. Next:")
        for line in _judge_commands(group, folder, options):
            print(f"    {line}")


def _judge_commands(group: Sequence[Job], folder: Path, options: argparse.Namespace) -> list[str]:
    task, lines = group[0].task, []
    for job in group:
        lines += _turn_commands(job, options.further) if job.in_turns else []
    limit = ["--limit", str(options.limit), "--seed", str(options.seed)] if options.limit is not None else []
    protocol = ["--protocol", options.protocol] if options.protocol is not None else []
    common = [task.benchmark.name, "--data", str(task.data), *protocol, *limit]
    answers, judgements = ["--predictions", *(job.named_answers for job in group)], str(folder / "judgements")
    asked, scored = [*common, *answers, "--output", judgements], [*common, *answers, "--judgements", judgements]
    lines.append(shlex.join(["python", "-m", "eval", "judge", *asked]))
    return [*lines, shlex.join(["python", "-m", "eval", "score", *scored, "--output", str(folder)])]


def _turn_commands(job: Job, further: Sequence[str]) -> list[str]:
    """Return the commands that ask the second turn, with the model's own first answer before it."""
    first, prompts = str(job.predictions / "predictions.jsonl"), str(job.folder / "prompts_2.jsonl")
    second = job.folder / "predictions_2"
    places = ["--data.path", prompts, "--output_dir", str(second)]
    passes = ["--predictions", first, str(second / "predictions.jsonl")]
    return [
        shlex.join(["python", "-m", "eval.conversations", "next", "--predictions", first, "--output", prompts]),
        shlex.join(["ift", "predict", *job.system.arguments, *further, *places]),
        shlex.join(["python", "-m", "eval.conversations", "join", *passes, "--output", str(job.answers)]),
    ]
