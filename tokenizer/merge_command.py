"""`merge` and `extend`: new pieces for a vocabulary that exists."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ift.errors import UserError
from tokenizer.bases import (
    TokenizerFile,
    byte_level_settings,
    copy_chat_template,
    find_tokenizer,
    sentencepiece_settings,
)
from tokenizer.byte_level import ByteLevel, texts_of
from tokenizer.byte_level_merging import add_texts, read_texts
from tokenizer.conversion import write_tokenizer
from tokenizer.corpus import measure, sample_sentences
from tokenizer.extension import extend
from tokenizer.merging import Scores, describe, merge_models, sha256, shown
from tokenizer.output import check_new, new_folder, write_json
from tokenizer.train_command import add_input_options, print_sample
from tokenizer.training import sample_size

PAD = "<pad>"


def add_commands(commands: Any) -> None:
    """Add the commands to the program."""
    merge: argparse.ArgumentParser = commands.add_parser("merge", help="add the pieces of one vocabulary to another")
    _add_base(merge)
    merge.add_argument(
        "--add",
        type=Path,
        required=True,
        metavar="PATH",
        help="SentencePiece model whose pieces are added, or a folder with one; for a byte-level base also another "
        "byte-level tokenizer.json",
    )
    merge.add_argument(
        "--scores",
        choices=get_args(Scores),
        help="of the new pieces of a SentencePiece base: zero, as Chinese-LLaMA (default), or ranked, above all others "
        "in their order",
    )
    _add_pad(merge)
    merge.set_defaults(run=_merge)
    extend_: argparse.ArgumentParser = commands.add_parser(
        "extend", help="continue the training of a byte-level BPE tokenizer on more text"
    )
    _add_base(extend_)
    add_input_options(extend_)
    extend_.add_argument("--add-pieces", type=int, required=True, metavar="N", help="number of new tokens")
    _add_pad(extend_)
    extend_.set_defaults(run=_extend)


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base",
        type=Path,
        required=True,
        metavar="PATH",
        help="tokenizer whose ids stay: a SentencePiece BPE model, a byte-level tokenizer.json, or a folder with one",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the tokenizer")


def _add_pad(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pad-token", nargs="?", const=PAD, metavar="TOKEN", help=f"add a padding token as the last (default: {PAD})"
    )


def _merge(options: argparse.Namespace) -> None:
    check_new(options.output)
    base = find_tokenizer("--base", options.base)
    added = find_tokenizer("--add", options.add)
    if base.kind == "json":
        _merge_byte_level(options, base, added)
    elif added.kind == "json":
        raise UserError(
            f"--add: {added.path}: the base is a SentencePiece model. Give a SentencePiece model to add too."
        )
    else:
        _merge_sentencepiece(options, base, added)


def _merge_sentencepiece(options: argparse.Namespace, base: TokenizerFile, added: TokenizerFile) -> None:
    scores: Scores = options.scores or "zero"
    settings = sentencepiece_settings(base, pad_token=options.pad_token)
    merged = merge_models(base.path, added.path, scores=scores, pad_token=options.pad_token)
    with new_folder(options.output) as folder:
        write_tokenizer(folder, merged.model, settings)
        copy_chat_template(base, folder)
        write_json(folder / "merge.json", describe(merged, base.path, added.path, scores))
    kinds = "".join(f", {number} {kind}" for kind, number in merged.left_out.items())
    pad = f" + 1 ({merged.pad_token})" if merged.pad_token else ""
    print(f"{options.output}: {merged.num_pieces} pieces: {merged.num_base} + {len(merged.new)} new{pad}")
    print(f"not added of {added.path}: {merged.num_in_base} in the base, {merged.num_duplicates} duplicates{kinds}")
    if merged.normalizers[0] != merged.normalizers[1]:
        print("normalisation stays {}; the new pieces were learned from text under {}".format(*merged.normalizers))
    if merged.unreachable:
        found = f"{len(merged.unreachable)} new pieces that no text becomes, as no two pieces make them"
        print(f"{found}: {shown(merged.unreachable)}")
    if merged.unreachable_base:
        found = f"{len(merged.unreachable_base)} pieces of the base that no text becomes any more"
        print(f"{found}: {shown(merged.unreachable_base)}")
    for reason in merged.differences:
        advice = "" if scores == "ranked" else "; --scores ranked tells all pieces apart"
        print(f"tokenizer.json may give other ids than tokenizer.model in rare places: {reason}{advice}")


def _merge_byte_level(options: argparse.Namespace, base: TokenizerFile, added: TokenizerFile) -> None:
    if options.scores is not None:
        raise UserError(f"--scores: '{options.scores}': a byte-level base has merges and no scores. Leave it out.")
    byte_level = ByteLevel("--base", base.path)
    result = add_texts(byte_level, list(read_texts(added)))
    if not byte_level.new_tokens:
        raise UserError(f"--add: {added.path}: holds no piece that can be added: {result.left_out}.")
    report = {
        "added": {"file": str(added.path), "sha256": sha256(added.path), "left_out": result.left_out},
        "num_pieces": result.num_pieces,
        "num_links": result.num_links,
        "unreachable": list(result.unreachable),
    }
    size = _write_byte_level(options, base, byte_level, report)
    links = f"{result.num_pieces} pieces and {result.num_links} links between them"
    print(f"{options.output}: {size} tokens: {byte_level.first_new_id} + {len(byte_level.new_tokens)} new ({links})")
    print("not added: " + (", ".join(f"{number} {reason}" for reason, number in result.left_out.items()) or "none"))
    if result.unreachable:
        print(f"{len(result.unreachable)} new tokens whose own text is cut otherwise: {shown(result.unreachable)}")


def _extend(options: argparse.Namespace) -> None:
    check_new(options.output)
    if options.add_pieces < 1:
        raise UserError(f"--add-pieces: {options.add_pieces} is out of range. Give 1 or more.")
    if options.max_sentences is not None and options.max_sentences < 1:
        raise UserError(f"--max-sentences: {options.max_sentences} is out of range. Give 1 or more, or leave it out.")
    base = find_tokenizer("--base", options.base)
    if base.kind != "json":
        raise UserError(f"--base: {base.path}: is a SentencePiece model: train a vocabulary on the text and merge it.")
    byte_level = ByteLevel("--base", base.path)
    corpus = measure(options.input)
    num_used = sample_size(corpus, options.max_sentences)
    sentences = sample_sentences(options.input, num_sentences=num_used, total=corpus.num_sentences, seed=options.seed)
    result = extend(byte_level, sentences, num_pieces=options.add_pieces)
    report = {"num_sentences": num_used, "seed": options.seed, "num_dropped_merges": result.num_dropped}
    size = _write_byte_level(options, base, byte_level, report)
    print(f"{options.output}: {size} tokens: {byte_level.first_new_id} + {result.num_new} new")
    print_sample(corpus, num_used, options)


def _write_byte_level(
    options: argparse.Namespace, base: TokenizerFile, byte_level: ByteLevel, report: Mapping[str, Any]
) -> int:
    """Write the folder and return the number of tokens."""
    tokenizer = byte_level.extended()
    if options.pad_token is not None:
        if tokenizer.token_to_id(options.pad_token) is not None:
            found = tokenizer.token_to_id(options.pad_token)
            raise UserError(f"--pad-token: '{options.pad_token}' is a token already (id {found}). Leave it out.")
        tokenizer.add_special_tokens([options.pad_token])
    head = {
        "format": 1,
        "base": {"file": str(base.path), "sha256": sha256(base.path), "tokens": byte_level.first_new_id},
        "size": tokenizer.get_vocab_size(),
        "first_new_id": byte_level.first_new_id,
        "num_new_pieces": len(byte_level.new_tokens),
        "new_pieces": texts_of(byte_level.new_tokens),
        "pad_token": options.pad_token,
    }
    with new_folder(options.output) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", byte_level_settings(base, pad_token=options.pad_token))
        copy_chat_template(base, folder)
        write_json(folder / "merge.json", {**head, **report})
    return tokenizer.get_vocab_size()
