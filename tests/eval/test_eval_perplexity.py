"""Perplexity and bits of texts: ratios over the whole text, from documents read in every form."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.perplexity import documents, prepare, score
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, write_jsonl

TEXTS = {"river": "A river runs.\nIt is wide.\n", "stone": "One grey stone lies there, and another one."}
CHINESE = {"one": "河流很宽，石头很多。", "two": "冬天的音乐"}


def folder_of(path: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.txt").write_text(text, encoding="utf-8")
    return path


def answered(prompts: list[PromptRecord], mode: str | None = None) -> list[Prediction]:
    """Return scores that differ from one text to the next: two nats a character, three characters a token."""
    found = []
    for number, prompt in enumerate(prompts):
        (text,) = prompt.options
        meta = {**prompt.meta, **({"asked": {"mode": mode}} if mode else {})}
        scores, tokens = (-2.0 * len(text) - number,), (math.ceil(len(text) / 3),)
        found.append(
            Prediction(
                prompt.id, "<s>", options=prompt.options, option_scores=scores, option_num_tokens=tokens, meta=meta
            )
        )
    return found


def test_a_folder_of_texts(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "texts", TEXTS)
    prompts = list(prepare(data))
    assert [prompt.id for prompt in prompts] == ["river", "stone"]
    assert [prompt.options for prompt in prompts] == [(text,) for text in TEXTS.values()]
    assert all(prompt.messages == ({"role": "assistant", "content": ""},) for prompt in prompts)


def test_ratios_are_over_the_whole_text(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "texts", TEXTS)
    predictions = answered(list(prepare(data)))
    report = score(predictions, data)
    nats = -sum(prediction.option_scores[0] for prediction in predictions)
    together = "".join(TEXTS.values())
    assert report.headline[0] == "bits_per_character"
    found = {name: one.score for name, one in report.aggregates.items()}
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / len(together))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(together.encode()))
    assert found["token_perplexity"] == pytest.approx(
        math.exp(nats / sum(math.ceil(len(t) / 3) for t in TEXTS.values()))
    )
    # As lm-evaluation-harness counts words: 6 and one after the last newline, and 8.
    assert found["word_perplexity"] == pytest.approx(math.exp(nats / (7 + 8)))
    assert {item.id: item.value for item in report.items}["river"] == pytest.approx(2 / math.log(2))
    for name, one in report.aggregates.items():
        # Every document is a category of its own here, so that nothing tells the spread of a mean over categories.
        assert name == "macro" or one.interval[0] <= one.score <= one.interval[1]
    assert report.notes[0].startswith("2 documents with")


def test_chinese_has_more_bytes_than_characters_and_no_words(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "texts", {**CHINESE, "long": "山谷" * 40})
    report = score(answered(list(prepare(data))), data)
    found = report.aggregates
    assert found["bits_per_character"].score == pytest.approx(3 * found["bits_per_byte"].score)
    assert "word_perplexity" not in found and "No word perplexity" in report.notes[1]


def test_lines_are_documents_where_asked(tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("first line\n\n  \nsecond line\r\n", encoding="utf-8")
    assert [document.text for document in documents(data, lines=False)] == ["first line\n\n  \nsecond line\r\n"]
    prompts = list(prepare(data, lines=True))
    assert [(prompt.id, prompt.options) for prompt in prompts] == [
        ("text-00000", ("first line",)),
        ("text-00001", ("second line",)),
    ]
    report = score(answered(prompts, "lines"), data)
    assert (report.overall.n, report.overall.score) == (2, pytest.approx((2 + 2 + 1 / 11) / 2 / math.log(2)))


def test_rows_with_categories(tmp_path: Path) -> None:
    rows = [{"text": text, "category": f"c{number % 2}"} for number, text in enumerate([*TEXTS.values(), "abc"])]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    predictions = answered(list(prepare(data)))
    report = score(predictions, data)
    assert set(report.categories) == {"c0", "c1"}
    nats = -(predictions[0].option_scores[0] + predictions[2].option_scores[0])
    expected = nats / math.log(2) / (len(TEXTS["river"]) + 3)
    assert report.categories["c0"].score == pytest.approx(expected)


def test_through_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "texts", TEXTS)
    prompts = tmp_path / "prompts.jsonl"
    arguments = ["perplexity", "--data", str(data)]
    assert main(["prepare", *arguments, "--output", str(prompts), "--mode", "lines"]) == 0
    asked = [PromptRecord(**json.loads(line)) for line in prompts.read_text(encoding="utf-8").splitlines()]
    assert len(asked) == 3
    write_jsonl(tmp_path / "predictions.jsonl", answered(asked))
    report = ["--predictions", str(tmp_path / "predictions.jsonl"), "--output", str(tmp_path / "report")]
    assert main(["score", *arguments, *report]) == 0, capsys.readouterr().out
    facts = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert facts["headline"]["name"] == "bits_per_character" and facts["mode"] == "lines"


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "holds no text"), (b" \n", "holds no text"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")],
)
def test_files_that_cannot_be_read(content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        list(prepare(tmp_path / "a.txt"))


def test_an_empty_folder_and_an_empty_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        list(prepare(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match="'text' is empty"):
        list(prepare(tmp_path / "a.jsonl"))


def test_predictions_of_another_text(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "texts", TEXTS)
    first, second = answered(list(prepare(data)))
    for wrong in (
        replace(first, options=("another",)),
        replace(first, option_scores=()),
        replace(first, option_scores=(math.nan,)),
    ):
        with pytest.raises(UserError, match="'river' needs one finite score"):
            score([wrong, second], data)
