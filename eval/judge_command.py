"""`python -m eval judge`: asks a judge about systems' answers; `python -m eval score --judgements` makes the report."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.benchmark import Judge, how_asked, prompts_of
from eval.judge_client import Asking, ask_judge
from eval.judge_endpoint import Endpoint, check_library, read_key
from eval.judge_estimate import Estimate, Prices
from eval.judge_local import LocalJudge, ask_local_judge
from eval.judge_usable import unusable_replies
from eval.matching import match, select
from eval.output import asked_of
from eval.position_bias import bias_markdown, placed_scores, position_bias
from eval.score_command import chosen_benchmark, named_files
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, read_predictions


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser("judge", parents=[common], help="ask a judge about systems' answers")
    command.add_argument("benchmark", metavar="BENCHMARK", help="one of those that `list` shows")
    command.add_argument("--data", type=Path, required=True, metavar="PATH", help="the data that the prompts came from")
    command.add_argument("--predictions", nargs="+", required=True, metavar="[NAME=]FILE", help="what is judged")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets the judge's raw replies")
    command.add_argument("--protocol", help="as for prepare; where left out, what the predictions say")
    command.add_argument("--limit", type=int, metavar="N", help="only a random sample of N rows; the same as prepare")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample (default: 0)")
    command.add_argument(
        "--order-seed", type=int, default=0, metavar="S", help="of the order of the systems in a message (default: 0)"
    )
    _add_endpoint(command.add_argument_group("an OpenAI-compatible endpoint"))
    _add_asking(command.add_argument_group("how it is asked"))
    local = command.add_argument_group("a local model, through `ift predict`")
    local.add_argument("--judge-run", metavar="RUN", help="a run folder")
    local.add_argument("--judge-base", metavar="MODEL", help="a base model: folder or hub id")
    local.add_argument(
        "--predict", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT", help="last: further ones of ift predict"
    )
    command.set_defaults(run=run)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="up to and without /chat/completions")
    group.add_argument("--model", metavar="M", help="the judge's name there")
    group.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key; '' sends none (default: OPENAI_API_KEY)",
    )
    group.add_argument("--insecure-key", action="store_true", help="let the key go over plain http to another machine")
    group.add_argument(
        "--temperature",
        type=lambda text: None if text == "none" else float(text),
        default=0.0,
        metavar="T",
        help="'none' sends none (default: 0)",
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="limit of a reply; not sent by default")
    group.add_argument("--sampling-seed", type=int, metavar="S", help="sent as `seed`; not sent by default")


def _add_asking(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    group.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of one request (default: 120)")
    group.add_argument("--price-input", type=float, metavar="PRICE", help="of a million prompt tokens")
    group.add_argument("--price-output", type=float, metavar="PRICE", help="of a million reply tokens")
    group.add_argument("--yes", action="store_true", help="do not ask before paying")
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="replies by content (default: judge-cache beside the output folder)"
    )
    group.add_argument("--offline", action="store_true", help="take every reply from the cache, ask nothing")
    group.add_argument("--accept-failures", action="store_true", help="finish though some prompts have no reply")


def run(options: argparse.Namespace) -> None:
    """Ask, and say where the replies are."""
    local = options.judge_run is not None or options.judge_base is not None
    _check_choice(options, local=local)
    asking = None if local else _asking(options)
    benchmark_judge, systems = judged_systems(options)
    prompts = judge_prompts(options, benchmark_judge, systems)
    if asking is None:
        judge = LocalJudge(options.judge_run, options.judge_base, tuple(options.predict))
        replies = ask_local_judge(prompts, options.output, judge=judge)
    else:
        replies = ask_judge(prompts, options.output, asking=asking, confirm=lambda cost: _confirm(cost, options.yes))
    print(f"{options.output}: {len(replies)} replies")
    for sentence in unusable_replies(benchmark_judge, replies, systems=systems, data=options.data):
        print(sentence, file=sys.stderr)
    _report_bias(replies, options.output)
    print(f"score: python -m eval score {options.benchmark} --judgements {options.output} …")


def _report_bias(replies: Sequence[Prediction], output: Path) -> None:
    """Write position_bias.md where every message shows several systems beside each other."""
    if any(len(reply.meta.get("systems", ())) < 2 for reply in replies):
        return
    placed = placed_scores(replies)
    if not placed:  # a judge that chooses gives no scores
        return
    try:
        bias = position_bias(placed)
    except UserError as error:
        print(error)
        return
    (output / "position_bias.md").write_text(bias_markdown(bias), encoding="utf-8")
    print(f"{output / 'position_bias.md'}: p {bias.p_value:.4f} over {bias.n_items} items")


def judged_systems(options: argparse.Namespace) -> tuple[Judge, dict[str, list[Prediction]]]:
    """Return how the benchmark is judged, and the predictions, which answer exactly its prompts."""
    systems = {name: read_predictions(path) for name, path in named_files(options.predictions).items()}
    asked = asked_of([one for own in systems.values() for one in own])
    benchmark = chosen_benchmark(options, asked)
    if benchmark.judge is None:
        raise UserError(f"benchmark: {benchmark.name} needs no judge. Run `python -m eval score {benchmark.name}`.")
    how = how_asked(benchmark, mode=asked.mode if asked else None, shots=asked.shots if asked else None)
    return benchmark.judge, _match(options, [*prompts_of(benchmark, options.data, how)], systems)


def judge_prompts(
    options: argparse.Namespace, judge: Judge, systems: Mapping[str, Sequence[Prediction]]
) -> list[PromptRecord]:
    """Return what the judge is asked; every id is there once."""
    return select(judge.ask(systems, options.data, options.order_seed), limit=None, seed=0)


def _match(
    options: argparse.Namespace, prompts: Sequence[PromptRecord], systems: Mapping[str, Sequence[Prediction]]
) -> dict[str, list[Prediction]]:
    chosen = select(prompts, limit=options.limit, seed=options.seed)
    ids = {prompt.id for prompt in chosen}
    # Whole prediction files may be judged in part: what lies outside the sample is known, and left out.
    outside = {prompt.id for prompt in prompts} - ids
    return {name: match(chosen, own, outside=outside) for name, own in systems.items()}


def _check_choice(options: argparse.Namespace, *, local: bool) -> None:
    if options.judge_run is not None and options.judge_base is not None:
        raise UserError("--judge-run, --judge-base: give one of the two; a run names its base model itself.")
    if local and (options.base_url or options.model):
        raise UserError("--base-url: the judge is a local model already (--judge-run, --judge-base). Leave one out.")
    if not local and not (options.base_url and options.model):
        raise UserError(
            "--base-url, --model: who judges? Give both, or a local model with --judge-run or --judge-base."
        )
    if options.predict and not local:
        raise UserError("--predict: these are for a local judge. Give --judge-run or --judge-base, or leave them out.")


def _asking(options: argparse.Namespace) -> Asking:
    endpoint = Endpoint(
        options.base_url,
        options.model,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.sampling_seed,
        timeout_seconds=options.timeout,
        insecure_key=options.insecure_key,
    )
    key = None
    if not options.offline:
        check_library()
        key = read_key(options.key_variable, endpoint, os.environ)
        if key is None and options.key_variable:
            print(f"no key is sent ({options.key_variable} is not set)", file=sys.stderr)
    return Asking(
        endpoint,
        key,
        options.cache or options.output.parent / "judge-cache",
        concurrency=options.concurrency,
        prices=Prices(options.price_input, options.price_output),
        offline=options.offline,
        accept_failures=options.accept_failures,
    )


def _confirm(cost: Estimate, yes: bool) -> None:
    print(cost.sentence(), file=sys.stderr)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("--yes: asking a judge may cost money. Give --yes to agree to the estimate above.")
    print("ask? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("--yes: not agreed to; nothing was asked.")
