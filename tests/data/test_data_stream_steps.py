"""Steps of a run with streams: shares as asked, the same on every rank and worker, nothing doubled or lost."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import make_rows, write_json

from ift.data.datamodule import InstructionDataModule
from ift.data.rows import Source
from ift.data.steps import Step
from ift.data.stream_steps import rows_taken
from ift.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_every_beginning_is_as_close_to_the_shares_as_can_be(seed: int) -> None:
    generator = random.Random(seed)
    weights = [generator.choice([1, 2, 0.1, generator.random() + 0.01]) for _ in range(generator.randrange(1, 7))]
    shares = [weight / sum(weights) for weight in weights]
    before = [0] * len(shares)
    for total in range(300):
        taken = rows_taken(shares, total)
        assert sum(taken) == total
        assert all(old <= new for old, new in zip(before, taken, strict=True))
        closest = max(1, len(shares) / 2)
        assert all(abs(n - share * total) < closest for n, share in zip(taken, shares, strict=True))
        before = taken


def stream_file(folder: Path, number: int, *, start: int = 1000, broken: tuple[int, ...] = ()) -> Path:
    path = folder / f"stream{start}.jsonl"
    rows = make_rows(number, start=start)
    lines = ["{broken" if i in broken else json.dumps(row, ensure_ascii=False) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def module(base: Path, sources: list[Source], tmp_path: Path, **settings: Any) -> InstructionDataModule:
    cache = str(tmp_path / "cache")
    arguments: dict[str, Any] = {"shuffle_buffer": 7, "mixing": "examples", "cache_dir": cache, **settings}
    made = InstructionDataModule(sources, str(base), 256, 8, 512, **arguments)
    made.load()
    return made


def steps_of(data: InstructionDataModule, number: int, *, rank: int = 0, world_size: int = 1) -> list[Step]:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, max_steps=number)  # type: ignore[assignment]
    steps = list(data.train_dataloader())
    data.trainer = None
    return steps


def texts(data: InstructionDataModule, steps: list[Step]) -> list[list[str]]:
    """Return per step the decoded examples that count, sorted."""
    result = []
    for step in steps:
        found = []
        for batch in step.micro_batches:
            for ids, labels, lengths in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
                start = 0
                for length in lengths:
                    if (labels[start : start + length] >= 0).any():
                        found.append(data.tokenizer.decode(ids[start : start + length]))
                    start += length
        result.append(sorted(found))
    return result


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    stored = write_json(tmp_path / "stored.json", make_rows(20))
    stream = stream_file(tmp_path, 30)
    return [Source(str(stored), "alpaca", weight=1), Source(str(stream), "alpaca", weight=3, stream=True)]


def test_shares_are_exact_and_every_pass_is_whole(base: Path, sources: list[Source], tmp_path: Path) -> None:
    data = module(base, sources, tmp_path)
    found = texts(data, steps_of(data, 20))
    assert [len(step) for step in found] == [8] * 20
    from_stream = [[text for text in step if re.search(r"10\d\d", text)] for step in found]
    assert [len(step) for step in from_stream] == [6] * 20
    streamed = Counter(text for step in from_stream for text in step)
    assert len(streamed) == 30 and set(streamed.values()) == {4}  # 120 rows of a stream of 30
    stored = Counter(text for step in found for text in step) - streamed
    assert len(stored) == 20 and set(stored.values()) == {2}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_step_without_doubles_or_losses(
    base: Path, sources: list[Source], tmp_path: Path, world_size: int
) -> None:
    whole = module(base, sources, tmp_path)
    expected = texts(whole, steps_of(whole, 6))
    parts = []
    for rank in range(world_size):
        data = module(base, sources, tmp_path)
        steps = steps_of(data, 6, rank=rank, world_size=world_size)
        assert [step.num_examples for step in steps] == [8] * 6
        parts.append(texts(data, steps))
    assert [sorted(text for part in parts for text in part[n]) for n in range(6)] == expected


def test_workers_give_the_same_steps(base: Path, sources: list[Source], tmp_path: Path) -> None:
    alone, several = module(base, sources, tmp_path), module(base, sources, tmp_path, num_workers=2)
    one, two = steps_of(alone, 9), steps_of(several, 9)
    assert texts(alone, one) == texts(several, two)
    assert [step.num_supervised for step in one] == [step.num_supervised for step in two]
    assert [step.progress and step.progress.num_rows for step in two] == [(0, 6)] * 9


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_user_can_repair_is_one_line_from_a_worker_too(base: Path, tmp_path: Path, workers: int) -> None:
    path = stream_file(tmp_path, 200)
    data = module(base, [Source(str(path), "alpaca", stream=True)], tmp_path, num_workers=workers)
    path.write_text("\n\n")  # after the run has begun
    with pytest.raises(UserError) as caught:
        steps_of(data, 5)
    assert str(caught.value) == f"'{path}' and its companions hold no row, so there is no stream."


@pytest.mark.parametrize("stop", [1, 3, 4, 8])
def test_going_on_from_any_step_gives_the_rest(base: Path, sources: list[Source], tmp_path: Path, stop: int) -> None:
    whole = module(base, sources, tmp_path)
    steps = steps_of(whole, 12)
    for step in steps[:stop]:
        whole.advance(step)
    state = json.loads(json.dumps(whole.state_dict()))
    again = module(base, sources, tmp_path)
    again.load_state_dict(state)
    assert texts(again, steps_of(again, 12)) == texts(whole, steps)[stop:]
    assert again.stream_counts.rows == [0, 6 * stop]


def test_tokens_are_shared_as_asked(base: Path, tmp_path: Path) -> None:
    """Of a stream the mean length is estimated from its first rows, here all of them."""
    short = [{"instruction": "Say.", "output": "yes"}] * 40
    long = [{"instruction": "Repeat. " + "river stone " * 12, "output": "river stone " * 12}] * 40
    stored = write_json(tmp_path / "short.json", short)
    stream = tmp_path / "long.jsonl"
    stream.write_text("".join(json.dumps(row) + "\n" for row in long))
    pair = [Source(str(stored), "alpaca"), Source(str(stream), "alpaca", stream=True)]
    data = module(base, pair, tmp_path, mixing="tokens", template="plain")
    steps = steps_of(data, 30)
    lengths = [len(data.tokenizer(text, add_special_tokens=False).input_ids) for s in texts(data, steps) for text in s]
    of_long = sum(length for length in lengths if length > max(lengths) / 2)
    assert abs(of_long / sum(lengths) - 0.5) < 0.05
    assert any("estimated from its first 40" in note for note in data.notes())


def test_a_row_that_cannot_be_used_leaves_its_step_smaller(base: Path, tmp_path: Path) -> None:
    path = stream_file(tmp_path, 24, broken=(3, 17))
    data = module(base, [Source(str(path), "alpaca", stream=True)], tmp_path, max_rejected=0.2)
    steps = steps_of(data, 3)
    assert sum(step.num_examples for step in steps) == 22
    rejects = [reject for step in steps if step.progress for _, reject in step.progress.rejected]
    assert sorted(reject.line for reject in rejects) == [4, 18] and {reject.file for reject in rejects} == {str(path)}
    for step in steps:
        data.advance(step)
    assert data.describe()["streams"]["rows"] == [24] and data.describe()["streams"]["examples"] == [22]
    assert sum(data.stream_counts.rejected.values()) == 2


def test_too_many_unusable_rows_stop_the_run(base: Path, tmp_path: Path) -> None:
    path = stream_file(tmp_path, 200, broken=tuple(range(100, 200, 4)))
    data = module(base, [Source(str(path), "alpaca", stream=True)], tmp_path, shuffle_buffer=50)
    with pytest.raises(UserError, match=r"\d+ of \d+ rows of the streams cannot be used, more than data.max_rejected"):
        for step in steps_of(data, 200):
            data.advance(step)


def test_the_layout_of_a_stream_is_told_from_its_rows(base: Path, tmp_path: Path) -> None:
    data = module(base, [Source(str(stream_file(tmp_path, 20)), stream=True)], tmp_path)
    assert data.streams[0].resolved.layout == "alpaca"
    assert any("its first rows have layout 'alpaca'" in note for note in data.notes())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixing": "repeats"}, "data.mixing: 'repeats' needs to know how many examples"),
        ({"deduplicate": "exact"}, "data.deduplicate: 'exact' needs to see all rows"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer: 0 is less than 1"),
    ],
)
def test_what_needs_all_rows_is_refused(
    base: Path, sources: list[Source], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        module(base, sources, tmp_path, **settings)


def test_a_stream_of_unusable_rows_is_refused_at_once(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a"}\n' * 5)
    with pytest.raises(UserError, match=r"none of the first 5 rows can be used:\n.*'output'"):
        module(base, [Source(str(path), "alpaca", stream=True)], tmp_path)


def test_nothing_can_be_held_out_of_streams_alone(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.validation: 3 can only be held out of sources that do not stream"):
        module(base, [Source(str(stream_file(tmp_path, 9)), "alpaca", stream=True)], tmp_path, validation=3)


def test_errors_name_the_source_as_it_is_numbered(base: Path, tmp_path: Path) -> None:
    """A stream before a prepared source moves no number."""
    stream, stored = stream_file(tmp_path, 9), tmp_path / "rows.jsonl"
    stored.write_text('{"p": "a", "q": "b"}\n')
    pair = [Source(str(stream), "alpaca", stream=True), Source(str(stored))]
    with pytest.raises(UserError, match=r"data.sources\[1\].layout: no layout is known by the fields 'p', 'q'"):
        module(base, pair, tmp_path)
