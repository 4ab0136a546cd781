"""Every row that is read ends as an example or as a reject with file, line and reason."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_json

from ift.data.datamodule import InstructionDataModule
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.filters import FilterSettings
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES
from ift.errors import UserError

GOOD = {"instruction": "Say yes.", "input": None, "output": "yes"}
LONG = "stone " * 300
ALPACA: list[tuple[str, str]] = [
    (json.dumps(GOOD), ""),
    (json.dumps({"instruction": "Say yes.", "output": "yes", "extra": [1]}), ""),
    ('{"instruction": "Say yes.", ', "not valid JSON"),
    ("[1, 2]", "a row must be a JSON object, found list"),
    ("null", "a row must be a JSON object, found NoneType"),
    ('"text"', "a row must be a JSON object, found str"),
    ("{}", "found no field"),
    (json.dumps({"q": "x", "a": "y"}), "layout 'alpaca' needs 'instruction' and 'output'; found 'q', 'a'"),
    (json.dumps({**GOOD, "output": None}), "found 'output' null"),
    (json.dumps({**GOOD, "instruction": 3}), "'instruction' must be text, found int"),
    (json.dumps({**GOOD, "input": ["x"]}), "'input' must be text, found list"),
    (json.dumps({**GOOD, "output": {"text": "x"}}), "'output' must be text, found dict"),
    (json.dumps({**GOOD, "output": ""}), "a response is empty"),
    (json.dumps({**GOOD, "output": " \n"}), "a response is empty"),
    (json.dumps({**GOOD, "instruction": " "}), "'instruction' is empty"),
    (json.dumps({**GOOD, "output": LONG}), "data.max_length is 200"),
    (json.dumps({**GOOD, "output": "\ud83d"}), "half of a surrogate pair"),
    (json.dumps(GOOD), ""),
]


def turns(*pairs: tuple[str, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content, **more} for role, content in pairs]})


MESSAGES: list[tuple[str, str]] = [
    (turns(("user", "a"), ("assistant", "b")), ""),
    (turns(("system", "s"), ("user", "a"), ("assistant", "b")), ""),
    (json.dumps({"conversations": []}), "layout 'messages' needs a list 'messages'; found 'conversations'"),
    (json.dumps({"messages": None}), "needs a list 'messages'"),
    (json.dumps({"messages": []}), "the row holds no message"),
    (json.dumps({"messages": ["a"]}), "turn 0 needs 'role' and a text 'content'"),
    (turns(("user", None), ("assistant", "b")), "turn 0 needs 'role' and a text 'content'"),
    (turns(("user", "a")), "the last message must be a response"),
    (turns(("assistant", "b"), ("user", "a")), "must take turns"),
    (turns(("user", "a"), ("user", "a"), ("assistant", "b")), "must take turns"),
    (turns(("user", "a"), ("system", "s"), ("assistant", "b")), "turn 1 has role 'system'"),
    (turns(("user", "a"), ("robot", "b")), "turn 1 has role 'robot'; known: system (first), user, assistant"),
    (turns(("user", "a"), ("assistant", "b"), supervised=False), "no response is supervised"),
]
SHAREGPT = [
    (text.replace('"messages"', '"conversations"').replace('"role"', '"from"').replace('"content"', '"value"'), why)
    for text, why in MESSAGES[:2] + MESSAGES[4:9]
]
SHAREGPT = [(text, why.replace("'role'", "'from'").replace("'content'", "'value'")) for text, why in SHAREGPT]
QUESTIONS = [('{"q": "a", "a": "b"}', ""), ('{"q": "a"}', "the row function failed: KeyError: 'a'")]


def encoder_of(base: Path) -> Encoder:
    return Encoder(load_tokenizer("model.base", str(base)), TEMPLATES["plain"])


def build(cases: list[tuple[str, str]], layout: str, base: Path, tmp_path: Path) -> tuple[Path, ExampleStore]:
    path = tmp_path / f"{layout}.jsonl"
    path.write_text("\n".join(text for text, _ in cases), encoding="utf-8")
    arguments: dict[str, Any] = {
        "settings": PreparationSettings(200),
        "cache_dir": tmp_path / "cache",
        "key": "data.sources",
    }
    return path, ExampleStore(prepare([Source(str(path), layout)], encoder_of(base), **arguments))


@pytest.mark.parametrize(
    ("cases", "layout"),
    [
        (ALPACA, "alpaca"),
        (MESSAGES, "messages"),
        (SHAREGPT, "sharegpt"),
        (QUESTIONS, "row_functions.question"),
        ([("{}", "the row function gave NoneType, not a Conversation")], "row_functions.nothing"),
        ([("{}", "the row function gave a message whose text is no str")], "row_functions.number"),
        ([('{"text": "a"}', ""), ('{"text": ""}', "empty"), ("{}", "layout 'text' needs 'text'")], "text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_row_is_an_example_or_a_reject(
    cases: list[tuple[str, str]], layout: str, base: Path, tmp_path: Path
) -> None:
    path, store = build(cases, layout, base, tmp_path)
    expected = [(number, why) for number, (_, why) in enumerate(cases, 1) if why]
    rejects = [json.loads(line) for line in store.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert [reject["line"] for reject in rejects] == [number for number, _ in expected]
    assert {reject["file"] for reject in rejects} <= {str(path)}
    for reject, (_, why) in zip(rejects, expected, strict=True):
        assert why in reject["reason"]
    (counts,) = store.counts
    assert (counts.rows, counts.examples, counts.num_rejected) == (len(cases), len(store), len(expected))
    assert len(store) + len(rejects) == len(cases)
    assert counts.rejected == Counter(reject["kind"] for reject in rejects)
    assert counts.tokens == store.num_tokens(np.arange(len(store))).sum()
    assert counts.supervised_tokens == store.num_supervised(np.arange(len(store))).sum()
    assert counts.first_rejects == [f"{path} line {r['line']}: {r['reason']}" for r in rejects[:3]]


def test_a_reject_holds_its_row(base: Path, tmp_path: Path) -> None:
    _, store = build(ALPACA, "alpaca", base, tmp_path)
    rejects = [json.loads(line) for line in store.rejects_path.read_text(encoding="utf-8").splitlines()]
    for reject in rejects[1:]:  # the first is no JSON
        assert reject["row"] == json.loads(ALPACA[reject["line"] - 1][0])


def test_rows_of_several_sources_are_counted_apart(base: Path, tmp_path: Path) -> None:
    sources = []
    for name, number in (("a", 3), ("b", 5)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text((json.dumps(GOOD) + "\n") * number + "{}\n", encoding="utf-8")
        sources.append(Source(str(path), "alpaca"))
    store = ExampleStore(
        prepare(sources, encoder_of(base), PreparationSettings(200), cache_dir=tmp_path / "cache", key="data.sources")
    )
    counted = [(counts.path, counts.rows, counts.examples) for counts in store.counts]
    assert counted == [(sources[0].path, 4, 3), (sources[1].path, 6, 5)]
    assert store.column("source").tolist() == [0] * 3 + [1] * 5


@pytest.mark.parametrize(("limit", "allowed"), [(0.2, True), (0.19, False), (0.0, False), (1.0, True)])
def test_the_limit_of_rejected_rows(limit: float, allowed: bool, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 8 + "{}\n{}\n", encoding="utf-8")
    module = InstructionDataModule(
        [Source(str(path), "alpaca")], str(base), 200, 4, 400, max_rejected=limit, cache_dir=str(tmp_path / "cache")
    )
    if allowed:
        module.load()
        assert module.num_train_examples == 8
        return
    with pytest.raises(ValueError) as caught:
        module.load()
    message = str(caught.value)
    assert f"data.sources: 2 of 10 rows cannot be used, more than data.max_rejected {limit:g} allows" in message
    assert f"{path} line 9: layout 'alpaca' needs" in message and "rejects.jsonl" in message
    assert message.endswith("\nMend the rows or their layout. Or raise data.max_rejected.")


@pytest.mark.parametrize(
    ("over_long", "broken", "advice"),
    [
        ("drop", "", "Raise data.max_length, or let data.over_long cut what is longer"),
        ("drop", "{}\n", "Mend the rows or their layout. Raise data.max_length, or let data.over_long cut what"),
        ("cut_end", "", "Raise data.max_length, or let data.over_long cut otherwise"),
    ],
)
def test_where_rows_are_too_long_what_helps_is_named(
    over_long: Any, broken: str, advice: str, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    long = {**GOOD, "instruction": "long " * 300}
    path.write_text("\n".join(map(json.dumps, [GOOD, long, long])) + "\n" + broken, encoding="utf-8")
    options: dict[str, Any] = {"over_long": over_long, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError) as caught:
        InstructionDataModule([Source(str(path), "alpaca")], str(base), 200, 4, 400, **options).load()
    assert f"\n{advice}" in str(caught.value)


def test_own_validation_sources_have_the_same_limit(base: Path, rows_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{}\n", encoding="utf-8")
    held_out = [Source(str(path), "alpaca")]
    module = InstructionDataModule(
        [Source(str(rows_file), "alpaca")],
        str(base),
        256,
        4,
        400,
        validation=held_out,
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(ValueError, match="data.validation: 1 of 2 rows cannot be used") as caught:
        module.load()
    assert f"{path} line 2: " in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("alpacca", "unknown name 'alpacca'. Did you mean 'alpaca'? Known: alpaca, alpaca_cot, baize, "),
        ("row_functions.nonesuch", "cannot be imported"),
        ("no_such_module.f", "cannot be imported"),
        ("row_functions.NOT_A_FUNCTION", "is no function"),
        ("builtins.len", "has no Python source"),
    ],
)
def test_layouts_that_are_none(layout: str, reason: str, base: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        InstructionDataModule(
            [Source(str(rows_file), layout)], str(base), 200, 4, 400, cache_dir=str(tmp_path / "cache")
        ).load()
    assert str(caught.value).startswith("data.sources[0].layout: ") and reason in str(caught.value)


def test_a_row_of_many_conversations_is_written_once(base: Path, tmp_path: Path) -> None:
    """Else the file of rejects would grow with the square of a task's instances."""
    instances = [{"input": f"question {i}", "output": [] if i % 2 else [f"answer {i}"]} for i in range(3000)]
    task = {"Definition": ["Answer."], "Instances": instances}
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task, indent=1), encoding="utf-8")
    source = Source(str(path), "super_natural_instructions")
    folder = prepare([source], encoder_of(base), PreparationSettings(200), cache_dir=tmp_path / "cache", key="k")
    store = ExampleStore(folder)
    assert (len(store), store.counts[0].num_rejected) == (1500, 1500)
    rejects = [json.loads(line) for line in store.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert [reject["row"] is not None for reject in rejects] == [True] + [False] * 1499
    assert {reject["line"] for reject in rejects} == {1}


def test_a_renamed_file_is_named_as_it_is_now(base: Path, tmp_path: Path) -> None:
    first = tmp_path / "a.jsonl"
    first.write_text(json.dumps(GOOD) + "\n", encoding="utf-8")
    arguments: dict[str, Any] = {"settings": PreparationSettings(200), "cache_dir": tmp_path / "cache", "key": "k"}
    pattern = [Source(str(tmp_path / "*.jsonl"), "alpaca")]
    assert ExampleStore(prepare(pattern, encoder_of(base), **arguments)).place(0) == (str(first), 1)
    renamed = first.rename(tmp_path / "b.jsonl")
    assert ExampleStore(prepare(pattern, encoder_of(base), **arguments)).place(0) == (str(renamed), 1)


def test_rejected_rows_of_an_array_on_one_line_are_told_apart(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, {"instruction": "a"}, GOOD, {"output": "b"}]), encoding="utf-8")
    folder = prepare(
        [Source(str(path), "alpaca")],
        encoder_of(base),
        PreparationSettings(200, filters=FilterSettings("near")),
        cache_dir=tmp_path / "cache",
        key="k",
    )
    store = ExampleStore(folder)
    rejects = [json.loads(line) for line in store.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert [(reject["line"], reject["element"]) for reject in rejects] == [(1, 2), (1, 4)]
    assert [place.partition(": ")[0] for place in store.counts[0].first_rejects] == [
        f"{path} line 1, element 2",
        f"{path} line 1, element 4",
    ]
    (removed,) = store.removed_path.read_text(encoding="utf-8").splitlines()
    assert json.loads(removed)["reason"] == f"equal to {path} line 1" and json.loads(removed)["element"] == 3


def test_conversations_are_not_called_rows(base: Path, tmp_path: Path) -> None:
    instances = [{"input": f"question {i}", "output": [] if i % 2 else [f"answer {i}"]} for i in range(6)]
    path = write_json(tmp_path / "task.json", [{"Definition": ["Answer."], "Instances": instances}])
    source = Source(str(path), "super_natural_instructions")
    arguments: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="data.sources: 3 of 6 conversations cannot be used"):
        InstructionDataModule([source], str(base), 256, 1, 512, **arguments).load()
    data = InstructionDataModule([source], str(base), 256, 1, 512, max_rejected=0.5, **arguments)
    data.load()
    assert data.rejected().startswith("3 of 6 conversations cannot be used and are left out")
