"""The prompts of C-Eval and CMMLU, against the texts of the original programs put together by hand."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from exam_files import LETTERS, write_ceval, write_cmmlu

from eval.benchmark import get_benchmark
from ift.records import PromptRecord


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def text_of(prompt: PromptRecord) -> str:
    (message,) = prompt.messages
    assert message["role"] == "user" and "context" not in message
    return message["content"]


def lm_eval_text(row: dict[str, str], column: str) -> str:
    # lm-evaluation-harness 0.4.13, tasks/ceval/_default_ceval_yaml and tasks/cmmlu/_default_template_yaml, doc_to_text.
    return f"{row[column].strip()}\nA. {row['A']}\nB. {row['B']}\nC. {row['C']}\nD. {row['D']}\n答案："


def lm_eval_prompt(
    description: str, rows: list[dict[str, str]], row: dict[str, str], *, columns: tuple[str, str]
) -> str:
    """Return what its `fewshot_context` gives: target delimiter one blank, few-shot delimiter two line feeds."""
    question, answer = columns
    shots = "".join(lm_eval_text(one, question) + " " + one[answer] + "\n\n" for one in rows)
    return description + shots + lm_eval_text(row, question)


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_ceval_prompts_are_those_of_lm_evaluation_harness(tmp_path: Path, shots: int) -> None:
    write_ceval(tmp_path, {"law": "ABCD", "logic": "B"})
    prompts = list(get_benchmark("ceval", "lm_eval").prepare(tmp_path, shots=shots))
    expected = []
    for subject, description in (
        ("logic", "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\n\n"),
        ("law", "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"),
    ):
        dev = rows_of(tmp_path / "dev" / f"{subject}_dev.csv")[:shots]
        for row in rows_of(tmp_path / "val" / f"{subject}_val.csv"):
            expected.append(lm_eval_prompt(description, dev, row, columns=("question", "answer")))
    assert [text_of(prompt) for prompt in prompts] == expected
    assert {prompt.options for prompt in prompts} == {(" A", " B", " C", " D")}


@pytest.mark.parametrize("shots", [0, 5])
def test_cmmlu_prompts_are_those_of_lm_evaluation_harness(tmp_path: Path, shots: int) -> None:
    write_cmmlu(tmp_path, {"anatomy": "ABCDA"})
    prompts = list(get_benchmark("cmmlu", "lm_eval").prepare(tmp_path, shots=shots))
    description = "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
    dev = rows_of(tmp_path / "dev" / "anatomy.csv")[:shots]
    rows = rows_of(tmp_path / "test" / "anatomy.csv")
    expected = [lm_eval_prompt(description, dev, row, columns=("Question", "Answer")) for row in rows]
    assert [text_of(prompt) for prompt in prompts] == expected
    assert {prompt.options for prompt in prompts} == {(" A", " B", " C", " D")}
    assert [prompt.reference for prompt in prompts] == list("ABCDA")


def ceval_example(row: dict[str, str], *, include_answer: bool = True, cot: bool = False) -> str:
    """hkust-nlp/ceval @ cba65ae, code/evaluator_series/evaluators/llama.py, `format_example`."""
    example = row["question"]
    for choice in LETTERS:
        example += f"\n{choice}. {row[choice]}"
    if include_answer:
        if cot:
            return example + f"\n答案：让我们一步一步思考，\n{row['explanation']}\n所以答案是{row['answer']}。\n\n"
        return example + "\n答案：" + row["answer"] + "\n\n"
    return example + ("\n答案：让我们一步一步思考，\n1." if cot else "\n答案：")


@pytest.mark.parametrize("mode", ["choice", "generate", "cot"])
@pytest.mark.parametrize("shots", [0, 5])
def test_ceval_prompts_are_those_of_its_own_program(tmp_path: Path, mode: str, shots: int) -> None:
    write_ceval(tmp_path, {"law": "ABCD"})
    cot = mode == "cot"
    dev = "".join(ceval_example(row, cot=cot) for row in rows_of(tmp_path / "dev" / "law_dev.csv")[:shots])
    header = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
    rows = rows_of(tmp_path / "val" / "law_val.csv")
    expected = [header + dev + ceval_example(row, include_answer=False, cot=cot) for row in rows]
    prompts = list(get_benchmark("ceval").modes[mode](tmp_path, shots=shots))
    assert [text_of(prompt) for prompt in prompts] == expected
    both = ("A", " A", "B", " B", "C", " C", "D", " D")
    assert {prompt.options for prompt in prompts} == {both if mode == "choice" else ()}


def cmmlu_example(row: dict[str, str], *, include_answer: bool = True, cot: bool = False) -> str:
    """haonan-li/CMMLU @ d6e7b71, src/mp_utils.py, `format_example`."""
    prompt = "题目：" + row["Question"]
    for letter in LETTERS:
        prompt += f"\n{letter}. {row[letter]}"
    prompt += "\n逐步分析并给出答案选项。" if cot else "\n答案是："
    return prompt + (f"{row['Answer']}\n\n" if include_answer else "")


@pytest.mark.parametrize(("mode", "header"), [("choice", "请直接给出正确答案的选项"), ("cot", "请分析并选出正确答案")])
@pytest.mark.parametrize("shots", [0, 5])
def test_cmmlu_prompts_are_those_of_its_own_program(tmp_path: Path, mode: str, header: str, shots: int) -> None:
    write_cmmlu(tmp_path, {"anatomy": "AB"})
    dev = "".join(cmmlu_example(row) for row in rows_of(tmp_path / "dev" / "anatomy.csv")[:shots])
    rows = rows_of(tmp_path / "test" / "anatomy.csv")
    expected = [
        f"以下是关于解剖学的单项选择题，{header}。\n\n"
        + dev
        + cmmlu_example(row, include_answer=False, cot=mode == "cot")
        for row in rows
    ]
    assert [text_of(prompt) for prompt in get_benchmark("cmmlu").modes[mode](tmp_path, shots=shots)] == expected


@pytest.mark.parametrize("shots", [0, 5])
def test_chinese_llama_alpaca_asks_differently_and_has_no_header_alone(tmp_path: Path, shots: int) -> None:
    # ymcui/Chinese-LLaMA-Alpaca @ 090475f, scripts/ceval/llama_evaluator.py, with_prompt.
    write_ceval(tmp_path, {"law": "A"})
    header = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n" if shots else ""
    dev = "".join(ceval_example(row) for row in rows_of(tmp_path / "dev" / "law_dev.csv")[:shots])
    (row,) = rows_of(tmp_path / "val" / "law_val.csv")
    ask = ceval_example(row, include_answer=False).removesuffix("答案：") + "答案是什么？ "
    (prompt,) = get_benchmark("ceval", "chinese_llama_alpaca").prepare(tmp_path, shots=shots)
    assert text_of(prompt) == header + dev + ask


@pytest.mark.parametrize(("name", "write"), [("ceval", write_ceval), ("cmmlu", write_cmmlu)])
def test_ids_are_unique_and_every_protocol_has_the_same(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    first, second = ("law", "logic") if name == "ceval" else ("anatomy", "virology")
    write(tmp_path, {first: "AB", second: "ABC"})
    ids = [
        [prompt.id for prompt in one.prepare(tmp_path, shots=0)] for one in get_benchmark(name).all_protocols().values()
    ]
    assert len(set(ids[0])) == 5 and all(own == ids[0] for own in ids)
