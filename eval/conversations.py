"""Prompts of several turns, asked one turn at a time: each pass of `ift predict` answers the next one.

The first prompt of a conversation carries all the user's turns in its `meta`, and `ift predict` hands it on. So the
prompts of the next pass come from the predictions alone, the model's own answers between the user's turns:

    ift predict … --data.path prompts.jsonl --output_dir first
    python -m eval.conversations next --predictions first/predictions.jsonl --output second.jsonl
    ift predict … --data.path second.jsonl --output_dir second
    python -m eval.conversations join --predictions first/predictions.jsonl second/predictions.jsonl --output all.jsonl

`next` takes all passes so far; when it has nothing left to ask, `join` gives the file that `judge` and `score` read.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ift.errors import UserError, exit_code
from ift.records import Json, Prediction, PromptRecord, read_predictions, write_jsonl


def first_prompt(name: str, turns: Sequence[str], meta: dict[str, Json]) -> PromptRecord:
    """Return the prompt of a conversation's first turn; with one turn only, a prompt like any other."""
    more = {"turns": list(turns), "answers": []} if len(turns) > 1 else {}
    return PromptRecord(name, ({"role": "user", "content": turns[0]},), meta={**meta, **more})


def answers_of(prediction: Prediction) -> list[str]:
    """Return the model's answers so far, the first turn's first.

    Raises:
        UserError: options were ranked instead.
    """
    if prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has no 'response'; a conversation needs generated text.")
    return [*prediction.meta.get("answers", ()), prediction.response]


def next_prompts(predictions: Sequence[Prediction]) -> Iterator[PromptRecord]:
    """Yield a prompt for each conversation that has another turn: all turns and answers so far, then that turn."""
    for prediction in predictions:
        turns, answers = prediction.meta.get("turns", ()), answers_of(prediction)
        if len(answers) >= len(turns):
            continue
        messages = [
            message
            for turn, answer in zip(turns, answers, strict=False)
            for message in ({"role": "user", "content": turn}, {"role": "assistant", "content": answer})
        ]
        messages.append({"role": "user", "content": turns[len(answers)]})
        yield PromptRecord(prediction.id, tuple(messages), meta={**prediction.meta, "answers": answers})


def join(passes: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Return the predictions of all passes as one, the last answer of each conversation holding those before it.

    Args:
        passes: predictions of the first pass, the second, and so on.

    Raises:
        UserError: a pass that does not follow from the one before it.
    """
    joined = {prediction.id: prediction for prediction in passes[0]}
    for number, later in enumerate(passes[1:], 2):
        for prediction in later:
            before = joined.get(prediction.id)
            if before is None or prediction.meta.get("answers") != answers_of(before):
                raise UserError(
                    f"--predictions: '{prediction.id}' of file {number} does not follow from the files before it. Give "
                    "the passes in their order, each made with `next` from those before."
                )
            joined[prediction.id] = replace(prediction, reference=before.reference)
    return list(joined.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `next` or `join` and return the exit code: 0, or 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m eval.conversations", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("next", "write the prompts of the next turn"), ("join", "write the passes as one file")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--predictions", type=Path, nargs="+", required=True, metavar="FILE", help="pass by pass")
        command.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options), debug=False)


def _run(options: argparse.Namespace) -> None:
    predictions = join([read_predictions(path) for path in options.predictions])
    prompts = list(next_prompts(predictions))
    if options.command == "next":
        if not prompts:
            raise UserError("--predictions: every conversation is finished. `python -m eval.conversations join` them.")
        print(f"{options.output}: {write_jsonl(options.output, prompts)} prompts")
        return
    count = write_jsonl(options.output, predictions)
    print(f"{options.output}: {count} predictions, {len(prompts)} of them with turns that are not asked yet")


if __name__ == "__main__":
    sys.exit(main())
