"""The catalogue: its facts against the two lists it is made from, its filters against a recount, its three commands."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT

from ift.cli import main
from ift.data.catalogue import find_collection, load_catalogue, parse_catalogue, resolve
from ift.errors import UserError

TEXT = (ROOT / "ift" / "data" / "catalogue.yaml").read_text(encoding="utf-8")
ENTRIES: list[dict[str, Any]] = yaml.safe_load(TEXT)["collections"]
BY_NAME = {entry["name"]: entry for entry in ENTRIES}
NAMES = sorted(BY_NAME)

ALPACA_COT = {
    74771: ["chain_of_thought"], 806199: ["gpt4all"], 29013: ["gpteacher"], 534610: ["guanaco"],
    37175: ["hc3", "hc3_chinese"], 52002: ["alpaca"], 5040134: ["super_natural_instructions"],
    1079517: ["belle_cn"], 52191: ["instinwild_en"], 165681: ["prosocial_dialog"], 68912: ["finance_alpaca"],
    78883588: ["xp3"], 1649398: ["firefly"], 888969: ["instruct"], 20022: ["code_alpaca"], 18994: ["webgpt"],
    15015: ["dolly"], 653699: ["baize"], 284517: ["hh_rlhf"], 49237: ["oig_part"], 2785: ["gaokao"],
    760620: ["camel"], 1764800: ["flan_muffin"], 298428: ["coig"], 71446: ["gpt4tools"], 1663241: ["sharegpt"],
    5816: ["auto_cot"], 1583595: ["moss"], 28247446: ["ultrachat"], 792099: ["chinese_medical"],
    396206: ["csl"], 1200705: ["pclue"], 252776: ["news_commentary"],
}  # fmt: skip
"""Column `Nums` of the table in Alpaca-CoT's README (commit bd46c44) to the names here; HC3 is two collections here."""

SURVEY = {
    "unified_qa": 750e3, "unified_skg": 0.8e6, "natural_instructions": 193e3, "super_natural_instructions": 5e6,
    "p3": 12e6, "xp3": 81e6, "flan_2021": 4.4e6, "coig": None, "instruct_gpt": 13e3, "dolly": 15e3, "lima": 1e3,
    "chatgpt": None, "oasst1": 161443, "oig": 43e6, "unnatural_instructions": 240e3, "evol_instruct": 52e3,
    "alpaca": 52e3, "logicot": None, "alpaca_gpt4": 52e3, "vicuna": 70e3, "guanaco": 534530, "open_orca": 1.5e6,
    "wild_chat": 150e3, "wizard_coder": None, "magicoder_oss": 75e3, "magicoder_evol": 110e3,
    "wave_coder": None, "phi_1": None, "phi_1_5": None, "nectar": 183e3, "self_instruct": 52e3,
    "instruction_backtranslation": 502e3, "spin": 49.8e3, "prm800k": 800e3, "o1_journey": 677,
    "self_explore": None, "mario": 28.8e3, "math_genie": 170e3, "deepseek_math": None,
    "compute_optimal_sampling": None, "math_scale": 2e6, "g_llava": 170e3, "instinwild_en": None, "baize": None,
    "ultrachat": None, "sharegpt": None, "allava": 1.4e6, "lamm": 186e3, "multi_instruct": None,
    "pmc_vqa": 227e3, "sharegpt4v": 1.2e6, "vision_flan": 1e6, "chat_doctor": 122e3, "co_edit": 82e3,
    "goat": 1e6, "instruct_uie": 1e6,
}  # fmt: skip
"""Tables of data sets, of images with text, and (the last four) of domains in the survey's repository (commit 27a200b);
`None` where they give no number, or Alpaca-CoT's table counts something else."""


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["data", *arguments]) == 0
    return capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["data", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage:" not in captured.err and "Traceback" not in captured.err
    return captured.err


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    return [entry["name"] for entry in json.loads(output(capsys, "list", "--json", *arguments))]


def test_every_row_of_alpaca_cot_is_there_with_its_number() -> None:
    for number, names in ALPACA_COT.items():
        assert sum(BY_NAME[name]["records"] for name in names) == number
        assert all("alpaca_cot" in BY_NAME[name]["lists"] for name in names)
    covered = {name for names in ALPACA_COT.values() for name in names}
    # The table counts these with their English half, and says "todo" of StackLLaMA.
    halves = {"chain_of_thought_cn", "alpaca_gpt4", "alpaca_gpt4_cn", "instinwild_cn", "stack_llama"}
    assert {entry["name"] for entry in ENTRIES if "alpaca_cot" in entry["lists"]} == covered | halves


def test_every_row_of_the_survey_is_there_with_its_number() -> None:
    for name, number in SURVEY.items():
        assert "survey" in BY_NAME[name]["lists"], name
        if number is not None:
            assert BY_NAME[name]["records"] == pytest.approx(number, rel=0.03), name
    halves = {"alpaca_gpt4_cn", "instinwild_cn"}  # which it counts with their English half
    assert {entry["name"] for entry in ENTRIES if "survey" in entry["lists"]} == SURVEY.keys() | halves


def test_the_entries_hold_together() -> None:
    for collection in load_catalogue():
        entry = BY_NAME[collection.name]
        assert collection.citation.title == entry["citation"]["title"]
        assert collection.records == entry["records"] and collection.hub == entry["hub"]
        assert collection.commercial == {True: "yes", False: "no"}.get(entry["commercial"], "unclear")
        if collection.access == "closed":
            assert collection.hub is None and collection.commercial != "yes"
        else:
            assert collection.hub or collection.address
        if "-NC" in collection.licence or "research only" in collection.licence:
            assert collection.commercial == "no"
        if collection.licence in ("not stated", "not established"):
            assert collection.commercial == "unclear"
    assert [collection.name for collection in load_catalogue()] == NAMES


def test_it_names_no_host_of_a_registry() -> None:
    assert not re.search(r"https?:|hugging|hf\.co|modelscope|pypi", TEXT, re.IGNORECASE)


FILTERS: list[tuple[str, str, Callable[[dict[str, Any]], bool]]] = [
    ("--lang", "en", lambda entry: "EN" in entry["languages"]),
    ("--lang", "CN", lambda entry: "CN" in entry["languages"]),
    ("--lang", "ml", lambda entry: "ML" in entry["languages"]),
    ("--task", "mt", lambda entry: "MT" in entry["tasks"]),
    ("--task", "ts", lambda entry: "TS" in entry["tasks"]),
    ("--generation", "hg", lambda entry: entry["generation"] == "HG"),
    ("--generation", "si", lambda entry: entry["generation"] == "SI"),
    ("--generation", "mix", lambda entry: entry["generation"] == "MIX"),
    ("--generation", "col", lambda entry: entry["generation"] == "COL"),
    ("--license", "commercial", lambda entry: entry["commercial"] is True),
    ("--license", "non-commercial", lambda entry: entry["commercial"] is False),
    ("--license", "unclear", lambda entry: entry["commercial"] == "unclear"),
    ("--layout", "belle", lambda entry: entry["layout"] == "belle"),
    ("--search", "LONGPRE", lambda entry: "longpre" in yaml.dump(entry, allow_unicode=True).lower()),
]


@pytest.mark.parametrize(("option", "value", "passes"), FILTERS)
def test_a_filter_keeps_what_a_recount_keeps(
    option: str, value: str, passes: Callable[[dict[str, Any]], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [name for name in NAMES if passes(BY_NAME[name])]
    assert 0 < len(expected) < len(NAMES)
    assert listed(capsys, option, value) == expected


def test_filters_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--lang", "cn", "--license", "commercial")
    assert found == [n for n in NAMES if "CN" in BY_NAME[n]["languages"] and BY_NAME[n]["commercial"] is True]
    assert "csl" in found and "belle_1m" not in found


def test_the_table_is_narrow_aligned_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows, footnote, last = output(capsys, "list").splitlines()
    assert [row.split()[0] for row in rows] == NAMES
    assert max(map(len, [head, *rows, footnote, last])) <= 100
    edge = head.index("records") + len("records")
    assert all(row[edge - 1] != " " and row[edge] == " " for row in rows)  # numbers end below their head
    total = sum(entry["records"] or 0 for entry in ENTRIES)
    unknown = sum(entry["records"] is None for entry in ENTRIES)
    assert last == f"{len(NAMES)} of {len(NAMES)} collections, {total:,} records, {unknown} of unknown size"
    starred = {row.split()[0] for row in rows if "yes*" in row}
    assert starred == {e["name"] for e in ENTRIES if e["commercial"] is True and "output_of" in e}
    assert footnote.startswith("* ")


def test_sorting_by_records_puts_the_largest_first(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [BY_NAME[name]["records"] or 0 for name in listed(capsys, "--sort", "records")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 78883588


def test_a_filter_that_keeps_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        output(capsys, "list", "--search", "no such words").splitlines()[-1]
        == f"0 of {len(NAMES)} collections, 0 records"
    )


@pytest.mark.parametrize("name", NAMES)
def test_show_tells_all_facts_and_a_source_to_paste(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry, text = BY_NAME[name], output(capsys, "show", name)
    flat = " ".join(text.split())
    for fact in (
        entry["title"],
        entry["licence"],
        entry["citation"]["title"].rstrip("."),
        entry.get("note", "").strip(),
    ):
        assert " ".join(fact.split()) in flat
    assert max(map(len, text.splitlines())) <= 100
    pasted = yaml.safe_load("\n".join(line for line in text.splitlines() if line.startswith("  - {")) or "[]")
    if entry.get("access") == "closed":
        assert pasted == [] and "never published" in text
    elif entry["hub"]:
        assert pasted[0]["path"] == name
        assert resolve("data.sources[0].path", pasted[0]["path"]) == find_collection("", name)
        assert ("layout" in pasted[0]) == (entry["layout"] is None)  # a known layout need not be said again
    else:
        assert pasted[0]["path"].endswith(".jsonl") and pasted[0]["layout"]
    assert ("the number of records" in text.partition("not established:")[2]) == (entry["records"] is None)


def test_a_path_with_suffix_slash_or_file_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("data.sources[0].path", "rows.jsonl") is None
    assert resolve("data.sources[0].path", "owner/name") is None
    assert resolve("data.sources[0].path", "alpaca") == find_collection("", "alpaca")
    (tmp_path / "alpaca").write_text("", encoding="utf-8")
    assert resolve("data.sources[0].path", "alpaca") is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("alpacca", "no collection 'alpacca' in the catalogue. Did you mean 'alpaca'"),
        ("natural_instructions", "github: allenai/natural-instructions-v1, and name the file instead: "
         "{path: FOLDER/natural_instructions.jsonl, layout: natural_instructions}"),
        ("prm800k", "layout: package.module.function"),
        ("chatgpt", "was never published"),
    ],
)  # fmt: skip
def test_a_name_that_gives_no_rows_says_what_to_do(path: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        resolve("data.sources[3].path", path)
    assert str(caught.value).startswith("data.sources[3].path: ")


SVG = "{http://www.w3.org/2000/svg}"


def test_the_chart_draws_each_size_on_a_logarithmic_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, again = tmp_path / "sizes.svg", tmp_path / "again.svg"
    assert "15 of unknown size" in output(capsys, "chart", "--output", str(path))
    output(capsys, "chart", "--output", str(again))
    assert path.read_bytes() == again.read_bytes()
    root = ElementTree.parse(path).getroot()
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    sized = sorted((e for e in ENTRIES if e["records"]), key=lambda e: (-e["records"], e["name"]))
    assert [bar.findtext(f"{SVG}title") for bar in bars] == [entry["title"] for entry in sized]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert min(widths) > 0
    slope = (widths[0] - widths[-1]) / math.log10(sized[0]["records"] / sized[-1]["records"])
    for width, entry in zip(widths, sized, strict=True):
        assert widths[0] - width == pytest.approx(slope * math.log10(sized[0]["records"] / entry["records"]), abs=0.2)
    colours = {bar.get("fill"): entry["generation"] for bar, entry in zip(bars, sized, strict=True)}
    assert sorted(colours.values()) == ["COL", "HG", "MIX", "SI"]  # one colour each
    tops = [float(bar.get("y", "")) for bar in bars]
    assert all(lower - upper >= 15 for upper, lower in pairwise(tops))  # room for 11-pixel letters
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert {entry["name"] for entry in sized} <= set(texts)
    assert {f"{'~' if entry.get('rounded') else ''}{entry['records']:,}" for entry in sized} <= set(texts)
    assert any("logarithmic" in text for text in texts)
    assert {e["name"] for e in ENTRIES if not e["records"]} <= set(re.findall(r"\w+", " ".join(texts)))


def test_the_chart_of_one_collection_has_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "chart", "--output", str(tmp_path / "one.svg"), "--search", "LIMA: Less Is More")
    root = ElementTree.parse(tmp_path / "one.svg").getroot()
    (bar,) = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert float(bar.get("width", "")) > 100


def test_the_chart_as_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output(capsys, "chart", "--output", str(tmp_path / "few.PNG"), "--lang", "ml")
    data = (tmp_path / "few.PNG").read_bytes()
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") >= 1000  # width in pixels


def test_png_without_matplotlib_names_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "or give a .svg" in failure(capsys, "chart", "--output", str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--lang", "zh"], "--lang: unknown name 'zh'"),
        (["list", "--license", "comercial"], "Did you mean 'commercial'?"),
        (["list", "--generation", "his"], "Known: col, hg, mix, si"),
        (["list", "--layout", "alpacca"], "Did you mean 'alpaca'?"),
        (["list", "--sort", "record"], "Did you mean 'records'?"),
        (["list", "--licence", "commercial"], "Did you mean '--license'?"),
        (["list", "--lang"], "expected one argument"),
        (["list", "belle"], "unrecognized arguments: belle"),
        (["show"], "needs a NAME"),
        (["show", "beIIe_1m"], "Did you mean 'belle_1m' or"),
        (["chart"], "needs --output"),
        (["chart", "--output", "sizes.gif"], "must end in .svg or .png"),
        (["chart", "--output", "sizes.svg", "--search", "logicot"], "no collection of known size"),
        (["chart", "--output", f"{__file__}/sizes.svg"], __file__),
    ],
)
def test_a_mistake_is_answered_with_the_nearest(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subcommand", ["list", "show", "chart"])
def test_help_names_each_option(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", subcommand, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    options = {"show": ["NAME"], "list": ["--sort", "--json"], "chart": ["--output"]}[subcommand]
    if subcommand != "show":
        options += ["--lang", "--task", "--generation", "--license", "--layout", "--search"]
    assert all(option in text for option in options)


SOUND = yaml.safe_load(yaml.safe_dump({**BY_NAME["alpaca"], "note": "a note"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "unknown name 'licens'. Did you mean 'licence'?"),
        ({"licence": ...}, "licence must be given, with null where it is not established"),
        ({"licence": None}, "licence: must be text"),
        ({"name": "Al-paca"}, "name: must be lower-case letters"),
        ({"languages": ["ZH"]}, "languages[0]: unknown name 'ZH'"),
        ({"languages": []}, "languages: must be a list of at least 1"),
        ({"languages": "EN"}, "languages: must be a list"),
        ({"tasks": ["MT", "MT"]}, "different values"),
        ({"generation": "SELF"}, "generation: unknown name 'SELF'"),
        ({"lists": ["alpaca"]}, "lists[0]: unknown name 'alpaca'. Did you mean 'alpaca_cot'?"),
        ({"records": "52k"}, "records: must be a whole number above 0"),
        ({"records": True}, "records: must be a whole number above 0"),
        ({"rounded": "yes"}, "rounded: must be true or false"),
        ({"commercial": "maybe"}, "commercial: unknown name 'maybe'"),
        ({"commercial": 1}, "commercial: unknown name '1'"),
        ({"hub": "tatsu-lab"}, "hub: must be owner/name"),
        ({"hub": None, "files": ["a.json"]}, "are of a hub data set"),
        ({"layout": None, "columns": {"instruction": "q"}}, "are of a layout"),
        ({"columns": ["q"]}, "columns: must map"),
        ({"access": "shut"}, "access: unknown name 'shut'"),
        ({"citation": None}, "citation: must be a mapping"),
        ({"citation": {**SOUND["citation"], "arxiv": 2304.1}}, "citation.arxiv: must be an arXiv id"),
        ({"citation": {**SOUND["citation"], "year": "2023"}}, "citation.year: must be a year"),
    ],
)
def test_an_entry_against_the_schema_is_refused(change: dict[str, Any], message: str) -> None:
    parse_catalogue(yaml.safe_dump({"collections": [SOUND]}), place="mine.yaml")
    entry = {key: value for key, value in {**SOUND, **change}.items() if value is not ...}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_catalogue(yaml.safe_dump({"collections": [SOUND | {"name": "first"}, entry]}), place="mine.yaml")
    assert str(caught.value).startswith("mine.yaml: collections[1] (")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("collections: [", "is no YAML"),
        ("- a", "one key 'collections'"),
        ("collections: []\nmore: 1", "one key 'collections'"),
        ("collections: [1]", "must be a mapping"),
        (yaml.safe_dump({"collections": [SOUND, SOUND]}), "'alpaca' is given twice"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_catalogue(text, place="mine.yaml")


def test_it_starts_without_torch_and_reads_yaml_only_when_asked() -> None:
    program = """
import sys
import ift.commands.data_catalogue
assert "yaml" not in sys.modules and "matplotlib" not in sys.modules
from ift.cli import main
assert main(["data", "list", "--lang", "cn"]) == 0
print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not set(done.stderr.split()) & {"torch", "transformers", "datasets", "lightning", "numpy"}
