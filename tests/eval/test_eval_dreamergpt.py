import json
from pathlib import Path

import pytest

from eval.dreamergpt import BENCHMARK, prepare
from ift.errors import UserError
from ift.records import Prediction

SYSTEMS = ("one", "two", "three")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    tasks = {"02translate": [f"译{number}" for number in range(10)], "01qa": ["问{一}", "问二"], "09riddles": ["谜"]}
    for name, prompts in tasks.items():
        (folder / f"{name}.json").write_text(json.dumps(prompts, ensure_ascii=False), encoding="utf-8")
    return folder


def answers(folder: Path) -> dict[str, list[Prediction]]:
    return {
        name: [Prediction(one.id, "…", f"{name} on {one.id}", "stop", meta=one.meta) for one in prepare(folder)]
        for name in SYSTEMS
    }


def test_tasks_are_named_after_their_files(folder: Path) -> None:
    prompts = list(prepare(folder))
    assert [one.meta["category"] for one in prompts] == ["知识问答"] * 2 + ["翻译"] * 10 + ["riddles"]
    assert prompts[0].id == "dreamergpt-01qa-01" and prompts[0].messages == ({"role": "user", "content": "问{一}"},)
    assert list(prepare(folder / "09riddles.json")) == prompts[-1:]


def test_one_message_shows_all_systems_in_a_seeded_order(folder: Path) -> None:
    judge, systems = BENCHMARK.judge, answers(folder)
    assert judge is not None and not judge.single
    asked = list(judge.ask(systems, folder, 1))
    assert len(asked) == 13
    for one in asked:
        text, item = one.messages[0]["content"], one.meta["item"]
        places = [
            text.index(f"System{number}：\n{name} on {item}") for number, name in enumerate(one.meta["systems"], 1)
        ]
        assert places == sorted(places)
        assert text.endswith("System1: <0 到 10 的分数>\nSystem2: <0 到 10 的分数>\nSystem3: <0 到 10 的分数>")
    assert "问{一}" in asked[0].messages[0]["content"]
    orders = {tuple(one.meta["systems"]) for one in asked}
    assert orders == {SYSTEMS, ("two", "three", "one"), ("three", "one", "two")}
    assert [one.meta["systems"] for one in judge.ask(systems, folder, 2)] != [one.meta["systems"] for one in asked]


def test_a_task_is_the_sum_of_its_ten_scores(folder: Path) -> None:
    """Whatever place a system stood in; one unread score leaves its item out of that system's mean only."""
    judge, systems = BENCHMARK.judge, answers(folder)
    assert judge is not None
    scores = {"one": 7.5, "two": 4.0, "three": 9.25}
    replies = []
    for one in judge.ask(systems, folder, 0):
        lines = [f"System{number}: {scores[name]}" for number, name in enumerate(one.meta["systems"], 1)]
        if one.meta["item"] == "dreamergpt-09riddles-01":
            lines = [line.replace("4.0", "40") for line in lines]
        replies.append(Prediction(one.id, "…", "理由。\n" + "\n".join(lines), meta=one.meta))
    reports = judge.score(replies, systems, folder)
    for name, score in scores.items():
        assert reports[name].categories["翻译"].score == pytest.approx(sum([score] * 10))
        assert reports[name].headline == ("macro", reports[name].aggregates["macro"])
        assert reports[name].headline[1].score == pytest.approx(10 * score)
    assert list(reports["one"].categories) == ["知识问答", "翻译", "riddles"]
    assert list(reports["two"].categories) == ["知识问答", "翻译"]
    assert list(reports["two"].unread) == ["dreamergpt-09riddles-01"]
    assert "1 of 13 items (7.7%)" in reports["two"].notes[0] and reports["one"].notes == ()


def test_files_that_are_no_lists_of_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no .json file"):
        list(prepare(tmp_path))
    for text in ('{"a": 1}', "[]", '["", "x"]', "[1]", "no"):
        (tmp_path / "01qa.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"01qa\.json: "):
            list(prepare(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        list(prepare(tmp_path / "02.json"))
