"""Contamination: overlaps against a brute-force reference, what is not looked for, the report and the command."""

import json
import random
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from ift.cli import main
from ift.data.benchmark_index import TOKEN, BenchmarkIndex, index_benchmarks
from ift.data.contamination import ContaminationFilter, find_overlaps
from ift.data.contamination_report import ROWS_PER_ITEM, ContaminationReport
from ift.data.conversation import Conversation, Message
from ift.data.rows import Source
from ift.data.text_windows import normalised

SHARED = ROOT.parent / "shared" / "data"
QUESTION = "Which of the two rivers that meet below the old stone bridge carries more water in a dry summer?"
FRAGE = "在古老石桥下面汇合的两条河流当中，哪一条在干旱的夏天里水量更大一些？"


def write_lines(path: Path, lines: Iterable[Any]) -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n" for one in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def index_of(tmp_path: Path, items: Iterable[Any], **settings: Any) -> BenchmarkIndex:
    path = write_lines(tmp_path / "benchmark.jsonl", items)
    return index_benchmarks([Source(path=path, layout="alpaca")], **settings)


def talk(*texts: str, system: str = "") -> Conversation:
    """Texts in turn: request, response, context, thought."""
    request, response, context, thought = (*texts, "", "", "", "")[:4]
    messages = (Message("user", request, context=context), Message("assistant", response, thought=thought))
    return Conversation(messages, system=system)


def reference_tokens(text: str) -> list[str]:
    """The definition, a second time: by the names of characters instead of ranges of their numbers."""
    alone = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "THAI", "LAO", "MYANMAR", "KHMER")
    tokens, run = [], ""
    for character in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        word = unicodedata.category(character)[0] in "LN"
        single = word and unicodedata.name(character, "").startswith(alone)
        if (single or not word) and run:
            tokens.append(run)
            run = ""
        if single:
            tokens.append(character)
        elif word:
            run += character
    return [*tokens, run] if run else tokens


def reference_ngrams(texts: Iterable[str], length: int) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        tokens = reference_tokens(text)
        found |= {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}
    return found


def random_text(generator: random.Random, num_tokens: int) -> str:
    """Few different tokens, so that much is shared by chance; case, width and punctuation at random."""
    tokens = generator.choices(
        ["stone", "Bridge", "７", "7", "河", "石", "桥", "ＡＢ", "ab", "straße", "STRASSE"], k=num_tokens
    )
    return "".join(token + generator.choice([" ", ", ", "。", "\n", " _ "]) for token in tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop: 3.5 km!", ["don", "t", "stop", "3", "5", "km"]),
        ("ＧＰＴ-4模型，很好。", ["gpt", "4", "模", "型", "很", "好"]),
        ("snake_case_name", ["snake", "case", "name"]),
        ("カタカナ・ひらがな", ["カ", "タ", "カ", "ナ", "ひ", "ら", "が", "な"]),
        ("Straße Ünïcode é", ["strasse", "ünïcode", "é"]),
        ("한국어 문장", ["한국어", "문장"]),
        (" \n\t.,;，。！", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert TOKEN.findall(normalised(text)) == expected == reference_tokens(text)


def test_tokens_of_all_characters_are_those_of_the_reference() -> None:
    """Every assigned character up to the end of the first plane, between two letters."""
    different = []
    for number in range(0x20, 0x10000):
        text = f"a{chr(number)}b"
        if unicodedata.category(chr(number)) not in ("Cs", "Cn", "Co") and TOKEN.findall(normalised(text)) != (
            reference_tokens(text)
        ):
            different.append(f"{number:04x} {unicodedata.name(chr(number), '')}")
    assert different == []


@pytest.mark.parametrize("seed", range(6))
def test_overlaps_are_those_of_the_brute_force(seed: int, tmp_path: Path) -> None:
    generator, length = random.Random(seed), 5
    rows = [
        {"q": random_text(generator, generator.randrange(1, 14)), "n": [1, {"o": random_text(generator, 9)}], "x": None}
        for _ in range(40)
    ]
    index = index_of(tmp_path, rows, ngram=length)
    items = [reference_ngrams([row["q"], row["n"][1]["o"]], length) for row in rows]
    assert [item.num_ngrams for item in index.items] == [len(item) for item in items]
    shared_somewhere = 0
    for _ in range(60):
        texts = [random_text(generator, generator.randrange(30)) for _ in range(4)]
        system = random_text(generator, 6)
        own = reference_ngrams([*texts, system], length)
        expected = {number: len(item & own) for number, item in enumerate(items) if item & own}
        found = find_overlaps(index, talk(*texts, system=system))
        assert {overlap.item: len(overlap.ngrams) for overlap in found} == expected
        assert [overlap.item for overlap in found] == sorted(expected)
        for overlap in found:
            assert overlap.share == len(overlap.ngrams) / len(items[overlap.item])
            stretch = reference_ngrams([overlap.text], length)
            assert stretch and stretch <= items[overlap.item] & own
        shared_somewhere += bool(expected)
    assert shared_somewhere > 10


def test_an_item_is_found_in_another_form(tmp_path: Path) -> None:
    index = index_of(tmp_path, [{"question": QUESTION}, {"question": FRAGE}])
    assert [item.how for item in index.items] == ["ngrams", "ngrams"]
    upper = QUESTION.upper().replace(" ", " \n* ")
    wide = FRAGE.replace("，", ", ").replace("？", "")
    for text, item in ((f"Quiz! {upper} Answer:", 0), (f"请回答{wide}谢谢", 1)):
        (overlap,) = find_overlaps(index, talk("say", text))
        assert (overlap.item, overlap.share) == (item, 1.0)
    assert find_overlaps(index, talk("Which of the two rivers that meet below the old stone bridge")) == []  # 12 tokens
    (overlap,) = find_overlaps(index, talk("Which of the two rivers that meet below the old stone bridge carries"))
    assert len(overlap.ngrams) == 1 and overlap.text.endswith("bridge carries")


def test_short_items_are_looked_for_whole(tmp_path: Path) -> None:
    rows = [
        {"q": "Name the longest river of Asia", "a": "Yangtze"},
        {"q": "长江有多长", "a": ""},
        {"q": "2 + 2 = ?"},
        {},
    ]
    index = index_of(tmp_path, rows)
    assert [item.how for item in index.items] == ["whole", "whole", "too short", "too short"]
    for text, items in (
        ("please NAME the longest river of Asia!", [0]),
        ("name the longest river", []),
        ("问：长江，有多长？", [1]),
        ("长江有多", []),
        ("2 + 2 = ? Yangtze", []),
        ("长江有多长 name the longest river of asia", [0, 1]),
    ):
        assert [overlap.item for overlap in find_overlaps(index, talk(text))] == items
        assert all(overlap.share == 1 for overlap in find_overlaps(index, talk(text)))


def test_texts_of_an_item_do_not_run_into_one_another(tmp_path: Path) -> None:
    index = index_of(
        tmp_path, [{"a": "one two three four five six", "b": "seven eight nine ten eleven twelve"}], ngram=6
    )
    across = "four five six seven eight nine"
    assert find_overlaps(index, talk(across)) == find_overlaps(index, talk("one two three", "four five six")) == []
    assert len(find_overlaps(index, talk("one two three four five six"))) == 1


def test_only_the_named_fields_count(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "explanation": FRAGE}]
    index = index_of(tmp_path, rows, fields=["question"])
    assert find_overlaps(index, talk(FRAGE)) == []
    assert len(find_overlaps(index, talk(QUESTION))) == 1
    with pytest.raises(ValueError, match="Did you mean 'question'"):
        index_of(tmp_path, rows, fields=["questoin"])


def test_texts_are_found_at_any_depth(tmp_path: Path) -> None:
    deep = '{"a": ' + "[" * 700 + json.dumps(FRAGE) + "]" * 700 + "}"
    index = index_of(tmp_path, [deep, QUESTION, json.dumps([1, {"a": [QUESTION]}])])
    assert [item.how for item in index.items] == ["ngrams", "unreadable", "ngrams"]
    assert [overlap.item for overlap in find_overlaps(index, talk(FRAGE, QUESTION))] == [0, 2]
    with pytest.raises(ValueError, match="no item can be read.*line 1: not valid JSON"):
        index_of(tmp_path, ["{", "nonsense"])


def test_phrases_of_the_form_can_be_left_out(tmp_path: Path) -> None:
    """Three items begin with the same phrase; one of them holds nothing else."""
    phrase = "Answer the following question with one of the letters A, B, C or D"
    rows = [{"q": f"{phrase}. {QUESTION}"}, {"q": f"{phrase}: {FRAGE}"}, {"q": phrase}]
    every, some = index_of(tmp_path, rows), index_of(tmp_path, rows, max_items=2)
    assert len(find_overlaps(every, talk(phrase))) == 3
    assert find_overlaps(some, talk(phrase)) == []
    assert [item.how for item in some.items] == ["ngrams", "ngrams", "common"]
    common = len(reference_ngrams([phrase], 13))
    assert [a.num_ngrams - b.num_ngrams for a, b in zip(every.items, some.items, strict=True)] == [common] * 3
    assert [(one.item, one.share) for one in find_overlaps(some, talk(f"{phrase} {FRAGE}"))] == [(1, 1.0)]
    assert find_overlaps(index_of(tmp_path, rows[2:] * 3, max_items=2), talk(phrase)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ngram": 1}, "ngram: 1 is below 5"), ({"max_items": 0}, "max_items: 0 is below 1")],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        index_of(tmp_path, [{"q": QUESTION}], **settings)
    with pytest.raises(ValueError, match="min_share: 2 is not from 0 to 1"):
        ContaminationFilter(index_of(tmp_path, [{"q": QUESTION}]), min_share=2)


def test_the_filter_names_the_worst_item(tmp_path: Path) -> None:
    index = index_of(tmp_path, [{"q": QUESTION}, {"q": FRAGE}, {"q": "Name the longest river of Asia"}])
    part = " ".join(QUESTION.split()[:14])
    conversation = talk(part, FRAGE)
    place = str(tmp_path / "benchmark.jsonl")
    reason = ContaminationFilter(index).check(conversation, "f line 1")
    num_ngrams = len(reference_ngrams([FRAGE], 13))
    assert reason is not None
    assert reason.startswith(f"shares {num_ngrams} of the {num_ngrams} 13-grams of {place} line 2: '在古老石桥")
    assert reason.endswith("and overlaps with 1 more")
    assert ContaminationFilter(index, min_share=0.5).check(talk(part), "f line 1") is None
    assert ContaminationFilter(index, min_share=1.0).check(conversation, "f line 1") == reason
    assert ContaminationFilter(index).check(talk("nothing of it"), "f line 1") is None
    whole = ContaminationFilter(index).check(talk("Name the longest river of Asia."), "f line 1")
    assert whole == f"holds the whole of {place} line 3: 'name the longest river of asia'"


def test_the_description_holds_every_setting(tmp_path: Path) -> None:
    rows = [{"q": QUESTION}, {"q": FRAGE}]
    described = [
        ContaminationFilter(index_of(tmp_path, rows)),
        ContaminationFilter(index_of(tmp_path, rows[:1])),
        ContaminationFilter(index_of(tmp_path, rows, ngram=8)),
        ContaminationFilter(index_of(tmp_path, rows, fields=["q"])),
        ContaminationFilter(index_of(tmp_path, rows, max_items=3)),
        ContaminationFilter(index_of(tmp_path, rows), min_share=0.2),
    ]
    assert len({json.dumps(one.describe(), sort_keys=True) for one in described}) == len(described)
    assert ContaminationFilter(index_of(tmp_path, rows)).describe() == described[0].describe()


def test_the_report_unites_what_the_rows_share(tmp_path: Path) -> None:
    """Two halves in two rows cover what they cover together; the rows with the largest share are named."""
    tokens = QUESTION.split()
    index = index_of(tmp_path, [{"q": QUESTION}, {"q": FRAGE}])
    report = ContaminationReport(index)
    texts = [" ".join(tokens[: 13 + i % 5]) for i in range(20)] + [" ".join(tokens[4:])]
    for line, text in enumerate(texts, 1):
        report.add("train.jsonl", line, overlaps=find_overlaps(index, talk(text)))
    first, second = report.as_json()["items"]
    expected = reference_ngrams(texts, 13) & reference_ngrams([QUESTION], 13)
    assert (first["covered"], first["num_rows"]) == (len(expected), 21)
    assert first["share"] == len(expected) / first["num_ngrams"]
    shares = [len(reference_ngrams([text], 13)) for text in texts]
    order = sorted(range(21), key=lambda number: -shares[number])[:ROWS_PER_ITEM]
    assert [(row["line"], row["covered"]) for row in first["rows"]] == [(i + 1, shares[i]) for i in order]
    assert (second["covered"], second["num_rows"], second["rows"]) == (0, 0, [])


def threads(row: dict[str, Any]) -> Sequence[Conversation]:
    """A row function whose rows hold several conversations."""
    return [talk(text, "yes") for text in row["texts"]]


def run_command(tmp_path: Path, rows: Iterable[Any], items: Iterable[Any], *arguments: str) -> Path:
    train = write_lines(tmp_path / "train.jsonl", rows)
    benchmark = write_lines(tmp_path / "benchmark.jsonl", items)
    folder = tmp_path / "report"
    given = ["--input", train, "--benchmark", benchmark, "--output", str(folder)]
    assert main(["data", "contamination", *given, *arguments]) == 0
    return folder


def test_the_command_reports_and_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = [{"instruction": f"Count to {i}.", "output": "one " * i} for i in range(1, 9)]
    whole = {"instruction": QUESTION, "output": "The left one."}
    part = {"instruction": "Translate.", "input": f"“{FRAGE[:16]}”", "output": "…"}
    rows = [*clean[:4], whole, "{broken", part, *clean[4:], {"instruction": "a", "output": f"({QUESTION})"}]
    items = [{"q": QUESTION}, {"q": FRAGE}, {"q": "A or B?"}, {"q": "Which wind is the coldest"}, "[broken"]
    folder = run_command(tmp_path, rows, items, "--kept", str(tmp_path / "kept.jsonl"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "overlaps.jsonl",
        "removed.jsonl",
        "report.json",
        "report.md",
    ]
    assert read_lines(tmp_path / "kept.jsonl") == clean
    removed = read_lines(folder / "removed.jsonl")
    kinds = [(5, "contaminated"), (6, "unreadable"), (7, "contaminated"), (12, "contaminated")]
    assert [(one["line"], one["kind"]) for one in removed] == kinds
    assert removed[0]["row"] == whole and f"{tmp_path}/benchmark.jsonl line 1" in removed[0]["reason"]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (training,), (benchmark,) = report["training"], report["benchmarks"]
    assert training["rows"] == len(rows) == training["kept"] + sum(training["removed"].values())
    assert (training["overlapping"], training["unreadable"]) == (3, 1)
    counts = ("items", "checked_by_ngrams", "checked_whole", "too_short", "unreadable", "overlapping")
    assert [benchmark[name] for name in counts] == [5, 2, 1, 1, 1, 2]
    assert benchmark["share_of_checked"] == 2 / 3
    first, second, *others = report["items"]
    assert (first["share"], first["num_rows"], [row["line"] for row in first["rows"]]) == (1.0, 2, [5, 12])
    expected = len(reference_ngrams([FRAGE[:16]], 13))
    assert (second["covered"], second["num_rows"], second["rows"][0]["line"]) == (expected, 1, 7)
    assert [(item["how"], item["num_rows"]) for item in others] == [("too short", 0), ("whole", 0), ("unreadable", 0)]
    overlaps = read_lines(folder / "overlaps.jsonl")
    assert [(one["line"], [item["line"] for item in one["items"]]) for one in overlaps] == [
        (5, [1]),
        (7, [2]),
        (12, [1]),
    ]
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert page.index("line 1\n") < page.index("line 2\n") and FRAGE[:13] in page
    printed = capsys.readouterr().out
    assert "12 rows, 3 overlap, 1 unreadable" in printed
    assert "5 items, 3 checked, 1 too short to check, 1 unreadable; 2 overlap (66.67% of those)" in printed
    assert "kept 8 rows" in printed and "removed 4 rows" in printed


def test_without_kept_nothing_is_removed(tmp_path: Path) -> None:
    folder = run_command(tmp_path, [{"instruction": QUESTION, "output": "a"}], [{"q": QUESTION}])
    assert sorted(path.name for path in folder.iterdir()) == ["overlaps.jsonl", "report.json", "report.md"]
    (training,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["training"]
    assert training["overlapping"] == 1 and "removed" not in training


def test_a_small_share_can_be_let_pass(tmp_path: Path) -> None:
    rows = [{"instruction": QUESTION, "output": "a"}, {"instruction": " ".join(QUESTION.split()[:13]), "output": "b"}]
    kept = tmp_path / "kept.jsonl"
    folder = run_command(tmp_path, rows, [{"q": QUESTION}], "--kept", str(kept), "--min_share", "0.5")
    assert read_lines(kept) == rows[1:]
    assert len(read_lines(folder / "overlaps.jsonl")) == 2


def test_a_row_goes_with_one_of_its_conversations(tmp_path: Path) -> None:
    tokens = QUESTION.split()
    texts = [" ".join(tokens[:13]), " ".join(tokens[3:]), "nothing"]
    rows = [{"texts": texts}, {"texts": ["nothing", "else"]}]
    layout = ["--layout", f"{__name__}.threads", "--kept", str(tmp_path / "kept.jsonl")]
    folder = run_command(tmp_path, rows, [{"q": QUESTION}], *layout)
    assert read_lines(tmp_path / "kept.jsonl") == rows[1:]
    (item,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["items"]
    expected = len(reference_ngrams(texts, 13))
    assert (item["covered"], item["num_rows"], item["rows"][0]["covered"]) == (expected, 1, expected)


def test_common_phrases_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phrase = "Answer the following question with one of the letters A, B, C or D"
    items = [{"q": f"{phrase} number {i} of this little list of questions"} for i in range(12)]
    rows = [{"instruction": phrase, "output": "A"}]
    folder = run_command(tmp_path, rows, items)
    hint = "12 of the 12 overlapping items of"
    assert hint in capsys.readouterr().out and hint in (folder / "report.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        path.unlink()
    run_command(tmp_path, rows, items, "--max_items", "10")
    printed = capsys.readouterr().out
    assert hint not in printed and "12 checked" in printed and "0 overlap (" in printed


def test_what_no_file_can_hold_is_written_as_an_escape(tmp_path: Path) -> None:
    folder = run_command(tmp_path, [{"instruction": QUESTION, "output": "a"}], ['{"q": "' + QUESTION + ' \\ud800"}'])
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["items"][0]["num_rows"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "x"], "Did you mean '--benchmark'?"),
        (["--ngram", "3"], "ngram: 3 is below 5"),
        (["--fields", "p"], "unknown name 'p'"),
        (["--min_share", "-1"], "min_share: -1.0 is not from 0 to 1"),
        (["--output", "{folder}"], "exists, and nothing is overwritten"),
        (["--kept", "{train}"], "exists, and nothing is overwritten"),
        (["--benchmark", "none.json"], "--benchmark.path: no file 'none.json'"),
        (["--benchmark", "{blank}"], "no item in"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "train": write_lines(tmp_path / "train.jsonl", [{"instruction": "a", "output": "b"}]),
        "benchmark": write_lines(tmp_path / "benchmark.jsonl", [{"q": QUESTION}]),
        "blank": write_lines(tmp_path / "blank.jsonl", [""]),
        "folder": str(tmp_path),
    }
    given = ["--input", names["train"], "--benchmark", names["benchmark"], "--output", str(tmp_path / "report")]
    assert main(["data", "contamination", *given, *(argument.format(**names) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
def test_real_questions_overlap_as_the_brute_force_says(tmp_path: Path) -> None:
    """Chinese training rows against the 1000 questions of Belle's evaluation set: a handful of chance overlaps."""
    paths = [SHARED / "alpaca_zh_carbonz0/zh-data-part-00.json", SHARED / "alpaca_gpt4_demo/alpaca_zh_demo.json"]
    benchmark = SHARED / "belle_eval/eval_set.json"
    given = ["--input", *map(str, paths), "--benchmark", str(benchmark), "--output", str(tmp_path / "report")]
    assert main(["data", "contamination", *given]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    training = set().union(
        *(reference_ngrams([row[k] for k in ("instruction", "input", "output")], 13) for row in rows)
    )
    items = [json.loads(line) for line in benchmark.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(items) == len(report["items"]) == 1000
    for item, found in zip(items, report["items"], strict=True):
        if found["how"] == "ngrams":
            own = reference_ngrams([value for value in item.values() if isinstance(value, str)], 13)
            assert (found["num_ngrams"], found["covered"]) == (len(own), len(own & training))
    assert sum(item["num_rows"] > 0 for item in report["items"]) == report["benchmarks"][0]["overlapping"] == 2
