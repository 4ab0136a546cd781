"""The audit's numbers against a recount from the examples, one by one, and the data that it calls impossible."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import row_of, talks_of
from tiny import make_rows

from ift.data.audit import audit, problems, total
from ift.data.counts import LENGTH_EDGES
from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer, make_renderer
from ift.data.filters import FilterSettings
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES, Template

KEY = "data.sources"
SETTINGS = PreparationSettings(150)


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def store_of(
    sources: list[Source],
    tokenizer: Any,
    tmp_path: Path,
    *,
    settings: PreparationSettings = SETTINGS,
    template: Template | None = TEMPLATES["plain"],
) -> ExampleStore:
    encoder = Encoder(tokenizer, make_renderer(tokenizer, template))
    return ExampleStore(prepare(sources, encoder, settings, cache_dir=tmp_path / "cache", key=KEY))


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer("model.base", str(tokenizer_folder))


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Three sources with every kind of row: long, empty, unsupervised, repeated within and between them."""
    alpaca = make_rows(30)
    alpaca += [*alpaca[3:7], alpaca[3], {"instruction": "a", "output": ""}, {"instruction": "a", "output": "b " * 200}]
    chats = [row_of("messages", talk) for talk in talks_of("messages")]
    chats += chats[:3]
    again = [*make_rows(5, start=2), *make_rows(40, start=50), *make_rows(5, start=2), *make_rows(2, start=50)]
    paths = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate([alpaca, chats, again])]
    return [Source(str(path), name) for path, name in zip(paths, ["alpaca", "messages", "alpaca"], strict=True)]


def runs_of(labels: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != IGNORE_INDEX:
            if place == 0 or labels[place - 1] == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
    return runs


def recount(store: ExampleStore, source: int, end: int) -> dict[str, Any]:
    """Count a source's examples in plain Python."""
    found: dict[str, Any] = Counter()
    seen: set[tuple[int, ...]] = set()
    per_turn: Counter[int] = Counter()
    examples_per_turn: Counter[int] = Counter()
    bins = [0] * len(LENGTH_EDGES)
    for index in range(*store.source_range(source)):
        ids, labels = store[index].input_ids.tolist(), store[index].labels.tolist()
        runs = runs_of(labels)
        found["examples"] += 1
        found["tokens"] += len(ids)
        found["supervised_tokens"] += sum(label != IGNORE_INDEX for label in labels[1:])
        found["longest"] = max(found["longest"], len(ids))
        found["responses"] += len(runs)
        found["ended_responses"] += sum(end in run for run in runs)
        found["duplicates"] += tuple(ids) in seen
        seen.add(tuple(ids))
        for turn, run in enumerate(runs):
            per_turn[turn] += len(run)
            examples_per_turn[turn] += 1
        bins[max(place for place, edge in enumerate(LENGTH_EDGES) if edge <= len(ids))] += 1
    turns = range(len(per_turn))
    found["supervised_per_turn"] = [per_turn[turn] for turn in turns]
    found["examples_per_turn"] = [examples_per_turn[turn] for turn in turns]
    found["lengths"], found["seen"] = bins, seen
    return found


@pytest.mark.parametrize("over_long", ["drop", "cut_end", "cut_start", "cut_turns"])
def test_every_number_equals_a_recount(over_long: Any, sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
    store = store_of(sources, tokenizer, tmp_path, settings=replace(SETTINGS, over_long=over_long))
    whole = store_of(sources, tokenizer, tmp_path, settings=PreparationSettings(9999))
    audited = audit(store)
    end = tokenizer.eos_token_id
    counted = [recount(store, number, end) for number in range(len(sources))]
    for number, (found, expected) in enumerate(zip(audited.sources, counted, strict=True)):
        counts = found.counts
        duplicates, seen = expected.pop("duplicates"), expected.pop("seen")
        assert {name: getattr(counts, name) for name in expected} == dict(expected)
        assert found.duplicates == duplicates == counts.examples - len(seen)
        assert found.supervised_share == expected["supervised_tokens"] / expected["tokens"]
        assert found.end_of_text_rate == expected["ended_responses"] / expected["responses"]
        assert found.mean_tokens == expected["tokens"] / expected["examples"]
        too_long = sum(len(whole[index].input_ids) > 150 for index in range(*whole.source_range(number)))
        rejected = sum(n for reason, n in counts.rejected.items() if reason.startswith("longer than data.max_length"))
        assert counts.cut + rejected == too_long
        assert found.cut_share == counts.cut / counts.examples
        lines = len(Path(sources[number].path).read_text(encoding="utf-8").splitlines())
        assert counts.rows == lines == counts.examples + counts.num_rejected
        expected["seen"] = seen
    between = sum(
        len(one["seen"] & set().union(*(earlier["seen"] for earlier in counted[:number])))
        for number, one in enumerate(counted)
        if number
    )
    assert audited.duplicates_between_sources == between > 0
    assert sum(source.duplicates for source in audited.sources) > 5


def test_a_response_may_end_before_its_last_token(tokenizer: Any, tmp_path: Path) -> None:
    """Some templates write a newline behind the token that ends a response, and it is learned too."""
    source = Source(str(write_lines(tmp_path / "rows.jsonl", make_rows(6))), "alpaca")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    template = Template("own", user="{text}: ", response="{text}{<stop>}\n")
    store = store_of([source], tokenizer, tmp_path, template=template)
    labels = [store[index].labels.tolist() for index in range(6)]
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    assert all(stop in one[:-1] and one[-1] not in (stop, tokenizer.eos_token_id) for one in labels)
    assert audit(store).sources[0].end_of_text_rate == 1


def test_the_sum_of_all_sources(sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
    store = store_of(sources, tokenizer, tmp_path)
    audited = audit(store)
    everything = total(audited.sources)
    assert everything.counts.examples == len(store)
    assert everything.counts.tokens == sum(len(store[index].input_ids) for index in range(len(store)))
    assert everything.duplicates == sum(source.duplicates for source in audited.sources)
    assert everything.counts.num_rejected == sum(source.counts.num_rejected for source in audited.sources)
    assert everything.counts.longest == store.longest


def test_a_later_start_reads_no_example(sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
    store = store_of(sources, tokenizer, tmp_path)
    first = audit(store).describe()
    (store.folder / "examples.arrow").unlink()
    assert audit(ExampleStore(store.folder)).describe() == first
    assert sorted(path.name for path in store.folder.iterdir() if "duplicates" in path.name) == ["duplicates.json"]


def test_the_description_is_plain_values(sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
    audited = audit(store_of(sources, tokenizer, tmp_path))
    described = audited.describe()
    assert json.loads(json.dumps(described)) == described
    assert [one["path"] for one in described["sources"]] == [source.path for source in sources]
    assert [one["duplicates"] for one in described["sources"]] == [one.duplicates for one in audited.sources]


def test_a_column_is_whole_over_many_record_batches(tokenizer: Any, tmp_path: Path) -> None:
    rows = make_rows(2345)
    store = store_of([Source(str(write_lines(tmp_path / "many.jsonl", rows)), "alpaca")], tokenizer, tmp_path)
    assert np.array_equal(store.column("line"), np.arange(1, 2346))
    indices = np.arange(len(store))
    assert np.array_equal(store.column("num_supervised"), store.num_supervised(indices))
    assert audit(store).sources[0].duplicates == 2345 - len({json.dumps(row) for row in rows})


class TestProblems:
    """What makes it senseless to train; each provoked by rows and settings that a person may well have."""

    def test_good_data_have_none(self, sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
        assert problems(audit(store_of(sources, tokenizer, tmp_path)), KEY) == []

    def test_a_source_without_a_supervised_token(self, sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "supervised": False}]
        silent = Source(str(write_lines(tmp_path / "silent.jsonl", [{"messages": turns}] * 4)), "messages")
        (problem,) = problems(audit(store_of([sources[0], silent], tokenizer, tmp_path)), KEY)
        assert problem.startswith(f"data.sources[1]: none of the 4 rows of '{silent.path}' gives a supervised token")
        assert "4 x no response is supervised" in problem and "leave the source out" in problem

    def test_what_a_filter_left_out_is_no_problem(self, sources: list[Source], tokenizer: Any, tmp_path: Path) -> None:
        again = Source(str(write_lines(tmp_path / "again.jsonl", make_rows(8))), "alpaca")
        settings = replace(SETTINGS, filters=FilterSettings(deduplicate="exact"))
        audited = audit(store_of([sources[0], again], tokenizer, tmp_path, settings=settings))
        assert audited.sources[1].counts.examples == 0 and audited.sources[1].counts.num_removed == 8
        assert problems(audited, KEY) == []

    def test_end_of_text_that_is_always_cut_off(self, tokenizer: Any, tmp_path: Path) -> None:
        rows = [{"instruction": "a", "output": "stone " * 30}] * 3
        source = Source(str(write_lines(tmp_path / "long.jsonl", rows)), "alpaca")
        settings = PreparationSettings(20, "cut_end")
        audited = audit(store_of([source], tokenizer, tmp_path, settings=settings))
        (problem,) = problems(audited, "data.validation")
        assert problem.startswith(
            f"data.validation[0]: end-of-text is never supervised: none of 3 responses of '{source.path}' ends with it "
            "(3 of 3 examples are cut)"
        )
        assert "Raise data.max_length" in problem
        assert audited.sources[0].end_of_text_rate == 0

    def test_one_whole_response_is_enough(self, tokenizer: Any, tmp_path: Path) -> None:
        rows = [{"instruction": "a", "output": "stone " * 30}] * 3 + [{"instruction": "a", "output": "b"}]
        source = Source(str(write_lines(tmp_path / "long.jsonl", rows)), "alpaca")
        settings = PreparationSettings(20, "cut_end")
        audited = audit(store_of([source], tokenizer, tmp_path, settings=settings))
        assert problems(audited, KEY) == [] and audited.sources[0].end_of_text_rate == 0.25

    def test_begin_of_text_written_twice(self, tokenizer: Any, tmp_path: Path) -> None:
        """As where a chat template begins every request with it, and the conversation too."""
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}{{ m.content }}: "
            "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        source = Source(str(write_lines(tmp_path / "rows.jsonl", make_rows(6))), "alpaca")
        store = store_of([source], tokenizer, tmp_path, template=None)
        begin = tokenizer.bos_token_id
        assert all(store[index].input_ids[:2].tolist() == [begin, begin] for index in range(6))
        (problem,) = problems(audit(store), KEY)
        assert problem.startswith("data.sources[0]: begin-of-text stands twice at the start of 6 of 6 examples")
        assert "data.template" in problem
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("{{ bos_token }}")
        assert problems(audit(store_of([source], tokenizer, tmp_path, template=None)), KEY) == []
