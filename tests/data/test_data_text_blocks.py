"""Plain texts in blocks: every token of every text is in exactly one block, in order, and each block is full."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_stream_steps import steps_of
from tiny import CHINESE, WORDS, make_rows, write_json

from ift.cli import main
from ift.data.conversation import Conversation, Message
from ift.data.datamodule import InstructionDataModule
from ift.data.encoding import IGNORE_INDEX, LOSS, EncodedBatch
from ift.data.rows import Source
from ift.data.steps import Step
from ift.data.templates import TEMPLATES, Template
from ift.data.text_blocks import SHORTEST, TextBlocks, is_plain_text
from ift.errors import UserError


def texts(number: int, *, seed: int = 0) -> list[str]:
    """Return texts of very different lengths."""
    generator = random.Random(seed)
    words = [*CHINESE, *(f" {word}" for word in WORDS)]
    return ["".join(generator.choices(words, k=generator.choice([1, 9, 80]))).strip() for _ in range(number)]


def write_texts(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def module(base: Path, tmp_path: Path, sources: list[Source], **settings: Any) -> InstructionDataModule:
    given: dict[str, Any] = {"text_blocks": True, "cache_dir": str(tmp_path / "cache"), "shuffle_buffer": 7, **settings}
    length = given.pop("max_length", 32)
    data = InstructionDataModule(sources, str(base), length, 4, max(64, length), **given)
    data.load()
    return data


def ids_of(data: InstructionDataModule) -> list[list[int]]:
    return [data.store[index].input_ids.tolist() for index in range(len(data.store))]


def joined_ids(data: InstructionDataModule, rows: Sequence[str]) -> list[int]:
    """Return the ids of the texts laid end to end, by transformers' own call: begin-of-text, the text, end-of-text."""
    tokenizer = data.tokenizer
    ids: list[int] = []
    for row in rows:
        ids += [*tokenizer(row, add_special_tokens=True).input_ids, tokenizer.eos_token_id]
    return ids


def cut(ids: Sequence[int], length: int) -> list[list[int]]:
    """Return the ids in blocks, as one writes it in one line; a single token takes one of the block before."""
    blocks = [list(ids[start : start + length]) for start in range(0, len(ids), length)]
    if len(blocks) > 1 and len(blocks[-1]) == 1:
        blocks[-1].insert(0, blocks[-2].pop())
    return blocks


def ids_in(batch: EncodedBatch) -> list[list[int]]:
    return [batch.input_ids[start:end].tolist() for start, end in pairwise(batch.starts)]


@pytest.mark.parametrize("seed", range(30))
def test_the_cut_is_the_same_however_the_texts_are_handed_over(seed: int) -> None:
    generator = random.Random(seed)
    length = generator.choice([SHORTEST, 4, 7, 32])
    sizes = [generator.choice([2, 3, length, length + 1, 3 * length + 1, 5]) for _ in range(generator.randrange(1, 40))]
    ids = np.arange(sum(sizes), dtype=np.int32)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    blocks: TextBlocks[int] = TextBlocks(length)
    found: list[list[int]] = []
    places: list[int] = []
    start = 0
    while start < len(sizes):
        stop = min(len(sizes), start + generator.randrange(0, 5))
        own = slice(ends[start - 1] if start else 0, ends[stop - 1] if stop else 0)
        size = own.stop - own.start
        batch = EncodedBatch(ids[own], np.full(size, LOSS, np.uint8), np.array(sizes[start:stop], np.int32))
        finished, begun = blocks.add(batch, range(start, stop))
        assert set(finished.num_tokens.tolist()) <= {length}
        found += ids_in(finished)
        places += begun
        start = stop
    rest, begun = blocks.finish()
    found += ids_in(rest)
    places += begun
    assert found == cut(ids.tolist(), length)
    assert places == [owner[block[0]] for block in found]
    assert all(len(block) > 1 for block in found)
    assert rest.num_supervised.tolist() == [len(block) - 1 for block in found[len(found) - len(rest) :]]
    assert len(blocks.finish()[0]) == 0


@pytest.mark.parametrize("length", [SHORTEST, 16, 32, 250])
def test_blocks_hold_every_token_once_and_all_are_supervised(
    any_tokenizer_folder: Path, tmp_path: Path, length: int
) -> None:
    rows = texts(1200)  # more than a batch of the preparation
    path = write_texts(tmp_path / "text.jsonl", rows)
    data = module(any_tokenizer_folder, tmp_path, [Source(str(path), "text")], max_length=length)
    expected = cut(joined_ids(data, rows), length)
    assert ids_of(data) == expected
    assert all((data.store[index].labels == expected[index]).all() for index in range(len(expected)))
    (counts,) = data.store.counts
    assert (counts.rows, counts.texts, counts.blocks, counts.examples) == (1200, 1200, len(expected), len(expected))
    assert counts.short_blocks == sum(len(block) < length for block in expected) <= 2
    assert counts.tokens - counts.supervised_tokens == counts.blocks, "only what nothing stands before has no label"
    assert data.num_rejected == 0


def test_instructions_among_texts_stay_as_they_are(base: Path, tmp_path: Path) -> None:
    """One source of both: its texts become blocks of their own, whatever stands between them."""
    instructions, plain = make_rows(30), texts(30)
    mixed = [row for pair in zip(instructions, ({"text": text} for text in plain), strict=True) for row in pair]
    sources = [
        Source(str(write_json(tmp_path / "mixed.json", mixed)), "row_functions.either"),
        Source(str(write_json(tmp_path / "rows.json", instructions)), "alpaca"),
        Source(str(write_texts(tmp_path / "text.jsonl", plain[:9])), "text"),
    ]
    data = module(base, tmp_path, sources, max_length=200)
    without = module(base, tmp_path, sources[1:2], max_length=200, text_blocks=False)
    examples = [sorted(ids_of(data)[slice(*data.store.source_range(number))]) for number in range(3)]
    alone = sorted(ids_of(without))
    assert examples[1] == alone
    assert examples[0] == sorted(alone + cut(joined_ids(data, plain), 200))
    assert examples[2] == sorted(cut(joined_ids(data, plain[:9]), 200)), "a source begins a block of its own"
    assert [counts.texts for counts in data.store.counts] == [30, 0, 9]
    assert [counts.num_used for counts in data.store.counts] == [60, 30, 9]


def test_only_texts_that_are_to_be_learned_are_joined() -> None:
    assert is_plain_text(Conversation((Message("assistant", "a"),)))
    assert is_plain_text(Conversation((Message("assistant", "a", supervised=True),)))
    assert not is_plain_text(Conversation((Message("assistant", "a", supervised=False),)))
    assert not is_plain_text(Conversation((Message("assistant", "a"),), system="s"))


def test_a_block_tells_where_it_begins_and_what_is_left_out_is_counted(base: Path, tmp_path: Path) -> None:
    plain = [*texts(20), "", texts(1)[0], "stone " * 30]
    path = write_texts(tmp_path / "text.jsonl", plain)
    data = module(base, tmp_path, [Source(str(path), "text")], deduplicate="exact", max_rejected=0.1)
    usable = [number for number, text in enumerate(plain) if text and text not in plain[:number]]
    (counts,) = data.store.counts
    assert (counts.rows, counts.texts, counts.num_rejected) == (23, len(usable), 1)
    assert counts.num_used + counts.num_rejected + counts.num_removed == 23
    assert ids_of(data) == cut(joined_ids(data, [plain[number] for number in usable]), 32)
    owners = [number + 1 for number in usable for _ in joined_ids(data, [plain[number]])]
    starts = np.cumsum([0, *map(len, ids_of(data))])[:-1]
    assert [data.store.place(index) for index in range(len(starts))] == [(str(path), owners[start]) for start in starts]


def test_templates_have_no_part_in_blocks(base: Path, tmp_path: Path) -> None:
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", texts(20))), "text")]
    found = [ids_of(module(base, tmp_path, sources, template=name)) for name in ("alpaca", "belle", "chatml", "raw")]
    assert all(one == found[0] for one in found)


def test_the_setting_is_part_of_the_key_of_the_cache(base: Path, tmp_path: Path) -> None:
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", texts(40))), "text")]
    settings: dict[str, Any] = {"over_long": "cut_end", "max_length": 64}
    joined, single, again = (module(base, tmp_path, sources, text_blocks=on, **settings) for on in (True, False, True))
    assert joined.store.key == again.store.key != single.store.key
    assert len(single.store) == 40 and single.store.counts[0].texts == 0


def rows_of(steps: Sequence[Step]) -> list[list[list[int]]]:
    """Return per step the ids of what counts in it, sorted."""
    found = []
    for step in steps:
        own: list[list[int]] = []
        for batch in step.micro_batches:
            for ids, labels, lengths in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
                starts = np.cumsum([0, *lengths])
                for start, end in pairwise(starts):
                    if (labels[start:end] != IGNORE_INDEX).any():
                        own.append(ids[start:end].tolist())
        found.append(sorted(own))
    return found


def test_a_stream_joins_the_texts_of_a_step(base: Path, tmp_path: Path) -> None:
    plain = texts(26)
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", plain)), "text", stream=True)]
    single = module(base, tmp_path, sources, text_blocks=False, max_length=1000)
    data = module(base, tmp_path, sources)
    by_ids = {tuple(joined_ids(data, [text])): text for text in plain}
    for whole, step in zip(rows_of(steps_of(single, 12)), steps_of(data, 12), strict=True):
        tokens = [token for row in whole for token in row]
        assert step.num_tokens == len(tokens) and len(whole) == 4
        assert step.progress is not None and step.progress.num_used == (4,)
        joined = [ids for row in rows_of([step])[0] for ids in row]
        assert sorted(joined) == sorted(tokens)
        assert {tuple(row) for row in whole} <= set(by_ids)
        lengths = sorted((len(row) for row in rows_of([step])[0]), reverse=True)
        assert lengths == [len(block) for block in cut(tokens, 32)]
        assert step.num_supervised == step.num_tokens - len(lengths)


@pytest.mark.parametrize("stream", [True, False])
def test_ranks_workers_and_resumed_runs_take_the_same_blocks(base: Path, tmp_path: Path, stream: bool) -> None:
    sources = [
        Source(str(write_texts(tmp_path / "text.jsonl", texts(26))), "text", stream=stream),
        Source(str(write_json(tmp_path / "rows.json", make_rows(20))), "alpaca"),
    ]
    settings: dict[str, Any] = {"mixing": "examples", "max_length": 200}
    data = module(base, tmp_path, sources, **settings)
    steps = steps_of(data, 6)[:6]
    expected = rows_of(steps)
    assert len({str(step) for step in expected}) == 6
    with_workers = module(base, tmp_path, sources, num_workers=2, **settings)
    assert rows_of(steps_of(with_workers, 6)[:6]) == expected
    ranks = [
        rows_of(steps_of(data_of_rank, 6, rank=rank, world_size=2)[:6])
        for rank, data_of_rank in enumerate([module(base, tmp_path, sources, **settings) for _ in range(2)])
    ]
    assert [sorted(one + other) for one, other in zip(*ranks, strict=True)] == expected
    for step in steps[:3]:
        data.advance(step)
    state = json.loads(json.dumps(data.state_dict()))
    resumed = module(base, tmp_path, sources, **settings)
    resumed.load_state_dict(state)
    assert rows_of(steps_of(resumed, 6)[:3]) == expected[3:]


def test_what_was_joined_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_texts(tmp_path / "text.jsonl", texts(40))
    data = module(base, tmp_path, [Source(str(path), "text")], validation=3)
    (counts,) = data.store.counts
    said = f"{path}: 40 texts joined and cut into {counts.blocks} blocks (1 of them shorter)"
    assert data.notes()[0] == said
    assert "data.validation: 3 holds out blocks" in data.notes()[1]
    (described,) = data.describe()["sources"]
    assert (described["texts"], described["blocks"], described["short_blocks"]) == (40, counts.blocks, 1)
    rows = write_json(tmp_path / "rows.json", make_rows(20))
    unused = module(base, tmp_path, [Source(str(rows), "alpaca")], max_length=256)
    assert unused.notes() == [
        "data.text_blocks: true, but no source holds plain text (layout text), so it changes nothing"
    ]
    stream = module(base, tmp_path, [Source(str(path), "text", stream=True)])
    assert stream.notes() == [f"{path}: a stream; its texts are joined within each step"]


def test_inspection_shows_blocks(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_texts(tmp_path / "text.jsonl", texts(40))
    sources = [{"path": str(path), "layout": "text"}]
    run = config(data={"sources": sources, "validation": None, "text_blocks": True, "max_length": 64})
    page = tmp_path / "page.html"
    assert main(["data", "inspect", "--config", str(run), "--number", "1", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "40 texts joined and cut into" in shown and "64 tokens, 63 supervised" in shown
    assert "40 texts joined and cut into" in page.read_text(encoding="utf-8")


def test_a_block_needs_room_for_labels(base: Path, tmp_path: Path) -> None:
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", texts(4))), "text")]
    with pytest.raises(UserError, match="data.max_length: 2 is less than 3, the shortest block of data.text_blocks"):
        module(base, tmp_path, sources, max_length=2)


def test_a_run_on_blocks_learns_and_reports_them(config: Any, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "text.jsonl", texts(60))
    held_out = write_texts(tmp_path / "held_out.jsonl", texts(20, seed=1))
    data = {
        "sources": [{"path": str(path), "layout": "text"}],
        "validation": [{"path": str(held_out), "layout": "text"}],
        "text_blocks": True,
        "max_length": 64,
    }
    run = config(data=data)
    assert main(["fit", "--config", str(run)]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["sources"][0]["texts"] == 60
    assert manifest["data"]["validation_sources"][0]["texts"] == 20
    losses = [one["loss"] for one in manifest["validation"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("template", [TEMPLATES["plain"].for_encoder_decoder(), TEMPLATES["chatglm"]])
def test_a_model_that_reads_in_both_directions_takes_no_block(base: Path, tmp_path: Path, template: Template) -> None:
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", texts(4))), "text")]
    with pytest.raises(UserError, match="data.text_blocks: true joins texts for a model that predicts"):
        module(base, tmp_path, sources, template=template)


def test_half_of_a_block_is_the_prompt_for_the_other(base: Path, tmp_path: Path) -> None:
    sources = [Source(str(write_texts(tmp_path / "text.jsonl", texts(40))), "text")]
    data = module(base, tmp_path, sources, validation=5)
    pairs = data.validation_prompts(5)
    blocks = [data.store[int(index)].input_ids.tolist() for index in data._validation_indices]
    assert [prompt + response for prompt, response in pairs] == blocks
    assert [len(prompt) for prompt, _ in pairs] == [len(block) // 2 for block in blocks]
