"""`train`: a SentencePiece vocabulary out of plain text."""

import argparse
from pathlib import Path
from typing import Any, get_args

from tokenizer.conversion import ModelType
from tokenizer.corpus import MAX_SENTENCE_CHARACTERS, CorpusSize
from tokenizer.training import DEFAULT_SAMPLE_BYTES, Normalization, TrainingSettings, train_tokenizer

DEFAULT_VOCAB_SIZE = 20_000
"""As the Chinese vocabulary that Chinese-LLaMA merged into LLaMA's."""


def add_input_options(command: argparse.ArgumentParser) -> None:
    """Add what says which text is read, and how much of it."""
    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help=".txt, a line is a sentence, or .jsonl, documents with a 'text'; also .gz, .zst, and folders of such",
    )
    command.add_argument(
        "--max-sentences",
        type=int,
        metavar="N",
        help="learn from a random sample of at most N sentences (default: as many as make "
        f"{DEFAULT_SAMPLE_BYTES // 10**6} MB of text, which is what memory depends on)",
    )
    command.add_argument("--seed", type=int, default=0, help="of that sample (default: 0)")


def add_commands(commands: Any) -> None:
    """Add the command to the program."""
    command: argparse.ArgumentParser = commands.add_parser("train", help="train a vocabulary on plain text")
    add_input_options(command)
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the tokenizer")
    command.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help=f"number of pieces in all (default: {DEFAULT_VOCAB_SIZE})",
    )
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
    command.add_argument(
        "--normalization",
        choices=get_args(Normalization),
        default="identity",
        help="Unicode normalisation of every text (default: identity, as LLaMA: text comes back as it went in)",
    )
    command.set_defaults(run=_train)


def print_sample(corpus: CorpusSize, num_used: int, options: argparse.Namespace) -> None:
    """Say what was left out or changed on the way to learning."""
    if num_used < corpus.num_sentences and options.max_sentences is None:
        print(
            f"a random sample of {DEFAULT_SAMPLE_BYTES // 10**6} MB was learned from ({num_used} of "
            f"{corpus.num_sentences} sentences), as memory grows with it; --max-sentences sets another size"
        )
    if corpus.num_split_lines:
        reasons = f"over {MAX_SENTENCE_CHARACTERS} characters long, or with U+2585 in them"
        print(f"{corpus.num_split_lines} lines were split: {reasons}")


def _train(options: argparse.Namespace) -> None:
    settings = TrainingSettings(
        vocab_size=options.vocab_size,
        model_type=options.model_type,
        character_coverage=options.character_coverage,
        byte_fallback=options.byte_fallback,
        max_sentences=options.max_sentences,
        seed=options.seed,
        normalization=options.normalization,
    )
    summary = train_tokenizer(options.input, options.output, settings)
    corpus = summary.corpus
    print(
        f"{options.output}: {settings.vocab_size} pieces from {summary.num_used_sentences} of {corpus.num_sentences} "
        f"sentences ({corpus.num_bytes} bytes) in {summary.seconds:.1f} s"
    )
    print_sample(corpus, summary.num_used_sentences, options)
    if not settings.byte_fallback:
        print("without byte fallback: newlines and characters without a piece become <unk>")
