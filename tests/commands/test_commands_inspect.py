"""`ift data inspect`: examples token by token, the audit in the terminal and as a page; and `ift fit`'s refusals."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import make_rows, write_json

from ift.commands.audit_charts import length_chart
from ift.commands.audit_numbers import Bin, audit_lines, histogram, number, percent
from ift.commands.audit_page import example_html
from ift.commands.data_inspect import takes_colour
from ift.commands.inspect_text import example_text
from ift.commands.inspection import Shown
from ift.commands.token_view import Piece
from ift.commands.trainer import TrainingCLI
from ift.data.audit import audit

Config = Callable[..., Path]
Refused = Callable[..., str]

HOSTILE = [
    {"instruction": "<script>alert('a')</script>", "output": "<img src=x onerror=alert(1)> & \"quotes\" 'too'"},
    {"instruction": "</div></body></html>", "output": "</span><b>bold</b><!-- "},
    {"instruction": "steer\x1b[2J\x1b]0;title\x07", "output": "绿色 🙂 \x1b[31mred \u202eback"},
    {"instruction": "&lt;script&gt;", "output": "&amp; stays &amp;"},
]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"{place} river"},
            {"role": "assistant", "content": f"stone {place}\n\nlamp", "supervised": place % 2 == 0},
            {"role": "user", "content": "and <then>?"},
            {"role": "assistant", "content": "绿色的河流"},
        ]
    }
    for place in range(7)
]


def lines_file(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def two_sources(tmp_path: Path) -> dict[str, Any]:
    """Rows of two layouts, with hostile, repeated, empty and over-long ones."""
    rows = [*HOSTILE, *make_rows(20), *make_rows(3), {"instruction": "a", "output": ""}]
    rows.append({"instruction": "<i>long</i>", "output": "stone " * 300})
    first = write_json(tmp_path / "rows<b>.json", rows)
    second = lines_file(tmp_path / "chat.jsonl", CHAT)
    sources = [{"path": str(first), "layout": "alpaca"}, {"path": str(second), "layout": "messages", "weight": 2.0}]
    return {"sources": sources, "max_rejected": 0.2, "template": "plain", "validation": 3}


def unmarked(text: str) -> str:
    """Undo what `visible` and the dots for blanks do to the texts of these tests."""
    shown = text.replace("⏎\n", "\n").replace("·", " ").replace("⟨U+202E⟩", "\u202e")
    return shown.replace("␛", "\x1b").replace("␇", "\x07")


def expected_responses() -> list[list[str]]:
    """Return the responses of the first four rows, of a repeated one, and of two chats."""
    chats = [[m["content"] for m in row["messages"][1::2] if m.get("supervised", True)] for row in CHAT[:2]]
    return [*([row["output"]] for row in HOSTILE), [make_rows(1)[0]["output"]], *chats]


WANTED = [flag for place in (1, 2, 3, 4, 25, 28, 29) for flag in ("--example", place)]
"""Numbers of those examples."""


class TestTerminal:
    def test_brackets_hold_exactly_the_responses(self, config: Config, ift: Any, two_sources: Any) -> None:
        outcome = ift("data", "inspect", "--config", config(data=two_sources), *WANTED)
        assert outcome.code == 0, outcome.err
        assert "\x1b" not in outcome.out and "\x07" not in outcome.out
        bodies = re.split(r"^example .* supervised \([^\n]*\n", outcome.out.partition("\naudit\n")[0], flags=re.M)[1:]
        found = [[unmarked(run) for run in re.findall(r"⟦(.*?)⟨</s>⟩⟧", body, flags=re.S)] for body in bodies]
        assert found == expected_responses()
        assert all(body.startswith("⟨<s>⟩") for body in bodies)

    def test_colour_holds_exactly_the_responses(self, config: Config, ift: Any, two_sources: Any) -> None:
        outcome = ift("data", "inspect", "--config", config(data=two_sources), *WANTED, "--color", "always")
        bodies = outcome.out.partition("audit\x1b[0m\n")[0].split("\x1b[1mexample ")[1:]
        found = []
        for body in bodies:
            runs = [""]
            for code, text in re.findall(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m(?=\n|\x1b|$)", body, flags=re.S):
                if code.startswith("30;48"):
                    runs[-1] += text + ("\n" if text.endswith("⏎") else "")
                elif code.startswith("1;35;48"):
                    assert text == "⟨</s>⟩"
                    runs.append("")
            found.append([unmarked(run) for run in runs[:-1]])
        assert found == expected_responses()

    def test_the_header_names_source_place_and_template(self, config: Config, ift: Any, two_sources: Any) -> None:
        out = ift("data", "inspect", "--config", config(data=two_sources), "--example", 28, "--example", 1).out
        sources = two_sources["sources"]
        heads = [line for line in out.splitlines() if line.startswith("example ")]
        assert heads[0].startswith(
            f"example 28 of 34 · data.sources[1]: {sources[1]['path']} line 1 · layout messages · template plain · "
        )
        assert f"data.sources[0]: {sources[0]['path']} line 2 · layout alpaca" in heads[1]
        assert re.search(r" · \d+ tokens, \d+ supervised \(\d+\.\d%\)", heads[0])

    def test_number_and_validation(self, config: Config, ift: Any, two_sources: Any) -> None:
        path = config(data=two_sources)
        assert ift("data", "inspect", "--config", path, "--number", 0).out.startswith("audit\n")
        first = re.findall(r"^example (\d+) of 34", ift("data", "inspect", "--config", path).out, flags=re.M)
        assert first == ["1", "2", "3"]
        held_out = ift("data", "inspect", "--config", path, "--validation", "--number", 9).out
        assert len(re.findall(r"^example .*held out for validation$", held_out, flags=re.M)) == 3
        everything = ift("data", "inspect", "--config", path, "--number", 34).out
        assert everything.count("held out for validation") == 3

    def test_own_validation_sources(self, config: Config, ift: Any, rows_file: Path, tmp_path: Path) -> None:
        own = lines_file(tmp_path / "chat.jsonl", CHAT)
        path = config(data={"validation": [{"path": str(own), "layout": "messages"}]})
        out = ift("data", "inspect", "--config", path, "--validation").out
        assert f"example 1 of 7 · data.validation[0]: {own} line 1" in out and str(rows_file) not in out
        out = ift("data", "inspect", "--config", path).out
        assert f"example 1 of 40 · data.sources[0]: {rows_file} line 2" in out and "held out" not in out

    def test_the_audit_tells_the_numbers(self, config: Config, ift: Any, two_sources: Any) -> None:
        path = config(data=two_sources)
        out = ift("data", "inspect", "--config", path).out
        store = data_of(path).look(validation=False)[0]
        for line in audit_lines(audit(store)):
            row = next(one for one in out.splitlines() if one.startswith(f"  {line.label}  "))
            assert re.split(r" {2,}", row.strip()) == [line.label, *line.values]
        assert "data.sources[0]: rejected: 1 x a response is empty" in out
        assert "data.sources[0]: rejected: 1 x longer than data.max_length" in out
        assert f"all rejected rows: {store.rejects_path}" in out
        assert "data.sources[1]: turn 2: 4 examples," in out

    def test_what_filters_left_out_is_told(self, config: Config, ift: Any, two_sources: Any, tmp_path: Path) -> None:
        path = config(data={**two_sources, "deduplicate": "exact"})
        outcome = ift("data", "inspect", "--config", path, "--html", tmp_path / "page.html")
        assert "data.sources[0]: left out: 3 x duplicate" in outcome.out
        assert re.search(r"^  left out +3 +0 +3$", outcome.out, flags=re.M)
        assert re.search(r"^  duplicates +0 +0 +0$", outcome.out, flags=re.M)
        (removed,) = re.findall(r"^  all left out: (.*)$", outcome.out, flags=re.M)
        assert len(Path(removed).read_text(encoding="utf-8").splitlines()) == 3
        assert "<dt>data.deduplicate</dt><dd>exact</dd>" in (tmp_path / "page.html").read_text(encoding="utf-8")

    def test_more_rejects_than_fit_allows_can_be_looked_at(
        self, config: Config, ift: Any, two_sources: Any, refused: Refused
    ) -> None:
        path = config(data={**two_sources, "max_rejected": 0.0})
        assert "2 of 36 rows cannot be used" in refused("fit", "--config", path)
        outcome = ift("data", "inspect", "--config", path)
        assert outcome.code == 2 and "impossible: data.sources: 2 of 36 rows cannot be used" in outcome.out
        assert outcome.err.splitlines()[-1].startswith("error: data.sources: 1 of the above make it impossible")
        nothing = config(data={"sources": [{"path": two_sources["sources"][0]["path"], "layout": "messages"}]})
        outcome = ift("data", "inspect", "--config", nothing)
        assert outcome.code == 2 and "impossible: data.sources[0]: none of the 29 rows" in outcome.out

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"global_batch_size": 100}, "data.global_batch_size: a step takes 100 examples"),
            ({"weight": 0.001}, r"data.sources\[0\].weight: 0.001 of 32 examples is none per epoch"),
        ],
    )
    def test_what_fit_refuses_is_no_success(
        self, config: Config, ift: Any, rows_file: Path, refused: Refused, settings: dict[str, Any], said: str
    ) -> None:
        weight = {"weight": settings.pop("weight")} if "weight" in settings else {}
        path = config(data={**settings, "sources": [{"path": str(rows_file), **weight}]})
        assert re.search(said, refused("fit", "--config", path))
        outcome = ift("data", "inspect", "--config", path)
        assert outcome.code == 2 and re.search(f"impossible: {said}", outcome.out) and "example 3 of 40" in outcome.out

    def test_a_file_without_a_yaml(
        self, ift: Any, base: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        flags = ["--base", base, "--source", rows_file, "--layout", "alpaca", "--template", "plain"]
        outcome = ift("data", "inspect", *flags)
        assert outcome.code == 0, outcome.err
        assert "template plain" in outcome.out and "example 3 of 40" in outcome.out
        short = ift("data", "inspect", *flags, "--max_length", 20).out
        assert "longer than data.max_length" in short

    def test_no_run_folder_is_made_or_needed(self, config: Config, ift: Any, tmp_path: Path) -> None:
        path = config()
        assert ift("data", "inspect", "--config", path).code == 0
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("an older run")
        assert ift("data", "inspect", "--config", path).code == 0
        path.write_text(path.read_text().replace(f"run_dir: {tmp_path / 'run'}\n", ""))
        assert "run_dir" not in path.read_text()
        assert ift("data", "inspect", "--config", path).code == 0


def data_of(path: Path) -> Any:
    from ift.commands.inspect_config import configured_data

    return configured_data(["--config", str(path)])


def test_it_reads_what_fit_reads(config: Config) -> None:
    path = config(data={"max_length": 99}, seed_everything=5)
    mine = data_of(path)
    fit = TrainingCLI("fit", ["--config", str(path)]).datamodule
    shared = {name: value for name, value in vars(fit).items() if isinstance(value, str | int | list | float)}
    assert {"max_length", "seed", "sources", "validation"} <= shared.keys()
    assert {name: vars(mine)[name] for name in shared} == shared


class Page(HTMLParser):
    """Collects tags, attributes and the texts of token spans."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.articles: list[list[tuple[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.kind: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)
        if tag == "article":
            self.articles.append([])
        self.kind = (dict(attrs).get("class") or "") if tag == "span" and "article" in self.open else None

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "rect", "line"):
            assert self.open.pop() == tag
        self.kind = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.kind is not None:
            self.articles[-1].append((self.kind, data))


class TestPage:
    @pytest.fixture
    def page(self, config: Config, ift: Any, two_sources: Any, tmp_path: Path) -> tuple[Page, str, Path]:
        path = config(data=two_sources)
        target = tmp_path / "out" / "page.html"
        outcome = ift("data", "inspect", "--config", path, *WANTED, "--html", target)
        assert outcome.code == 0, outcome.err
        assert [file.name for file in target.parent.iterdir()] == ["page.html"]
        text = target.read_text(encoding="utf-8")
        return Page(text), text, path

    def test_nothing_is_run_or_loaded(self, page: tuple[Page, str, Path]) -> None:
        parsed, text, _ = page
        assert not parsed.open
        assert not {"script", "img", "link", "iframe", "b", "i", "object", "a"} & set(parsed.tags)
        assert parsed.tags.count("html") == parsed.tags.count("body") == 1
        names = {name for name, _ in parsed.attributes}
        assert not names & {"src", "href", "style"} and not [name for name in names if name.startswith("on")]
        assert "url(" not in text and "@import" not in text and "http" not in text
        assert not set(text) & {chr(code) for code in [*range(9), *range(11, 32), 0x7F, 0x202E]}

    def test_supervised_spans_hold_exactly_the_responses(self, page: tuple[Page, str, Path]) -> None:
        found = []
        for spans in page[0].articles:
            runs = [""]
            for kind, text in spans:
                if kind == "s":
                    runs[-1] += text
                elif kind == "s x":
                    runs.append("")
            found.append([unmarked(run) for run in runs[:-1]])
        assert found == expected_responses()

    def test_it_holds_every_number(self, page: tuple[Page, str, Path]) -> None:
        parsed, text, path = page
        store = data_of(path).look(validation=False)[0]
        audited = audit(store)
        for line in audit_lines(audited):
            cells = "".join(f"<td>{value}</td>".replace("<0", "&lt;0") for value in line.values)
            assert f'<th scope="row">{line.label}<small>{line.explanation}</small></th>{cells}' in text
        for source in audited.sources:
            for one in histogram(source.counts):
                if one.count:
                    assert f": {number(one.count)} examples" in parsed.text
            assert percent(source.supervised_share) in parsed.text
            assert all(reason in parsed.text for reason in source.counts.rejected)
            assert all(place in parsed.text for place in source.counts.first_rejects)
            assert source.counts.path in parsed.text
        assert "max_length 256" in parsed.text and store.key in parsed.text

    def test_impossible_numbers_stand_in_a_box(
        self, config: Config, ift: Any, two_sources: Any, tmp_path: Path
    ) -> None:
        path = config(data={**two_sources, "max_length": 12, "over_long": "cut_end", "validation": None})
        outcome = ift("data", "inspect", "--config", path, "--html", tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "impossible: data.sources[1]: end-of-text is never supervised" in outcome.out
        assert '<div class="problem">' in text and "data.sources[1]: end-of-text is never supervised" in text


def test_what_is_learned_in_place_of_a_token_is_marked() -> None:
    """Baichuan2's chat format ends a response before the last by the next request alone."""
    shown = Shown(
        0,
        "example 1 of 1",
        ("template <baichuan2_chat>",),
        (
            Piece("yes", (5,), 0, supervised=True),
            Piece("<reserved>", (6,), 1, supervised=False, special=True, learns="</s>"),
            Piece(" ", (7,), 2, supervised=False),
        ),
    )
    assert example_text(shown, colour=False).splitlines()[1] == "⟦yes⟧⟦⟨learns: </s>⟩⟧⟨<reserved>⟩·"
    coloured = example_text(shown, colour=True).splitlines()[1]
    assert re.findall(r"\x1b\[[\d;]+m(.+?)\x1b\[0m", coloured) == ["yes", "⟨learns: </s>⟩", "⟨<reserved>⟩", "·"]
    html = example_html(shown)
    assert '<span class="l">⟨learns: &lt;/s&gt;⟩</span><span class="x" title="token 2, id 6">⟨&lt;reserved&gt;⟩' in html


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert takes_colour() is expected


def test_the_limit_stands_behind_the_longest_bin() -> None:
    def limit(bins: list[Bin], length: int) -> float:
        return float(re.findall(r'<line class="limit" x1="([\d.]+)"', length_chart(bins, length, "lengths"))[0])

    bins = [Bin(64, 91, 3), Bin(91, 128, 5), Bin(128, 181, 1)]
    assert limit(bins, 128) == limit(bins, 150) == limit(bins, 180) == 632
    beyond = length_chart(bins, 400, "lengths")
    assert beyond.count("<rect") == 3 and "max_length 400" in beyond and "→" not in beyond
    assert "max_length 1,000,000 →" in length_chart(bins, 1_000_000, "lengths")
    heights = [float(value) for value in re.findall(r'class="bar".*?height="([\d.]+)"', beyond)]
    assert heights[0] / heights[1] == pytest.approx(3 / 5, abs=0.01)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (1.0, "100.0%"), (0.99999, ">99.9%"), (1e-6, "<0.1%"), (0.1234, "12.3%")],
)
def test_percentages_do_not_round_to_all_or_nothing(share: float, text: str) -> None:
    assert percent(share) == text


class TestRefusals:
    def test_wrong_options(self, config: Config, refused: Refused, tmp_path: Path, base: Path) -> None:
        path = config()
        inspect = ("data", "inspect", "--config", path)
        assert "--example: 41, and there are 40 examples, numbered from 1." in refused(*inspect, "--example", 41)
        assert "--example: 0," in refused(*inspect, "--example", 0)
        assert "--number: -1 is below 0" in refused(*inspect, "--number", -1)
        assert "--number: invalid int value: 'x'" in refused(*inspect, "--number", "x")
        assert "unknown option '--data.max_lenght=5'. Did you mean '--data.max_length'?" in refused(
            *inspect, "--data.max_lenght=5"
        )
        assert "--layout: 'alpaca' belongs to --source" in refused(*inspect, "--layout", "alpaca")
        assert "--config: required" in refused("data", "inspect")
        assert "--base: required beside --source" in refused("data", "inspect", "--source", "rows.json")
        said = refused("data", "inspect", "--source", "rows.json", "--base", base, "--exampel", 3)
        assert "unknown name '--exampel'. Did you mean '--example'?" in said
        assert "Give one of the two" in refused(*inspect, "--source", "rows.json")
        said = refused("data", "inspect", "--config", config("none", data={"validation": None}), "--validation")
        assert "data.validation: null holds nothing out" in said

    def test_a_page_is_never_overwritten(self, config: Config, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "page.html").write_text("mine")
        said = refused("data", "inspect", "--config", config(), "--html", tmp_path / "page.html")
        assert "exists, and nothing is overwritten" in said
        assert (tmp_path / "page.html").read_text() == "mine"
        said = refused("data", "inspect", "--config", config(), "--html", tmp_path / "page.txt")
        assert "must end in .html" in said

    def test_settings_are_refused_as_by_fit(self, config: Config, refused: Refused, tmp_path: Path) -> None:
        path = config(data={"sources": [{"path": str(tmp_path / "none.json"), "layout": "alpaca"}]})
        assert refused("data", "inspect", "--config", path) == refused("fit", "--config", path)
        path = config(data={"tamplate": "plain"})
        assert refused("data", "inspect", "--config", path) == refused("fit", "--config", path)


class TestFit:
    """`ift fit` refuses impossible data before weights load: this base has none that could be loaded."""

    @pytest.fixture
    def fit_refused(
        self, config: Config, refused: Refused, base_without_weights: Path, tmp_path: Path
    ) -> Callable[..., str]:
        def run(data: dict[str, Any]) -> str:
            said = refused("fit", "--config", config(data=data, model={"base": str(base_without_weights)}))
            assert not (tmp_path / "run").exists()
            return said

        return run

    def test_no_supervised_token(self, fit_refused: Refused, rows_file: Path, tmp_path: Path) -> None:
        silent = [{"messages": [*row["messages"][:1], {**row["messages"][1], "supervised": False}]} for row in CHAT]
        second = lines_file(tmp_path / "silent.jsonl", silent)
        sources = [{"path": str(path), "layout": name} for path, name in ((rows_file, "alpaca"), (second, "messages"))]
        said = fit_refused({"sources": sources, "max_rejected": 1.0})
        assert f"data.sources[1]: none of the 7 rows of '{second}' gives a supervised token" in said

    def test_end_of_text_never_supervised(self, fit_refused: Refused, tmp_path: Path) -> None:
        rows = [{"instruction": f"say {place}", "output": "stone " * 40} for place in range(20)]
        path = write_json(tmp_path / "long.json", rows)
        data = {"max_length": 40, "over_long": "cut_end", "template": "plain", "validation": None}
        said = fit_refused({**data, "sources": [{"path": str(path), "layout": "alpaca"}]})
        assert (
            f"data.sources[0]: end-of-text is never supervised: none of 20 responses of '{path}' ends with it" in said
        )
        assert "(20 of 20 examples are cut)" in said and "Raise data.max_length" in said

    def test_end_of_text_never_supervised_in_validation(
        self, fit_refused: Refused, rows_file: Path, tmp_path: Path
    ) -> None:
        rows = [{"instruction": "say", "output": "stone " * 400}]
        path = write_json(tmp_path / "long.json", rows)
        validation = [{"path": str(path), "layout": "alpaca"}]
        said = fit_refused({"over_long": "cut_end", "template": "plain", "validation": validation})
        assert "data.validation[0]: end-of-text is never supervised: none of 1 responses" in said

    def test_doubled_begin_of_text(self, fit_refused: Refused, base_without_weights: Path, rows_file: Path) -> None:
        path = base_without_weights / "tokenizer_config.json"
        about = json.loads(path.read_text(encoding="utf-8"))
        about["chat_template"] = (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}{{ m.content }}: "
            "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        path.write_text(json.dumps(about), encoding="utf-8")
        said = fit_refused({"template": "tokenizer"})
        assert "data.sources[0]: begin-of-text stands twice at the start of 40 of 40 examples" in said


def test_the_manifest_tells_the_audit(config: Config, ift: Any, tmp_path: Path, two_sources: Any) -> None:
    held_out = [{key: value for key, value in two_sources["sources"][1].items() if key != "weight"}]
    path = config(data={**two_sources, "validation": held_out}, trainer={"max_epochs": 1})
    assert ift("fit", "--config", path).code == 0
    told = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["data"]
    data = data_of(path)
    data.load()
    assert told["audit"] == audit(data.store).describe()
    assert [one["path"] for one in told["audit"]["sources"]] == [one["path"] for one in two_sources["sources"]]
    assert told["audit"]["sources"][0]["duplicates"] == 3
    assert told["audit"]["sources"][0]["end_of_text_rate"] == 1
    assert told["validation_audit"]["sources"][0]["path"] == two_sources["sources"][1]["path"]
