import json
from fractions import Fraction
from pathlib import Path

import pytest

from eval.aggregation import Cell
from eval.chinese_llama_alpaca import BENCHMARK, Rounded, prepare
from eval.comparison_pages import read_comparison
from eval.conversations import join, next_prompts
from eval.rounding import half_up
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

QA = """# 知识问答

## 分数表

|         | 总分 |  #1  |  #2  |
| ------- | :--: | :--: | :--: |
| **7B**  |  53  |  10  | 8.5  |
| **13B** |  77  |  9   |  5   |

*总分计算 = 样例得分之和 / 样本数量 × 10*

## 测试样例

| #    | Prompt | 中文7B | 中文13B |
| ---- | ------ | ------ | ------- |
| 1    | 什么是管道<br/>`a \\| b`？ | 第一行<br/>第二行 | 一种连接 |
| 2    | 第二问 | 答二 | |
"""
CODE = """# 代码编程

## 分数表

|         | 总分 |  #1  |  #2  |
| ------- | :--: | :--: | :--: |
| **7B**  |  1   |  1   |  2   |
| **13B** |  2   |  3   |  4   |

## 测试样例

**1、写一个循环**

7B:

```python
for i in x:

    print(i)
```

13B:

````
见下：

```python
13B:
```
````

| #    | Prompt | 7B | 13B |
| ---- | ------ | -- | --- |
| 2    | 解释循环 | 重复 | 反复 |
"""
DIALOGUE = """# 多轮交互

## 分数表

|         | 总分 |  #1  |
| ------- | :--: | :--: |
| **7B**  |  70  |  7   |
| **13B** |  80  |  8   |

## 测试样例

| #    | 主题 | 7B | 13B |
| ---- | ---- | -- | --- |
| 1    | 做饭 | > 怎么做饭？<br/>先洗米。<br/>>然后呢？<br/>*煮。* | > 怎么做饭？<br/>洗米。 |
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, text in (("QA", QA), ("CODE", CODE), ("DIALOGUE", DIALOGUE), ("README", "# 说明")):
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def answer(prompts: list[PromptRecord], name: str) -> list[Prediction]:
    return [Prediction(one.id, "…", f"{name}{len(one.messages)}", "stop", meta=one.meta) for one in prompts]


def test_pages_are_read_with_all_their_quirks(folder: Path) -> None:
    samples = {(one.task, one.index): one for one in read_comparison(folder)}
    assert list(samples) == [("QA", 1), ("QA", 2), ("DIALOGUE", 1), ("CODE", 1), ("CODE", 2)]
    first = samples["QA", 1]
    assert first.prompt == "什么是管道\n`a | b`？" and first.turns == (first.prompt,)
    assert first.outputs == {"7B": "第一行\n第二行", "13B": "一种连接"}
    assert first.scores == {"7B": 10, "13B": 9} and samples["QA", 2].scores == {"7B": 8.5, "13B": 5}
    assert samples["QA", 2].outputs["13B"] == ""
    code = samples["CODE", 1]
    assert code.prompt == "写一个循环"
    assert code.outputs == {"7B": "for i in x:\n\n    print(i)", "13B": "见下：\n\n```python\n13B:\n```"}
    assert samples["CODE", 2].outputs == {"7B": "重复", "13B": "反复"}
    talk = samples["DIALOGUE", 1]
    assert (talk.prompt, talk.turns) == ("做饭", ("怎么做饭？", "然后呢？"))


def test_json_lines_hold_the_same(folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "task": one.task,
            "idx": one.index,
            "prompt": one.prompt.replace("\n", "<br/>").replace("|", "\\|"),
            "outputs": {name: text.replace("\n", "<br/>") for name, text in one.outputs.items()},
            "scores": one.scores,
        }
        for one in read_comparison(folder)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reversed(rows)), encoding="utf-8")
    key = [(one.task, one.index) for one in read_comparison(folder)]
    found = {(one.task, one.index): one for one in read_comparison(path)}
    assert [found[one] for one in key] == read_comparison(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("|  #1  |  #2  |", "|  一  |  二  |", "no table of scores"),
        ("8.5", "good", "a score is no number"),
        ("## 测试样例", "## 其他", "no heading"),
        ("| 2    | 第二问 | 答二 | |\n", "", r"1 samples, numbered \[1\], but scores for"),
        ("| 2    | 第二问", "| 3    | 第二问", r"numbered \[1, 3\]"),
    ],
)
def test_a_page_that_does_not_fit_together_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    assert old in QA
    (folder / "QA.md").write_text(QA.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=rf"QA\.md: .*{message}|QA\.md: {message}"):
        read_comparison(folder)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no page QA\.md … ETHICS\.md"):
        read_comparison(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"task": "POEMS", "idx": 1, "prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl line 1: 'POEMS' is no task"):
        read_comparison(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"task": "DIALOGUE", "idx": 1, "prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="DIALOGUE 1 is a conversation"):
        list(prepare(tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").write_text('{"task": "QA", "idx": 1, "prompt": "x"}\n' * 2, encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.jsonl line 2: QA 1 occurs twice"):
        read_comparison(tmp_path / "c.jsonl")


def test_conversations_are_asked_turn_by_turn_and_judged_whole(folder: Path) -> None:
    prompts = list(prepare(folder))
    assert prompts[2].messages == ({"role": "user", "content": "怎么做饭？"},)
    systems = {}
    for name in ("a", "b"):
        first = answer(prompts, name)
        systems[name] = join([first, answer(list(next_prompts(first)), name)])
    judge = BENCHMARK.judge
    assert judge is not None
    asked = {one.meta["item"]: one for one in judge.ask(systems, folder, 0)}
    assert len(asked) == 5
    talk = asked["chinese_llama_alpaca-DIALOGUE-01"]
    text = talk.messages[0]["content"]
    assert "Prompt:\n做饭\n\nSystem1:\n> 怎么做饭？\n" in text and "> 然后呢？\na3" in text and "> 然后呢？\nb3" in text
    number = talk.meta["systems"].index("b") + 1
    assert f"System{number}:\n> 怎么做饭？\nb1\n> 然后呢？\nb3" in text


def test_an_unfinished_conversation_is_left_out_with_a_count(folder: Path) -> None:
    prompts = list(prepare(folder))
    systems = {"a": answer(prompts, "a"), "b": answer(prompts, "b")}
    judge = BENCHMARK.judge
    assert judge is not None
    asked = list(judge.ask(systems, folder, 0))
    assert len(asked) == 4
    replies = [Prediction(one.id, "…", "System1: 8\nSystem2: 8", meta=one.meta) for one in asked]
    report = judge.score(replies, systems, folder)["a"]
    assert report.excluded == {"conversation without an answer to every turn": 1}
    assert report.headline[1].score == 80 and report.overall.n == 4


def test_both_wordings_end_in_lines_that_can_be_read(folder: Path) -> None:
    prompts = list(prepare(folder))
    systems = {name: answer(prompts, name) for name in ("a", "b", "c")}
    texts = {}
    for protocol, own in BENCHMARK.all_protocols().items():
        assert own.judge is not None and not own.judge.single
        texts[protocol] = next(iter(own.judge.ask(systems, folder, 0))).messages[0]["content"]
        assert texts[protocol].endswith("System1: <score>\nSystem2: <score>\nSystem3: <score>")
    assert texts["first_wording"].startswith("The followings are three ChatGPT-like systems' outputs. Please rate")
    assert "try not to give the same scores" not in texts["first_wording"]
    assert "Please try not to give the same scores" in texts["later_wording"] == texts["one_decimal"]


def test_tasks_are_rounded_half_up_before_their_mean() -> None:
    """76.5 -> 77 where Python's own rounding would give 76, 49.25 -> 49; unrounded, the mean would be 62.875."""
    cells = [Cell("QA", "", 20, 1530.0), Cell("CODE", "", 20, 985.0)]
    assert Rounded(0)(cells) == 63.0
    assert Rounded(1)(cells) == pytest.approx((76.5 + 49.3) / 2)
    thirds = Cell("QA", "", 20, sum([8.3, 9.1, 7.25, 8.65] * 5) * 10)
    assert Rounded(0).task(thirds) == half_up(Fraction(333, 4), 0) == 83


def test_published_scores_are_averaged_without_data(folder: Path) -> None:
    """By hand: 7B has QA (10 + 8.5) / 2 -> 93 (92.5 up), DIALOGUE 70, CODE 15."""
    assert BENCHMARK.published is not None
    report = BENCHMARK.published(folder / "7B")
    assert report.headline == ("tasks_rounded", report.aggregates["tasks_rounded"])
    assert report.headline[1].score == pytest.approx((93 + 70 + 15) / 3)
    assert report.macro == pytest.approx((92.5 + 70 + 15) / 3)
    assert report.notes == ("Tasks as the published tables round them: QA 93, DIALOGUE 70, CODE 15.",)
    with pytest.raises(UserError, match="has no score of '70B'; its systems are 7B, 13B"):
        BENCHMARK.published(folder / "70B")
