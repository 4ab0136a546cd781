"""Templates as Jinja: the same text as ours for every template, and the same ids wherever they are handed out."""

from pathlib import Path
from typing import Any

import pytest
from byte_level import make_byte_level

from ift.data.chat_template_export import chat_messages, jinja_of, plain_prompt_ids, prompt_format
from ift.data.conversation import Conversation, Message
from ift.data.encoding import Encoder
from ift.data.templates import TEMPLATES


def talk(*texts: str, system: str = "", context: str = "") -> Conversation:
    messages = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]
    messages[0] = Message("user", texts[0], context)
    return Conversation(tuple(messages), system=system)


TALKS = [
    talk("Hello there", "b"),
    talk("Braces {{ x }} {% if %} %s", "b", context='a "context"\nin lines'),
    talk("a", "b", "c", "d", "e", system='Be "nice".\n'),
    talk("a", "b", "c", "d", context="k"),
    talk("a", "b", system="s", context="k"),
]


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """SentencePiece with begin-of-text, and byte-level BPE without."""
    from transformers import AutoTokenizer

    folder = make_byte_level(tmp_path_factory.mktemp("byte_level"), ["hello there", "### Response:"])
    return [AutoTokenizer.from_pretrained(str(one)) for one in (tokenizer_folder, folder)]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_text_is_ours(name: str, tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers:
        encoder = Encoder(tokenizer, TEMPLATES[name])
        jinja = jinja_of(TEMPLATES[name], encoder)
        for conversation in TALKS:
            text = tokenizer.apply_chat_template(
                chat_messages(conversation.prompt), chat_template=jinja, tokenize=False
            )
            assert text == "".join(written(encoder, one) for one in TEMPLATES[name].render(conversation.prompt))


def written(encoder: Encoder, segment: Any) -> str:
    """What a segment is as text, by the rules of the encoder."""
    tokenizer = encoder.tokenizer
    if segment.kind == "begin":
        return tokenizer.bos_token if encoder.begin_token_id is not None else ""
    missing = segment.kind == "token" and segment.text in encoder.missing_tokens()
    if segment.kind == "end" or (missing and segment.ends_response):
        return str(tokenizer.eos_token)
    return str(segment.text)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_pieces_of_the_card_give_our_ids(name: str, tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers:
        encoder = Encoder(tokenizer, TEMPLATES[name])
        pieces = prompt_format(encoder, []).pieces
        assert plain_prompt_ids(tokenizer, pieces, "Hello </s> there") == encoder.prompt_ids(talk("Hello </s> there"))


def test_a_chat_template_is_handed_out_only_where_it_gives_our_ids(tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers:
        encoder = Encoder(tokenizer, TEMPLATES["alpaca"])
        single = prompt_format(encoder, TALKS[:2])
        assert single.chat_template is not None and (single.compared, single.differing) == (2, 0)
    # SentencePiece puts a blank before every text that is tokenized by itself: here begin two turns to differ.
    assert prompt_format(Encoder(tokenizers[0], TEMPLATES["alpaca"]), TALKS).chat_template is None
    assert prompt_format(encoder, []).chat_template is None


def test_the_tokenizers_own_chat_template_stays(tokenizers: list[Any]) -> None:
    from ift.data.encoding import make_renderer

    tokenizer = tokenizers[1]
    encoder = Encoder(tokenizer, make_renderer(tokenizer, None))
    assert prompt_format(encoder, TALKS[:1]).chat_template == tokenizer.chat_template
