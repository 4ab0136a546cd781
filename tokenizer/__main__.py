"""`python -m tokenizer`: trains a SentencePiece vocabulary that transformers loads."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ift.errors import exit_code
from tokenizer.conversion import ModelType
from tokenizer.corpus import MAX_SENTENCE_CHARACTERS
from tokenizer.training import TrainingSettings, train_tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for a mistake of the user."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.run(options), debug=options.debug)


def _train(options: argparse.Namespace) -> None:
    settings = TrainingSettings(
        vocab_size=options.vocab_size,
        model_type=options.model_type,
        character_coverage=options.character_coverage,
        byte_fallback=options.byte_fallback,
        max_sentences=options.max_sentences,
        seed=options.seed,
    )
    summary = train_tokenizer(options.input, options.output, settings)
    corpus = summary.corpus
    print(
        f"{options.output}: {settings.vocab_size} pieces from {summary.num_used_sentences} of {corpus.num_sentences} "
        f"sentences ({corpus.num_bytes} bytes) in {summary.seconds:.1f} s"
    )
    if corpus.num_split_lines:
        reasons = f"over {MAX_SENTENCE_CHARACTERS} characters long, or with U+2585 in them"
        print(f"{corpus.num_split_lines} lines were split: {reasons}")
    if not settings.byte_fallback:
        print("without byte fallback: newlines and characters without a piece become <unk>")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("train", help="train a vocabulary on plain text")
    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".txt, a line is a sentence, or .jsonl, documents with a 'text'",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the tokenizer")
    command.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of pieces in all")
    command.add_argument("--model-type", choices=get_args(ModelType), default="bpe", help="default: bpe, as LLaMA")
    command.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="share of the text's characters with pieces of their own (default: 0.9995)",
    )
    command.add_argument(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="spell unseen characters in bytes instead of <unk> (default: on)",
    )
    command.add_argument("--max-sentences", type=int, metavar="N", help="learn from a random sample of N sentences")
    command.add_argument("--seed", type=int, default=0, help="of that sample (default: 0)")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=_train)
    return parser


if __name__ == "__main__":
    sys.exit(main())
