"""What a larger tokenizer adds to a base model, known before any weights are loaded.

In: `model.vocabulary`, and the tokenizers of base model and run. Out: `Growth`, the rows that embedding and head gain
and what each begins as. It follows from the two tokenizers and the settings alone, so that a trained adapter is put on
the very same model again, wherever it is loaded.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ift.artifacts import RunFolder
from ift.data.encoding import load_tokenizer
from ift.data.enlarged_tokenizer import KEY, EnlargedTokenizer, enlarged_tokenizer
from ift.errors import UserError, unknown_name
from ift.models.loading import read_config

Initialization = Literal["pieces", "mean", "random"]
INITIALIZATIONS = ("pieces", "mean", "random")
TrainedRows = Literal["new", "all", "none"]
TRAINED_ROWS = ("new", "all", "none")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with more tokens than that of the base model, whose embedding and head gain rows for them.

    Rows of the base model's own tokens are those of its files, bit for bit, as long as they are not trained. Adapter,
    tokenizer and trained rows are saved together, and 'ift merge' writes the enlarged model.
    """

    tokenizer: str | None = None
    """Folder or hub id of the larger tokenizer (of 'python -m tokenizer merge', for one), used for the data; it must
    have every token of the base model's under the same id. By default the base model's own."""
    special_tokens: list[str] | None = None
    """Special tokens to add to it, such as those of a template (`<|im_start|>`)."""
    initialization: Initialization = "pieces"
    """What new rows begin as: the mean of the rows of the `pieces` that the base model's tokenizer cuts the token into;
    the `mean` of all its rows, which special tokens get in any case; or `random`, drawn with the mean and standard
    deviation of each column."""
    train: TrainedRows | None = None
    """Rows that are trained beside the adapter: `new` ones, `all` of embedding and head, or `none`. By default `new`
    where the adapter can (LoRA and its like), else `none`; methods that train the embedding themselves (full, lisa,
    embeddings) always train all, and an adapter that is gone on with those that it holds."""
    pad_to_multiple_of: int | None = None
    """Round the number of rows up to a multiple of this, for speed; they are never fewer than the base model has."""
    seed: int | None = None
    """Of random rows; follows the seed of the run."""

    def __post_init__(self) -> None:
        if self.initialization not in INITIALIZATIONS:
            raise unknown_name(f"{KEY}.initialization", self.initialization, INITIALIZATIONS)
        if self.train is not None and self.train not in TRAINED_ROWS:
            raise unknown_name(f"{KEY}.train", self.train, TRAINED_ROWS)
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise UserError(f"{KEY}.pad_to_multiple_of: {self.pad_to_multiple_of} is less than 1.")

    @property
    def enlarged(self) -> EnlargedTokenizer:
        """The tokenizer."""
        return EnlargedTokenizer(self.tokenizer, self.special_tokens)


@dataclass(frozen=True)
class Growth:
    """The rows that embedding and head of a base model gain."""

    rows_before: int
    """Of the base model's embedding."""
    rows: int
    known: tuple[int, ...]
    """Ids of the base model's tokenizer; padding has rows, too, and is none of them."""
    pieces: Mapping[int, tuple[int, ...]]
    """Ids of new tokens, ascending, each with the known ids whose mean it begins as; none stands for all."""
    initialization: Initialization
    seed: int

    @property
    def new(self) -> list[int]:
        """Ids of the new tokens, ascending."""
        return list(self.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of all that decides the rows, besides the base model's weights."""
        drawn = self.seed if self.initialization == "random" else None
        parts = [self.rows_before, self.rows, self.known, list(self.pieces.items()), self.initialization, drawn]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def note(self) -> str:
        """Return what was decided, in one line."""
        new = self.new
        told = f"{KEY}: {len(new):,} new tokens (ids {new[0]} to {new[-1]})" if new else f"{KEY}: no new token"
        told += f"; embedding and head have {self.rows:,} rows ({self.rows_before:,} before)"
        if new and self.initialization == "pieces":
            without = sum(not pieces for pieces in self.pieces.values())
            told += f"; {len(new) - without:,} begin as the mean of their pieces"
            told += f", {without:,} (special or without pieces) as the mean of all rows" if without else ""
        elif new:
            told += f"; they begin at {'the mean of all rows' if self.initialization == 'mean' else 'random'}"
        return told


def growth_of(vocabulary: Vocabulary | None, base: str, *, seed: int) -> Growth | None:
    """Compare the tokenizers of base model and run, and return what the model gains.

    Args:
        vocabulary: `model.vocabulary`.
        base: folder or hub id of the base model.
        seed: of random rows, where the vocabulary names none.

    Returns:
        `None` where nothing changes, and where the base model's config cannot be read.

    Raises:
        UserError: the larger tokenizer lacks a token of the base model's, or has it under another id.
    """
    config = read_config(base) if vocabulary is not None else None
    if vocabulary is None or config is None:  # load_base_model says what is wrong
        return None
    rows_before = int(config.get_text_config(decoder=True).vocab_size)
    old, new = load_tokenizer("model.base", base), enlarged_tokenizer(base, vocabulary.enlarged)
    _check_kept(vocabulary, old.get_vocab(), new.get_vocab())
    known = tuple(sorted({index for index in old.get_vocab().values() if index < rows_before}))
    pieces = dict(_pieces(old, new, known=frozenset(known), look=vocabulary.initialization == "pieces"))
    rows = max(rows_before, *(index + 1 for index in pieces)) if pieces else rows_before
    multiple = vocabulary.pad_to_multiple_of or 1
    rows = -(-rows // multiple) * multiple
    if rows == rows_before and not pieces:
        return None
    drawn = vocabulary.seed if vocabulary.seed is not None else seed
    return Growth(rows_before, rows, known, pieces, vocabulary.initialization, drawn)


def _check_kept(vocabulary: Vocabulary, old: Mapping[str, int], new: Mapping[str, int]) -> None:
    key = f"{KEY}.tokenizer: '{vocabulary.tokenizer}'"
    repair = "Take one that was made from the base model's (python -m tokenizer merge), which only adds tokens."
    for token, index in sorted(old.items(), key=lambda one: one[1]):
        if token not in new:
            raise UserError(
                f"{key} has {len(new)} tokens and lacks '{token}' (id {index}) of the {len(old)} of model.base, whose "
                f"rows could not be told apart any more. {repair}"
            )
        if new[token] != index:
            raise UserError(
                f"{key} has the token '{token}' under id {new[token]}, and the tokenizer of model.base under "
                f"{index}, so its row would be another token's. {repair}"
            )
    taken = {index: token for token, index in old.items()}
    for token, index in new.items():
        if token not in old and index in taken:
            raise UserError(f"{key} gives the id {index} to '{token}' and to '{taken[index]}'. {repair}")


def _pieces(old: Any, new: Any, *, known: frozenset[int], look: bool) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the ids of new tokens, ascending, with the known ids that the old tokenizer cuts each into.

    The old tokenizer's model alone cuts: nothing is normalised, and no blank comes before the text, as is right for a
    token that may stand inside of a word. A special token's spelling says nothing of it, so it has no pieces.
    """
    added = new.added_tokens_decoder
    model = old.backend_tokenizer.model
    own = known - {old.unk_token_id}
    for token, index in sorted(new.get_vocab().items(), key=lambda one: one[1]):
        if index in known:
            continue
        if not look or (index in added and added[index].special):
            yield index, ()
            continue
        spelled = _in_vocabulary_form(token, old) if index in added else token
        yield index, tuple(one.id for one in model.tokenize(spelled) if one.id in own)


def _in_vocabulary_form(text: str, tokenizer: Any) -> str:
    """Return an added token as ordinary ones are written: in GPT-2's letters for bytes, or with blanks as ▁."""
    backend = tokenizer.backend_tokenizer
    if "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}":
        from tokenizers.pre_tokenizers import ByteLevel

        whole = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return "".join(part for part, _ in whole)
    return text.replace(" ", "▁") if "▁" in tokenizer.get_vocab() else text


def describe(vocabulary: Vocabulary, growth: Growth, *, seed: int) -> dict[str, Any]:
    """Return what a manifest says of an enlarged model: the settings that make it again, and what they gave."""
    settings = {**asdict(vocabulary), "seed": vocabulary.seed if vocabulary.seed is not None else seed}
    counts = {"rows_before": growth.rows_before, "rows": growth.rows, "new_tokens": len(growth.new)}
    return {"settings": settings, **counts, "fingerprint": growth.fingerprint}


def vocabulary_of_run(run: RunFolder, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `model.vocabulary` for the base model of a run, with the tokenizer in its folder; none without one."""
    found = manifest.get("vocabulary")
    if not found:
        return None
    return {**found["settings"], "tokenizer": str(run.tokenizer), "special_tokens": None}


def growth_of_run(key: str, run: RunFolder, manifest: Mapping[str, Any], *, base: str) -> Growth | None:
    """Return by what a run's base model was enlarged before it was trained.

    Args:
        key: names the run, for errors.
        run: its folder.
        manifest: of the run.
        base: where its base model is now.

    Raises:
        UserError: the tokenizer of base model or run is not what it was.
    """
    settings = vocabulary_of_run(run, manifest)
    if settings is None:
        return None
    growth = growth_of(Vocabulary(**settings), base, seed=0)
    check_same_growth(key, growth, manifest["vocabulary"]["fingerprint"], where=str(run.root))
    return growth


def check_same_growth(key: str, growth: Growth | None, fingerprint: str | None, *, where: str) -> None:
    """Refuse to put what was trained beside other rows.

    Args:
        key: the configuration key, for errors.
        growth: of the base model here.
        fingerprint: of what it was trained with.
        where: names what was trained.

    Raises:
        UserError: the two differ.
    """
    if (growth.fingerprint if growth is not None else None) == fingerprint:
        return
    if fingerprint is None:
        raise UserError(f"{key}: '{where}' was trained without {KEY}, and here there is one. Leave it out.")
    if growth is None:
        raise UserError(f"{key}: '{where}' was trained with an enlarged vocabulary. Set {KEY} as in its config.yaml.")
    raise UserError(
        f"{key}: the vocabulary that '{where}' was trained with is not what {KEY} gives now: the tokenizer of "
        "model.base, the larger one or the settings have changed since. Restore them."
    )


def enlarged_config(config: Any, growth: Growth | None) -> Any:
    """Return a copy of a model's config with the enlarged number of rows; the config itself where nothing changes."""
    if config is None or growth is None:
        return config
    changed = copy.deepcopy(config)
    for one in configs_of(changed):
        one.vocab_size = growth.rows
    return changed


def configs_of(config: Any) -> Sequence[Any]:
    """Return the parts of a config that state a number of rows."""
    parts = {id(one): one for one in (config, config.get_text_config(decoder=True))}
    return [one for one in parts.values() if hasattr(one, "vocab_size")]
