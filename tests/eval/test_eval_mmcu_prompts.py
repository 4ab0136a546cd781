import json
import re
from pathlib import Path

import pytest
from mmcu_data import rows_of, write_mmcu, write_workbook

from eval import mmcu
from eval.mmcu_questions import read_questions
from ift.data.conversation import Conversation, Message
from ift.data.templates import resolve_template
from ift.errors import UserError
from ift.records import PromptRecord

DAMAGED = [
    ["DNA是什么？", "A、维生素A", "B.DNA", "C.甲", None, "A"],
    ["水？", "是", 3, "乙", "D 丁", "BD"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One subject whose option texts the original's clean-up damages, and five worked examples."""
    write_workbook(tmp_path / "test" / "心理.xlsx", {"Sheet1": DAMAGED})
    examples = rows_of("例", ["A", "BC", "C", "D", "B"])
    write_workbook(tmp_path / "dev" / "心理.xlsx", {"Sheet1": examples})
    return tmp_path


def text_of(prompt: PromptRecord) -> str:
    return prompt.messages[-1]["content"]


def test_the_original_wording_without_examples(folder: Path) -> None:
    first, second = mmcu.MMCU_README.prepare(folder)
    # Felixgithub2017/MMCU @ bd5b2a1, TestBloomz.py; the fourth option is an empty cell.
    assert text_of(first) == (
        "请阅读以下选择题并给出正确选项，不要解释原因。请只给出答案的序号。\n"
        "DNA是什么？\nA. 维生素\nB. N\nC. 甲\nD. nan\n正确答案的序号是："
    )
    assert text_of(second) == (
        "请阅读以下选择题并给出正确选项，不要解释原因。请只给出答案的序号。\n"
        "水？\nA. 是\nB. 3\nC. 乙\nD. 丁\n正确答案的序号是："
    )
    assert (first.reference, second.reference, first.options) == ("A", "BD", ())
    assert first.meta == {"category": "心理", "group": "心理"}


def test_the_sentence_that_chatgpt_did_not_get_is_a_mode(folder: Path) -> None:
    asked = {name: list(prepare(folder)) for name, prepare in mmcu.MMCU_README.modes.items()}
    for full, short in zip(asked["letters_only"], asked["without_letters_only"], strict=True):
        assert text_of(short) == text_of(full).replace("请只给出答案的序号。", "", 1) != text_of(full)


def test_the_strict_wording_keeps_the_options(folder: Path) -> None:
    first, second = mmcu.BENCHMARK.prepare(folder)
    assert text_of(first) == (
        "请阅读以下选择题并给出正确选项，不要解释原因。请只给出答案的序号。\n"
        "DNA是什么？\nA. 维生素A\nB. DNA\nC. 甲\n正确答案的序号是："
    )
    assert "\nA. 是\nB. 3\nC. 乙\nD. D 丁\n" in text_of(second)


def test_five_examples_stand_between_request_and_question(folder: Path) -> None:
    for benchmark in (mmcu.MMCU_README, mmcu.BENCHMARK):
        for alone, shown in zip(benchmark.prepare(folder), benchmark.prepare(folder, shots=5), strict=True):
            request, question = text_of(alone).split("\n", 1)
            assert text_of(shown).startswith(request + "\n")
            assert text_of(shown).endswith("\n\n" + question)
            answers = re.findall("正确答案的序号是： (.*)\n\n", text_of(shown))
            assert answers == ["A", "BC", "C", "D", "B"]
            assert text_of(shown).count("例第") == 5


def test_the_original_text_of_an_example(folder: Path) -> None:
    first = next(iter(mmcu.MMCU_README.prepare(folder, shots=5)))
    expected = "例第1问？\nA. 甲\nB. 乙\nC. Ｃ．丙\nD. 丁\n正确答案的序号是： BC\n\n例第2问？"
    assert expected in text_of(first)
    strict = next(iter(mmcu.BENCHMARK.prepare(folder, shots=5)))
    assert expected.replace("Ｃ．丙", "丙") in text_of(strict)


def test_a_question_is_never_its_own_example(tmp_path: Path) -> None:
    rows = rows_of("同", ["A", "B", "C", "D", "A", "B"])
    write_workbook(tmp_path / "test" / "心理.xlsx", {"Sheet1": rows[:3]})
    write_workbook(tmp_path / "dev" / "心理.xlsx", {"Sheet1": rows})
    for number, prompt in enumerate(mmcu.BENCHMARK.prepare(tmp_path, shots=5)):
        examples, own = text_of(prompt).rsplit("\n\n", 1)
        assert f"第{number}问" in own
        assert f"第{number}问" not in examples
        assert len(re.findall("第.问", examples)) == 5


def test_examples_whose_answer_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    write_workbook(tmp_path / "test" / "心理.xlsx", {"Sheet1": rows_of("问", ["A"])})
    write_workbook(tmp_path / "dev" / "心理.xlsx", {"Sheet1": rows_of("例", ["F", "c", "DB", "A", "B", "C"])})
    (prompt,) = mmcu.BENCHMARK.prepare(tmp_path, shots=5)
    assert re.findall("正确答案的序号是： (.*)\n\n", text_of(prompt)) == ["C", "BD", "A", "B", "C"]


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    write_workbook(tmp_path / "test" / "心理.xlsx", {"Sheet1": rows_of("问", ["A"])})
    write_workbook(tmp_path / "dev" / "心理.xlsx", {"Sheet1": rows_of("例", ["A"] * 4)})
    for benchmark in (mmcu.MMCU_README, mmcu.BENCHMARK):
        with pytest.raises(UserError, match=r"--shots: 5 .* 心理.xlsx has 4|dev/心理.xlsx has 4"):
            list(benchmark.prepare(tmp_path, shots=5))


def test_ranking_asks_the_same_and_offers_every_set_of_letters(tmp_path: Path) -> None:
    folder = write_mmcu(tmp_path)
    for shots in mmcu.SHOTS:
        written = list(mmcu.BENCHMARK.prepare(folder, shots=shots))
        ranked = list(mmcu.BENCHMARK.modes["choice"](folder, shots=shots))
        assert [one.messages for one in ranked] == [one.messages for one in written]
        assert {len(one.options) for one in ranked} == {30}  # whether one answer or several are right
        assert ranked[0].options[:5] == ("A", "B", "C", "D", "AB")


def test_alpaca_cot_under_template_alpaca_is_its_very_text(tmp_path: Path) -> None:
    row = {"类别": "心理", "题目": "问？", "选项": "A:甲\nB:乙\nC:DNA", "答案": "B"}
    path = tmp_path / "test.json"
    path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    (prompt,) = mmcu.ALPACA_COT.prepare(path)
    system, user = prompt.messages
    conversation = Conversation((Message("user", user["content"]),), system=system["content"])
    segments = [segment for segment in resolve_template("t", "alpaca").render(conversation) if segment.kind == "text"]
    # PhoebusSi/Alpaca-CoT @ bd46c44, eval/generate.py.
    assert "".join(segment.text for segment in segments) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n请阅读以下选择题并给出正确选项，"
        "不要解释原因。\n问？\nA:甲\nB:乙\nC:DNA\n正确答案的序号是：\n\n### Response:"
    )


def test_alpaca_cot_writes_the_options_of_workbooks_in_its_own_way(folder: Path) -> None:
    first, _ = mmcu.ALPACA_COT.prepare(folder)
    assert "\nDNA是什么？\nA:维生素A\nB:DNA\nC:甲\n正确" in text_of(first)


def test_every_protocol_asks_every_question_under_one_id(tmp_path: Path) -> None:
    folder = write_mmcu(tmp_path)
    ids = [question.id for question in read_questions(folder)]
    for benchmark in mmcu.BENCHMARK.all_protocols().values():
        for prepare in (benchmark.prepare, *benchmark.modes.values()):
            assert [prompt.id for prompt in prepare(folder)] == ids
    assert len(set(ids)) == 14
