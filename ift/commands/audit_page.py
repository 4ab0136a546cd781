"""One self-contained page with the audit and some examples: no script, nothing loaded from elsewhere.

Every text that comes from rows, files or settings is escaped.
"""

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from ift import __version__
from ift.commands.audit_charts import length_chart, share_chart
from ift.commands.audit_numbers import audit_lines, by_count, describe_source, histogram, number, percent, turns_of
from ift.commands.inspection import Inspection, Shown
from ift.commands.token_view import Piece, shown_text, visible
from ift.data.counts import SourceCounts


def write_page(path: Path, inspected: Inspection, shown: Sequence[Shown]) -> None:
    """Write the page; a reader sees all of it or nothing.

    Args:
        path: of a new file.
        inspected: the data.
        shown: the examples to show.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    # A path may hold bytes that are no character; they are shown as escapes.
    temporary.write_text(page(inspected, shown), encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)


def page(inspected: Inspection, shown: Sequence[Shown]) -> str:
    """Return the page as HTML."""
    size = sum(source.counts.examples for source in inspected.audit.sources)
    style = files("ift.commands").joinpath("audit_page.css").read_text(encoding="utf-8")
    parts = [
        f"<h1>Data audit: {number(size)} examples</h1>",
        _problems(inspected),
        _section("What was read", _settings(inspected)),
        _section("Numbers", _numbers(inspected)),
        _section("Shares", _shares(inspected)),
        _section("Lengths in tokens", _lengths(inspected)),
        _section("Responses by turn", _turns(inspected)),
        _section("Rows that became no example", _rejects(inspected)),
        _section("Examples", _LEGEND + "".join(map(example_html, shown))) if shown else "",
        f"<footer>ift {escape(__version__)}, <code>ift data inspect</code></footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Data audit</title>\n<style>\n{style}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def _said(text: str) -> str:
    return escape(visible(text))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _problems(inspected: Inspection) -> str:
    if not inspected.problems:
        return f'<p class="fine">{_FINE}</p>'
    items = "".join(f"<li>{_said(problem)}</li>" for problem in inspected.problems)
    return f'<div class="problem"><strong><code>ift fit</code> refuses these data:</strong><ul>{items}</ul></div>'


_FINE = (
    "No impossible number: each source has supervised tokens and a supervised end-of-text, and no example begins with "
    "begin-of-text twice."
)


def _settings(inspected: Inspection) -> str:
    data, encoder = inspected.data, inspected.data.encoder
    tokens = data.tokenizer.convert_ids_to_tokens
    begin = "none" if encoder.begin_token_id is None else str(tokens(encoder.begin_token_id))
    facts = [
        (f"{inspected.key}[{place}]", describe_source(source.counts))
        for place, source in enumerate(inspected.audit.sources)
    ]
    facts += [
        ("tokenizer", f"{data.base}: {type(data.tokenizer).__name__}, {number(len(data.tokenizer))} tokens"),
        ("begin-of-text", begin),
        ("ends of a response", ", ".join(str(tokens(token)) for token in encoder.stop_token_ids)),
        ("data.max_length", number(data.max_length)),
        ("data.over_long", data.over_long),
        ("data.train_on", data.train_on),
        ("data.text_blocks", "true" if data.text_blocks else "false"),
        ("held out for validation", f"{number(len(inspected.held_out))} examples"),
        ("prepared data", inspected.store.key),
        ("data.template", inspected.template),
    ]
    if inspected.key == "data.sources":  # validation sources are not filtered
        facts += [("data.deduplicate", data.filters.deduplicate)]
        facts += [("data.benchmarks", path) for path in data.filters.benchmarks]
    listed = "".join(f"<dt>{_said(name)}</dt><dd>{_said(value)}</dd>" for name, value in facts)
    template = json.dumps(encoder.template.describe(), ensure_ascii=False, indent=2, default=str)
    return f"<dl>{listed}</dl>\n<details><summary>template</summary><pre>{escape(template)}</pre></details>"


def _names(inspected: Inspection) -> list[str]:
    """Return short names of the sources, and of all of them where there are several."""
    names = [f"[{place}] {Path(source.counts.path).name}" for place, source in enumerate(inspected.audit.sources)]
    return [*names, "all"] if len(names) > 1 else names


def _numbers(inspected: Inspection) -> str:
    lines = []
    for line in audit_lines(inspected.audit):
        cells = "".join(f"<td>{_said(value)}</td>" for value in line.values)
        lines.append(f'<tr><th scope="row">{line.label}<small>{line.explanation}</small></th>{cells}</tr>')
    between = number(inspected.audit.duplicates_between_sources)
    note = f"<p>{between} duplicates of an example of an earlier source, each distinct one counted once.</p>"
    return _table(("", *_names(inspected)), lines) + (note if len(inspected.audit.sources) > 1 else "")


def _shares(inspected: Inspection) -> str:
    sources = {f"[{place}]": one for place, one in enumerate(inspected.audit.sources) if one.counts.examples}
    charts = {
        "Supervised tokens per token": [source.supervised_share for source in sources.values()],
        "Responses whose end-of-text is supervised": [source.end_of_text_rate for source in sources.values()],
        "Examples that were cut": [source.cut_share for source in sources.values()],
    }
    return "".join(
        _figure(label, share_chart(list(zip(sources, shares, strict=True)), label)) for label, shares in charts.items()
    )


def _lengths(inspected: Inspection) -> str:
    figures = []
    for name, source in zip(_names(inspected), inspected.audit.sources, strict=False):
        bins = histogram(source.counts)
        label = f"{visible(name)}: examples by length"
        too_long = sum(count for reason, count in source.counts.rejected.items() if reason.startswith("longer than"))
        note = f"; {number(too_long)} longer ones are rejected" if too_long else ""
        note += f"; {number(source.counts.cut)} longer ones are cut" if source.counts.cut else ""
        chart = length_chart(bins, inspected.data.max_length, label) if bins else "<p>no example</p>"
        figures.append(_figure(label + note, chart))
    return "".join(figures)


def _turns(inspected: Inspection) -> str:
    heads = ("source", "turn", "examples that have it", "supervised tokens", "per response", "share of all")
    rows = []
    for name, source in zip(_names(inspected), inspected.audit.sources, strict=False):
        for turn in turns_of(source.counts):
            share = percent(turn.tokens / max(1, sum(source.counts.supervised_per_turn)))
            rows.append(_row(name, *turn.cells, share))
    return _table(heads, rows)


def _rejects(inspected: Inspection) -> str:
    parts = []
    for name, source in zip(_names(inspected), inspected.audit.sources, strict=False):
        counts = source.counts
        rows = [_row("rejected", number(count), reason) for reason, count in by_count(counts.rejected)]
        rows += [_row("left out", number(count), kind) for kind, count in by_count(counts.removed)]
        if rows:
            table = _table(("", "number", "reason"), rows, "reasons")
            parts.append(f"<h3>{_said(name)}</h3>{table}{_first_places(counts)}")
    if not parts:
        return "<p>Every row became an example.</p>"
    files = "".join(f"<p>{name}: <code>{_said(str(path))}</code></p>" for name, path in inspected.row_files.items())
    return "".join(parts) + files


def _first_places(counts: SourceCounts) -> str:
    places = "".join(f"<li>{_said(place)}</li>" for place in counts.first_rejects)
    return f"<p>The first of them:</p><ul>{places}</ul>" if places else ""


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _table(heads: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{_said(text)}</th>' for text in heads)
    named = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{named}><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(first: str, *cells: str) -> str:
    inner = "".join(f"<td>{_said(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{_said(first)}</th>{inner}</tr>'


_LEGEND = (
    '<p class="legend"><span class="s">supervised</span> tokens, whose labels the loss counts; '
    '<span>other</span> tokens, which are only read; <span class="x">⟨special⟩</span> tokens; '
    '<span class="l">⟨learns: …⟩</span> what is learned in place of the token behind it. ⏎ newline, ⇥ tab, · a blank '
    "that is a token. Shades alternate from token to token; hold the pointer over one for its number.</p>"
)


def example_html(shown: Shown) -> str:
    """Return an example with its header and its tokens."""
    facts = "".join(f"<li>{_said(fact)}</li>" for fact in shown.facts)
    tokens = "".join(map(_token, shown.pieces))
    return (
        f'<article><h3>{escape(shown.title[:1].upper() + shown.title[1:])}</h3><ul class="facts">{facts}</ul>'
        f'<div class="tokens">{tokens}</div></article>\n'
    )


def _token(piece: Piece) -> str:
    kind = ("s" if piece.supervised else "") + ("x" if piece.special else "")
    named = f' class="{" ".join(kind)}"' if kind else ""
    ids = ", ".join(map(str, piece.ids))
    title = f"token {piece.position + 1}, id {ids}" + (", supervised" if piece.supervised else "")
    learns = f'<span class="l">{_said(f"⟨learns: {piece.learns}⟩")}</span>' if piece.learns else ""
    return f'{learns}<span{named} title="{title}">{escape(shown_text(piece))}</span>'
