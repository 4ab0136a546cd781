"""Pieces of tokens for showing: they join to the responses, keep characters whole, and show what would be hidden."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import NASTY, row_of, talks_of

from ift.commands.token_view import Piece, pieces, visible
from ift.data.encoding import IGNORE_INDEX, Encoder, Example, load_tokenizer, make_renderer
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES, Segment

HAN = "绿色的河流，面包。喵星人去火星旅行𠮷"
FAMILY = "👩‍👩‍👧‍👦"


def encoder_of(folder: Path) -> Encoder:
    tokenizer = load_tokenizer("model.base", str(folder))
    return Encoder(tokenizer, make_renderer(tokenizer, TEMPLATES["alpaca"]))


def responses_in(shown: list[Piece]) -> list[str]:
    """Return the text of each run of supervised pieces, up to its special token."""
    found: list[str] = []
    before = False
    for piece in shown:
        if piece.supervised and not before:
            found.append("")
        if piece.supervised and not piece.special:
            found[-1] += piece.text
        before = piece.supervised
    return found


def check_covers(example: Example, shown: list[Piece]) -> None:
    """Every token is in exactly one piece, and has its own label's side."""
    assert [token for piece in shown for token in piece.ids] == example.input_ids.tolist()
    position = 0
    for piece in shown:
        assert piece.position == position
        counted = example.labels[position : position + len(piece.ids)] != IGNORE_INDEX
        if position == 0:
            counted[0] = False  # nothing predicts it
        assert piece.supervised == counted.any()
        position += len(piece.ids)


@pytest.mark.parametrize("layout", ["alpaca", "messages", "text"])
def test_supervised_pieces_are_the_responses(layout: str, any_tokenizer_folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of(any_tokenizer_folder)
    talks = talks_of(layout)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row_of(layout, talk)) + "\n" for talk in talks), encoding="utf-8")
    folder = prepare(
        [Source(str(path), layout)], encoder, PreparationSettings(9999), cache_dir=tmp_path / "cache", key="data"
    )
    store = ExampleStore(folder)
    assert len(store) == len(talks)
    for index, talk in enumerate(talks):
        shown = pieces(store[index], encoder.tokenizer)
        check_covers(store[index], shown)
        if layout == "text" and encoder.begin_token_id is None:
            continue  # the first token of a document is not learned, so its piece is not supervised
        assert responses_in(shown) == talk.responses
        assert not [piece for piece in shown if not piece.text]


@pytest.mark.parametrize("text", [HAN, FAMILY, "e\u0301te\u0301", "👍🏽 ok", "\ufffd and \ufffd\ufffd", "❤️"])
def test_characters_of_several_tokens_are_one_piece(text: str, any_tokenizer_folder: Path) -> None:
    encoder = encoder_of(any_tokenizer_folder)
    ids = np.array(encoder.response_ids(text), dtype=np.int64)
    shown = pieces(Example(ids, ids.copy()), encoder.tokenizer)
    assert "".join(piece.text for piece in shown) == text
    if "\ufffd" not in text:
        assert not [piece for piece in shown if "\ufffd" in piece.text]
    if text == HAN:
        assert len(shown) > 3
    if text == FAMILY:
        assert len(shown) == 1 and len(shown[0].ids) > 4
    if text[0] == "e":
        assert not [piece for piece in shown if piece.text.startswith("\u0301")]


def test_only_special_tokens_are_shown_as_special(any_tokenizer_folder: Path) -> None:
    encoder = encoder_of(any_tokenizer_folder)
    end = encoder.tokenizer.eos_token
    segments = [Segment("", "begin"), Segment(f"{end} is text"), Segment(end, supervised=True), Segment("", "end")]
    (example,) = encoder.encode([segments])
    shown = pieces(example, encoder.tokenizer)
    begins = encoder.begin_token_id is not None
    assert [piece.text for piece in shown if piece.special] == [*(["<s>"] if begins else []), end]
    assert "".join(piece.text for piece in shown if not piece.special) == f"{end} is text{end}"
    assert responses_in(shown) == [end]


def test_what_is_learned_in_place_of_a_token_is_named(any_tokenizer_folder: Path) -> None:
    encoder = encoder_of(any_tokenizer_folder)
    segments = [
        Segment("question"),
        Segment("answer", supervised=True),
        Segment("more", stop_label=True),
        Segment("b", supervised=True),
    ]
    (example,) = encoder.encode([segments])
    shown = pieces(example, encoder.tokenizer)
    (learning,) = [piece for piece in shown if piece.learns]
    assert learning.learns == encoder.tokenizer.eos_token and not learning.supervised
    place = example.labels.tolist().index(encoder.tokenizer.eos_token_id)
    assert learning.position == place and learning.ids == (example.input_ids[place],)
    assert responses_in(shown) == ["answer", "b"]


def test_nothing_hidden_stays_hidden() -> None:
    assert visible("a\nb\tc\r\x1b[31m\x00\x7f") == "a⏎\nb⇥\tc␍␛[31m␀␡"
    assert visible("\u202ecba\u2066\x9b\u200b") == "⟨U+202E⟩cba⟨U+2066⟩⟨U+009B⟩⟨U+200B⟩"
    plain = [text for text in NASTY if not set(text) & set("\n\t\r\ufeff")]
    assert len(plain) > 8 and [visible(text) for text in plain] == plain


def test_no_control_character_reaches_a_terminal() -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    left: set[Any] = {character for character in visible(everything) if ord(character) < 0x20}
    assert left == {"\n", "\t"}
    assert not set(visible(everything)) & {chr(code) for code in [*range(0x7F, 0xA0), *range(0x202A, 0x202F)]}
