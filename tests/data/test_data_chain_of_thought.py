"""Chain-of-thought records: templates as data, one per record by seed and number, and rows that can be explained."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny import ROOT

from ift.cli import main
from ift.data.chain_of_thought import Thought, choose, convert, explain, fill, wordings
from ift.data.quoted_tsv import read_quoted_tsv

DATASETS = ("aqua", "creak", "ecqa", "esnli", "gsm8k", "qasc", "qed", "sensemaking", "strategyqa")
SHARED = ROOT.parent / "shared" / "data" / "cot_pairs"
PUBLISHED = {"aqua": 304, "creak": 346, "qasc": 271, "strategyqa": 295}
"""Data set to the number of its published records at hand."""
NASTY = [
    "{answer} {question} {rationale} {0} {} {{x}} {",
    "100 % of %s and %(answer)s",
    r"a\nb \1 \g<0> \g<question> \\ \x",
    "文字，with “quotes” and \"marks\" and 'these'",
    "tab\there\nand a new line",
    "$answer ${rationale} </s> <s>",
]


def thoughts(number: int) -> list[list[str]]:
    return [[f"What is {i} plus {i}?", str(2 * i), f"Twice {i} is {2 * i}."] for i in range(number)]


def write(path: Path, records: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(records)
    return path


def ift(*arguments: object) -> int:
    return main(["data", "chain_of_thought", *map(str, arguments)])


def test_every_template_has_each_of_its_slots_once_and_differs_from_the_others() -> None:
    assert tuple(wordings().datasets) == DATASETS
    for templates in wordings().datasets.values():
        assert len({(one.instruction, one.output) for one in templates}) == len(templates) >= 10
        for template in templates:
            slots = [template.instruction.count("{question}")]
            slots += [template.output.count("{" + name + "}") for name in ("rationale", "answer")]
            assert slots == [1, 1, 1]
            assert (template.instruction + template.output).count("{") == 3


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_template_is_chosen_about_as_often_as_any_other(dataset: str, seed: int) -> None:
    num_templates = len(wordings().datasets[dataset])
    expected = 4000 / num_templates
    counts = Counter(choose(num_templates, seed, number=number) for number in range(4000))
    assert sorted(counts) == list(range(num_templates))
    assert all(0.75 * expected < count < 1.25 * expected for count in counts.values())


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("text", NASTY)
def test_texts_stand_in_the_row_as_they_are(dataset: str, text: str) -> None:
    thought = Thought(f"Q {text}", f"A {text}", f"R {text}")
    for place, template in enumerate(wordings().datasets[dataset]):
        row = fill(template, thought)
        before, after = template.instruction.split("{question}")
        assert row["instruction"] == before + thought.question + after
        before, after = template.output.split("{rationale}")  # the rationale stands first in all sets
        assert before == ""
        between, end = after.split("{answer}")
        assert row["output"] == thought.rationale + between + thought.answer + end
        assert row["input"] == ""
        assert explain(row, thought, templates=wordings().datasets[dataset]) == (place,)


def test_nothing_explains_a_row_that_differs_in_one_character() -> None:
    templates = wordings().datasets["gsm8k"]
    thought = Thought("What?", "7", "Because.")
    row = fill(templates[3], thought)
    assert explain(row, thought, templates=templates) == (3,)
    for key, text in row.items():
        assert explain({**row, key: text + " "}, thought, templates=templates) == ()
    assert explain({**row, "id": "1"}, thought, templates=templates) == ()
    crossed = {**row, "output": fill(templates[4], thought)["output"]}
    assert explain(crossed, thought, templates=templates) == ()


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("language", ["en", "cn"])
def test_think_first_ends_the_instruction_and_nothing_else(dataset: str, language: str) -> None:
    suffix = wordings().think_first[language]
    thought = Thought("What?", "7", "Because.")
    templates = wordings().datasets[dataset]
    for place, template in enumerate(templates):
        plain, asked = fill(template, thought), fill(template, thought, suffix=suffix)
        assert asked["instruction"] == plain["instruction"].rstrip("\n") + "\n" + suffix
        assert asked["output"] == plain["output"]
        assert explain(asked, thought, templates=templates) == ()
        assert explain(asked, thought, templates=templates, suffix=suffix) == (place,)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(tmp_path: Path) -> None:
    path, templates = write(tmp_path / "a.tsv", thoughts(50)), wordings().datasets["qed"]
    first = list(convert(path, templates, seed=4))
    assert first == list(convert(path, templates, seed=4))
    other = list(convert(path, templates, seed=5))
    assert sum(a.template != b.template for a, b in zip(first, other, strict=True)) > 30


@pytest.mark.parametrize("other", [["", "", ""], ["only one"], ["Something else?", "no", "Other\nlines.\n\n"]])
def test_a_record_has_its_template_whatever_the_others_are(other: list[str], tmp_path: Path) -> None:
    templates = wordings().datasets["esnli"]
    records = thoughts(40)
    before = list(convert(write(tmp_path / "a.tsv", records), templates, seed=1))
    records[7] = other
    after = list(convert(write(tmp_path / "b.tsv", records), templates, seed=1))
    assert len(before) == len(after) == 40
    same = [a.row == b.row for a, b in zip(before, after, strict=True)]
    assert [place for place, equal in enumerate(same) if not equal] == [7]
    shorter = list(convert(write(tmp_path / "c.tsv", records[:20]), templates, seed=1))
    assert shorter == after[:20]


def test_a_record_that_is_none_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'q\ta\tr\nq\ta\n"two\nlines"\ta\tr\ta\n \ta\t\nq\t\xff\tr\n"q\ta\tr\nq\ta\tr\n')
    found = list(convert(path, wordings().datasets["aqua"], seed=0))
    assert [one.line for one in found] == [1, 2, 3, 5, 6, 7, 8]
    assert [one.row is None for one in found] == [bool(one.problem) for one in found]
    assert [one.problem.split(",")[0] for one in found] == [
        "",
        "2 field(s) where 3 are needed",
        "4 field(s) where 3 are needed",
        "empty: question",
        "not UTF-8 at byte 2 of the line",
        "a quotation mark that opens a field is never closed",
        "",
    ]
    assert found[3].problem == "empty: question, rationale"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_command_writes_the_rows_and_says_what_became_of_every_record(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = thoughts(30)
    records[2:2] = [["no fields"]] * 7
    records[20] = ['Who said "Hm" first?', NASTY[0], NASTY[2]]
    source, target = write(tmp_path / "train.tsv", records), tmp_path / "new" / f"rows{suffix}"
    with source.open("a", encoding="utf-8") as file:
        file.write('"Hm" is a word. Is it?\tyes\tI read it.\n')
    assert ift("--dataset", "strategyqa", "--input", source, "--output", target, "--seed", 9) == 0
    text = target.read_text(encoding="utf-8")
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    converted = list(convert(source, wordings().datasets["strategyqa"], seed=9))
    assert rows == [one.row for one in converted if one.row is not None]
    assert all(list(row) == ["instruction", "input", "output"] for row in rows)
    assert len(rows) == 31
    said = capsys.readouterr().out
    assert "records read: 38 " in said and "rows written: 31 " in said and "records rejected: 7\n" in said
    reason = "1 field(s) where 3 are needed, separated by tabs: question, answer, rationale"
    assert f"  7 x {reason}: {source} line 3, 4, 5, 6, 7 and 2 more\n" in said
    assert "loosely quoted: 1 " in said
    counts = Counter(one.template for one in converted if one.template is not None)
    assert "rows per template: " + ", ".join(f"{place + 1}: {counts[place]}" for place in range(10)) in said
    assert sorted(tmp_path.rglob("*")) == sorted([source, target.parent, target])


@pytest.mark.parametrize("language", ["en", "cn"])
def test_the_command_asks_to_think_first_in_either_language(language: str, tmp_path: Path) -> None:
    source, target = write(tmp_path / "train.tsv", thoughts(5)), tmp_path / "rows.json"
    assert ift("--dataset", "qasc", "--input", source, "--output", target, "--think-first", language) == 0
    suffix = wordings().think_first[language]
    assert all(row["instruction"].endswith("\n" + suffix) for row in json.loads(target.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--dataset": "gms8k"}, "--dataset: unknown name 'gms8k'. Did you mean 'gsm8k'?"),
        ({"--think-first": "cm"}, "--think-first: unknown name 'cm'. Did you mean 'cn'?"),
        ({"--seed": "-1"}, "--seed: -1 is below 0"),
        ({"--seed": "one"}, "--seed: invalid int value: 'one'"),
        ({"--input": "missing.tsv"}, "--input: 'missing.tsv' is no file"),
        ({"--input": "."}, "--input: '.' is a folder"),
        ({"--input": "broken.tsv"}, "broken.tsv line 1, 2, 3\n"),
        ({"--input": "empty.tsv"}, "it holds no record"),
        ({"--output": "rows.txt"}, "--output: 'rows.txt' must end in .json or .jsonl"),
        ({"--output": "old.json"}, "--output: 'old.json' exists and nothing is overwritten"),
        ({"--thinkfirst": "en"}, "unknown name '--thinkfirst'. Did you mean '--think-first'?"),
        ({"--output": None}, "the following arguments are required: --output"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(
    changes: dict[str, str | None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.tsv", thoughts(3))
    (tmp_path / "broken.tsv").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "empty.tsv").write_text("", encoding="utf-8")
    (tmp_path / "old.json").write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    options = {"--dataset": "gsm8k", "--input": "train.tsv", "--output": "rows.json", **changes}
    assert ift(*(f"{name}={value}" for name, value in options.items() if value is not None)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ift("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("--dataset", "--input", "--output", "--seed", "--think-first", *DATASETS))


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
@pytest.mark.parametrize("dataset", PUBLISHED)
def test_every_published_row_is_explained_by_exactly_one_template(dataset: str) -> None:
    """And the explaining template makes the published row of the original record."""
    templates = wordings().datasets[dataset]
    published = json.loads((SHARED / f"{dataset}_formatted.json").read_text(encoding="utf-8"))
    records = list(read_quoted_tsv(SHARED / f"{dataset}_origin.tsv"))
    assert len(published) == len(records) == PUBLISHED[dataset]
    counts: Counter[int] = Counter()
    for row, record in zip(published, records, strict=True):
        thought = Thought(*record.fields)
        places = explain(row, thought, templates=templates)
        assert len(places) == 1, (record.line, places)
        made = fill(templates[places[0]], thought)
        assert json.dumps(made, ensure_ascii=False) == json.dumps(row, ensure_ascii=False)
        counts[places[0]] += 1
    assert counts.total() == PUBLISHED[dataset]
    expected = len(published) / len(templates)
    assert all(0.5 * expected < counts[place] < 2 * expected for place in range(len(templates)))


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
@pytest.mark.parametrize("dataset", ["gsm8k", *PUBLISHED])
def test_the_real_files_are_read_as_csv_reads_them_and_wholly_converted(dataset: str) -> None:
    path = SHARED / f"{dataset}_origin.tsv"
    with path.open(encoding="utf-8") as file:
        expected = list(csv.reader(file, delimiter="\t"))
    assert [list(record.fields) for record in read_quoted_tsv(path)] == expected
    templates = wordings().datasets[dataset]
    for fields, one in zip(expected, convert(path, templates, seed=0), strict=True):
        assert one.row is not None and one.template is not None
        assert explain(one.row, Thought(*fields), templates=templates) == (one.template,)
