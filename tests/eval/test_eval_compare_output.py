"""What `compare` prints and writes: aligned, escaped, whole, and charts that an XML parser reads."""

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from compared_reports import compare, exam, judged, letters, write

from eval.aggregation import GROUP_MACRO, MACRO, Aggregation, micro
from eval.comparison.grids import Grid, latex, markdown, terminal, width
from eval.comparison.wording import Scale, interval, number, p_value

SVG = "{http://www.w3.org/2000/svg}"
AWKWARD = "R&D_50% {x} #1 <b> |a| \\n~^$"


@pytest.fixture
def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """Three systems on an exam with groups and a judged set; the names are Chinese, English and awkward."""
    subjects, groups = ["语文", "数学", "法律", "心理学"], ["教育", "教育", "法学", "心理"]
    systems = []
    for place, name in enumerate(("基础模型", "lora", AWKWARD)):
        folder = tmp_path / f"s{place}"
        write(
            folder / "exam", exam(letters(0.4 + 0.1 * place, 120, place), subjects, groups), aggregations=(GROUP_MACRO,)
        )
        values = [(number * 7 + place * number) % 11 for number in range(60)]
        write(folder / "belle", judged(values, ["code", "open qa"]), "belle_eval", aggregations=(MACRO,))
        systems.append(f"{name}={folder}")
    assert compare(*systems, "--output", tmp_path / "out") == 0
    return tmp_path / "out", capsys.readouterr().out


def test_the_terminal_table_is_aligned_whatever_the_script(compared: tuple[Path, str]) -> None:
    _, shown = compared
    blocks = [block.split("\n") for block in re.split(r"\n\n+", shown) if "───" in block]
    assert len(blocks) == 3
    for header, rule, *rows in blocks:
        edges = [match.end() for match in re.finditer("─+", rule)]
        assert width(header) <= edges[-1] and rows
        for row in rows:
            # No word stands across the gap behind a column.
            column = 0
            for letter in row:
                column += width(letter)
                assert letter == " " or column not in [edge + 1 for edge in edges[:-1]], row
    assert width("中文模型_7B") == 11 and width("e\u0301") == 1


def test_markdown_has_cells_for_every_column(compared: tuple[Path, str]) -> None:
    text = (compared[0] / "compare.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "R&D\\_50% {x} #1 \\<b> &#124;a&#124;" in text
    assert "](exam.svg)" in text and "](belle_eval.svg)" in text


def test_latex_is_escaped_and_closed(compared: tuple[Path, str]) -> None:
    text = (compared[0] / "compare.tex").read_text(encoding="utf-8")
    assert (
        r"R\&D\_50\% \{x\} \#1 \textless{}b\textgreater{} |a| \textbackslash{}n\textasciitilde{}\textasciicircum{}\$"
        in text
    )
    for environment in ("table", "tabular", "longtable"):
        assert text.count(f"\\begin{{{environment}}}") == text.count(f"\\end{{{environment}}}")
    for body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        columns, lines = body
        rows = [line for line in lines.splitlines() if line.endswith("\\\\")]
        assert rows and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
    plain = re.sub(r"\\.", "", text)
    assert plain.count("{") == plain.count("}") and "$" not in plain.replace("$-$", "")
    assert r"\toprule" in text and r"\bottomrule" in text


def test_a_long_latex_table_breaks_over_pages() -> None:
    grid = Grid("many", ("a", "b"), tuple((str(row), "[1]") for row in range(60)))
    assert r"\begin{longtable}{lr}" in latex(grid) and "& {[}1]" in latex(grid)
    assert "tabular" in latex(Grid("few", ("a", "b"), (("1", "2"),)))


def test_arrows_and_a_system_alone_in_latex(tmp_path: Path) -> None:
    """LaTeX's fonts have no arrow; nothing is the best of one, or differs from itself."""
    for name in ("A", "base"):
        write(tmp_path / name / "exam", exam(letters(0.5, 40, 3), ["语文", "数学"]))
        bits = Aggregation("bits_per_character", micro)
        write(tmp_path / name / "text", judged([1.0, 1.5, 2.0]), "perplexity", aggregations=(bits,))
    alone = (tmp_path / "A", "--base", tmp_path / "base", "--skills", "perplexity", "--output", tmp_path / "one")
    assert compare(*alone) == 0 and compare(tmp_path / "A", tmp_path / "base", "--output", tmp_path / "two") == 0
    one, two = ((tmp_path / name / "compare.tex").read_text(encoding="utf-8") for name in ("one", "two"))
    assert r"perplexity $\downarrow$" in one and "↓" not in one + two
    assert r"\textbf" in two and "difference to A" in two and "less A" in two
    assert r"\textbf" not in one and "difference to A" not in one and "less A" not in one


def test_csv_and_json_say_the_same(compared: tuple[Path, str]) -> None:
    facts = json.loads((compared[0] / "compare.json").read_text(encoding="utf-8"))
    assert facts["systems"] == ["基础模型", "lora", AWKWARD] and facts["baseline"] == "基础模型"
    with (compared[0] / "compare.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    told = [
        (benchmark["benchmark"], row["part"], row["name"], system, entry)
        for benchmark in facts["benchmarks"]
        for row in benchmark["rows"]
        for system, entry in row["systems"].items()
    ]
    assert len(lines) == len(told) == 3 * (1 + 3 + 2) + 3 * (1 + 2)
    for line, (benchmark, part, name, system, entry) in zip(lines, told, strict=True):
        assert (line["benchmark"], line["part"], line["name"], line["system"]) == (benchmark, part, name, system)
        for key, value in entry.items():
            assert line[key] == ("" if value is None else str(value))


def test_the_baseline_can_be_chosen(tmp_path: Path) -> None:
    for name, share in (("A", 0.4), ("B", 0.6)):
        write(tmp_path / name, exam(letters(share, 80, 1)))
    for baseline in ("A", "B"):
        arguments = (tmp_path / "A", tmp_path / "B", "--baseline", baseline, "--output", tmp_path / baseline / "out")
        assert compare(*arguments) == 0
    one, other = (
        json.loads((tmp_path / name / "out" / "compare.json").read_text(encoding="utf-8"))["benchmarks"][0]["rows"][0]
        for name in ("A", "B")
    )
    assert one["systems"]["A"]["difference"] is None is other["systems"]["B"]["difference"]
    assert one["systems"]["B"]["difference"] == -other["systems"]["A"]["difference"] != 0


def charted(tmp_path: Path, num_parts: int, *options: str) -> ElementTree.Element:
    names = [f"学科{number}" for number in range(num_parts)]
    for name, share in (("A", 0.4), ('<B> & "C"', 0.6)):
        write(tmp_path / name.strip("<>")[:1], exam(letters(share, 20 * num_parts, 1), names))
    systems = (f"A={tmp_path / 'A'}", f'<B> & "C"={tmp_path / "B"}')
    assert compare(*systems, "--output", tmp_path / "out", *options) == 0
    text = (tmp_path / "out" / "exam.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in text
    return ElementTree.fromstring(text)


def polygons(chart: ElementTree.Element) -> list[ElementTree.Element]:
    return [one for one in chart.iter(f"{SVG}polygon") if one.get("class") != "grid"]


@pytest.mark.parametrize(("num_parts", "radar"), [(1, False), (2, False), (3, True), (12, True), (13, False)])
def test_the_chart_fits_the_number_of_parts(tmp_path: Path, num_parts: int, radar: bool) -> None:
    chart = charted(tmp_path, num_parts)
    bars = [one for one in chart.iter(f"{SVG}rect") if one.get("class") != "page"]
    if radar:
        assert not bars and [len((one.get("points") or "").split()) for one in polygons(chart)] == [num_parts] * 2
    else:
        parts = 1 + (num_parts if num_parts > 1 else 0)  # the whole stands above the parts
        assert not polygons(chart) and len(bars) == 2 * parts
        assert len([one for one in chart.iter(f"{SVG}path") if one.get("class") == "error"]) == 2 * parts
    texts = [one.text for one in chart.iter(f"{SVG}text")]
    assert '<B> & "C"' in texts and (num_parts == 1 or f"学科{num_parts - 1}" in texts)


def test_everything_drawn_stands_inside_the_chart(tmp_path: Path) -> None:
    for kind in ("bar", "radar"):
        chart = charted(tmp_path / kind, 8, "--chart", kind)
        wide, high = float(chart.get("width", "0")), float(chart.get("height", "0"))
        for text in chart.iter(f"{SVG}text"):
            size = width(text.text or "") * float(text.get("font-size", "0")) * 0.55
            x, y = float(text.get("x", "-1")), float(text.get("y", "-1"))
            left = x - {"start": 0.0, "middle": size / 2, "end": size}[text.get("text-anchor", "")]
            assert left >= 0 and left + size <= wide and 0 <= y <= high, text.text
        for polygon in polygons(chart):
            points = [tuple(map(float, point.split(","))) for point in (polygon.get("points") or "").split()]
            assert all(0 <= x <= wide and 0 <= y <= high for x, y in points)


def test_bars_are_as_long_as_scores_and_lines_as_intervals(tmp_path: Path) -> None:
    chart = charted(tmp_path, 2, "--chart", "bar")
    first = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["benchmarks"][0]["rows"][0]
    bar = next(one for one in chart.iter(f"{SVG}rect") if one.get("class") == "fill0")
    line = next(one for one in chart.iter(f"{SVG}path") if one.get("class") == "error")
    found = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", line.get("d", ""))
    assert found
    start, length = float(bar.get("x", "0")), float(bar.get("width", "0"))
    unit = length / first["systems"]["A"]["score"]
    assert (float(found[1]) - start) / unit == pytest.approx(first["systems"]["A"]["low"], abs=0.002)
    assert (float(found[2]) - start) / unit == pytest.approx(first["systems"]["A"]["high"], abs=0.002)


def test_numbers_are_written_with_their_sign_and_scale() -> None:
    share = Scale(percent=True)
    assert number(0.12345, share) == "12.35" and number(-0.5, share, sign=True) == "−50.00"
    assert number(0.00001, share, sign=True) == "0.00" == number(-0.00001, share)
    assert number(float("nan"), share) == "–" == interval((float("nan"), 1.0), share)
    assert interval((-0.1, 0.2), share, sign=True) == "[−10.00, +20.00]"
    assert [Scale.of([most], percent=False).digits for most in (70.0, -3.0, 0.4)] == [2, 3, 4]
    assert p_value(0.0004) == "<0.001" and p_value(0.05) == "0.050"


def test_grids_stress_and_note() -> None:
    grid = Grid("t", ("a", "b"), (("x_1", "2"),), bold=frozenset({(0, 1)}), notes=("said",))
    assert "| x\\_1 | **2** |" in markdown(grid) and "- said" in markdown(grid)
    assert "\\textbf{2}" in latex(grid) and "said" in latex(grid) and terminal(grid).endswith("\nsaid\n")
