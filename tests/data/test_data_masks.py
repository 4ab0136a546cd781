"""Supervised tokens decode to exactly the responses and end-of-text, for every layout, template and tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import ENDED_BY_ONE_TOKEN, Talk, row_of, talks_of

from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer, make_renderer
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES, Template

LAYOUTS = ["alpaca", "messages", "sharegpt", "text"]
OWN = Template(
    name="own",
    user="Q: {text}\nA:",
    user_with_context="C: {context} Q: {text}\nA:",
    system="Answer.",
    between_turns="",
)

TEXT_TEMPLATES = [*(TEMPLATES[name] for name in ENDED_BY_ONE_TOKEN), OWN]


def store_of(folder: Path, template: Template | None, layout: str, talks: list[Talk], tmp_path: Path) -> Any:
    tokenizer = load_tokenizer("model.base", str(folder))
    encoder = Encoder(tokenizer, make_renderer(tokenizer, template))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row_of(layout, talk)) + "\n" for talk in talks), encoding="utf-8")
    source = Source(str(path), layout)
    store = ExampleStore(
        prepare([source], encoder, PreparationSettings(9999), cache_dir=tmp_path / "cache", key="data.sources")
    )
    return encoder, store


def supervised_runs(labels: Any) -> list[list[int]]:
    """Return the stretches of supervised labels."""
    runs: list[list[int]] = []
    previous = False
    for label in labels.tolist():
        if label != IGNORE_INDEX:
            runs = [*runs[:-1], [*runs[-1], label]] if previous else [*runs, [label]]
        previous = label != IGNORE_INDEX
    return runs


def check(encoder: Encoder, store: ExampleStore, talks: list[Talk], end: int) -> None:
    assert len(store) == len(talks), store.counts[0].rejected
    for index, talk in enumerate(talks):
        example = store[index]
        counted = example.labels != IGNORE_INDEX
        assert np.array_equal(example.labels[counted], example.input_ids[counted])
        runs = supervised_runs(example.labels)
        assert [run[-1] for run in runs] == [end] * len(talk.responses)
        texts = [encoder.tokenizer.decode(run[:-1], clean_up_tokenization_spaces=False) for run in runs]
        assert texts == talk.responses
        assert store.num_supervised(np.array([index])) == [counted[1:].sum()]
        assert store.num_tokens(np.array([index])) == [len(example.labels)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "template", [*(TEMPLATES[name] for name in ENDED_BY_ONE_TOKEN), OWN], ids=lambda template: template.name
)
def test_supervised_tokens_are_the_responses(
    template: Template, layout: str, any_tokenizer_folder: Path, tmp_path: Path
) -> None:
    talks = talks_of(layout)
    encoder, store = store_of(any_tokenizer_folder, template, layout, talks, tmp_path)
    # What a template names is taken where the tokenizer has it, else end-of-text stands for it.
    named = encoder.tokenizer.get_vocab().get("<|im_end|>") if template.name in ("chatml", "qwen") else None
    check(encoder, store, talks, named if named is not None else encoder.tokenizer.eos_token_id)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_they_are_with_the_tokenizers_own_template(layout: str, byte_level_folder: Path, tmp_path: Path) -> None:
    talks = talks_of(layout)
    encoder, store = store_of(byte_level_folder, None, layout, talks, tmp_path)
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    check(encoder, store, talks, end)
    assert encoder.stop_token_ids == sorted({end, encoder.tokenizer.eos_token_id})


def test_sentencepiece_itself_reads_the_responses(tokenizer_folder: Path, tmp_path: Path) -> None:
    """The same ids through the original library, which knows nothing of transformers."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "tokenizer.model"))
    talks = talks_of("messages")
    _, store = store_of(tokenizer_folder, TEMPLATES["alpaca"], "messages", talks, tmp_path)
    for index, talk in enumerate(talks):
        runs = supervised_runs(store[index].labels)
        assert [processor.decode(run[:-1]) for run in runs] == talk.responses
        assert [run[:-1] for run in runs] == [processor.encode(text) for text in talk.responses]


def test_message_text_never_becomes_a_special_token(any_tokenizer_folder: Path, tmp_path: Path) -> None:
    talks = talks_of("messages")
    encoder, store = store_of(any_tokenizer_folder, TEMPLATES["plain"], "messages", talks, tmp_path)
    special = set(encoder.tokenizer.all_special_ids)
    starts = encoder.tokenizer("a").input_ids[0] in special  # begin-of-text
    for index, talk in enumerate(talks):
        found = [token for token in store[index].input_ids.tolist() if token in special]
        assert len(found) == starts + len(talk.turns)
        assert set(found[starts:]) == {encoder.tokenizer.eos_token_id}


def test_an_unsupervised_response_has_the_ids_of_a_supervised_one(any_tokenizer_folder: Path, tmp_path: Path) -> None:
    """What is not learned from is still read as it will be at inference."""
    rows = [row_of("messages", talk) for talk in talks_of("messages")]
    tokenizer = load_tokenizer("model.base", str(any_tokenizer_folder))
    encoder = Encoder(tokenizer, TEMPLATES["alpaca"])
    ids = []
    for supervise_all in (False, True):
        for row in rows:
            for turn in row["messages"]:
                if supervise_all:
                    turn.pop("supervised", None)
        path = tmp_path / f"{supervise_all}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        folder = prepare(
            [Source(str(path), "messages")],
            encoder,
            PreparationSettings(9999),
            cache_dir=tmp_path / "cache",
            key="data.sources",
        )
        store = ExampleStore(folder)
        ids.append([store[index].input_ids.tolist() for index in range(len(store))])
    assert ids[0] == ids[1]


class TestChatTemplates:
    """Templates of tokenizers that cannot be segmented are refused with a reason."""

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", "rewrites the text"),
            ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "without a special token"),
            ("{{ raise_exception('no') }}", "refuses the conversation"),
            (
                "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}",
                "another prompt for generation",
            ),
        ],
    )
    def test_is_refused(self, source: str, reason: str, byte_level_folder: Path) -> None:
        tokenizer = load_tokenizer("model.base", str(byte_level_folder))
        tokenizer.chat_template = source
        with pytest.raises(ValueError, match=reason) as caught:
            make_renderer(tokenizer, None)
        assert str(caught.value).startswith("data.template: 'tokenizer'")

    def test_without_one(self, tokenizer_folder: Path) -> None:
        with pytest.raises(ValueError, match="this tokenizer has none"):
            make_renderer(load_tokenizer("model.base", str(tokenizer_folder)), None)

    def test_a_template_that_trims(self, byte_level_folder: Path, tmp_path: Path) -> None:
        """As Llama 3's does: the supervised text is the trimmed response, which is what the model will see."""
        tokenizer = load_tokenizer("model.base", str(byte_level_folder))
        tokenizer.chat_template = str(tokenizer.chat_template).replace("m['content']", "m['content'] | trim")
        tokenizer.save_pretrained(str(tmp_path / "trimming"))
        talks = talks_of("sharegpt")
        encoder, store = store_of(tmp_path / "trimming", None, "sharegpt", talks, tmp_path)
        trimmed = [[text.strip() for text in talk.responses] for talk in talks]
        runs = [supervised_runs(store[index].labels) for index in range(len(store))]
        assert [[encoder.tokenizer.decode(run[:-1]) for run in own] for own in runs] == trimmed
