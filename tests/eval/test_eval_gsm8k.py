"""GSM8K: prompts and both accuracies of lm-evaluation-harness."""

import json
import re
from pathlib import Path

import pytest
from exam_files import written
from tiny import ROOT

from eval import gsm8k
from ift.errors import UserError

SHARED = ROOT.parent / "shared" / "data" / "gsm8k"
ANSWERS = ["She has 2+3=<<2+3=5>>5 pens.\n#### 5", "It costs $1,200.\n#### 1,200", "Minus.\n#### -3.5", "no mark"]


def write(folder: Path, name: str, answers: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"{name} {{q}} {i}?", "answer": answer} for i, answer in enumerate(answers)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_prompts_are_those_of_lm_evaluation_harness_with_the_first_examples(tmp_path: Path) -> None:
    # lm-evaluation-harness 0.4.13, tasks/gsm8k/gsm8k.yaml: doc_to_text, one blank, the whole answer, two line feeds.
    folder = write(write(tmp_path, "test", ANSWERS), "train", ANSWERS * 2)
    plain = [prompt.messages[0]["content"] for prompt in gsm8k.prepare(folder / "test.jsonl", shots=0)]
    assert plain == [f"Question: test {{q}} {i}?\nAnswer:" for i in range(4)]
    shots = "".join(f"Question: train {{q}} {i}?\nAnswer: {(ANSWERS * 2)[i]}\n\n" for i in range(5))
    five = [prompt.messages[0]["content"] for prompt in gsm8k.prepare(folder, shots=5)]
    assert five == [shots + text for text in plain]
    assert [prompt.reference for prompt in gsm8k.prepare(folder, shots=8)] == ["5", "1,200", "-3.5", ""]
    assert gsm8k.BENCHMARK.shots[0] == 5 and set(gsm8k.BENCHMARK.shots) == set(range(9))


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    folder = write(write(tmp_path, "test", ANSWERS), "train", ANSWERS)
    with pytest.raises(UserError, match="--shots: 5: the training problems beside .* are 4"):
        list(gsm8k.prepare(folder, shots=5))
    with pytest.raises(UserError, match=r"--shots: 1: .*alone/train\.jsonl: no such file.*--shots 0") as caught:
        list(gsm8k.prepare(write(tmp_path / "alone", "test", ANSWERS), shots=1))
    with pytest.raises(UserError, match="--shots: 5: .*the 5 worked examples"):
        list(gsm8k.prepare(tmp_path / "alone" / "test.jsonl"))
    assert str(caught.value).count(".jsonl") == 1
    assert len(list(gsm8k.prepare(tmp_path / "alone", shots=0))) == 4


def lm_eval_matches(response: str, answer: str, *, flexible: bool) -> bool:
    """lm-evaluation-harness 0.4.13: `filters/extraction.py` RegexFilter and `exact_match_hf_evaluate`, by hand."""
    pattern = r"(-?[$0-9.,]{2,})|(-?[0-9]+)" if flexible else r"#### (\-?[0-9\.\,]+)"
    for stop in ("Question:", "</s>", "<|im_end|>"):
        response = response.split(stop)[0]
    found = re.findall(pattern, response)
    match = "[invalid]"
    if found:
        chosen = found[-1 if flexible else 0]
        match = (next(part for part in chosen if part) if isinstance(chosen, tuple) else chosen).strip()
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        match, answer = re.sub(ignored, "", match), re.sub(ignored, "", answer)
    return match.lower() == answer.lower()


RESPONSES = [
    "So 2+3=5.\n#### 5",
    "5",
    "The answer is $5.",
    "#### 5.0",
    "#### 5.",
    "#### 6\n#### 5",
    "#### 1200",
    "It is $1,200.00",
    "= 1,200.",
    "#### -3.5",
    "minus -3.5",
    "no number",
    "",
    "#### 5\n\nQuestion: 1+1?\nAnswer: #### 2",
    "5<|im_end|>7",
]


@pytest.mark.parametrize("answer", ANSWERS[:3])
@pytest.mark.parametrize("response", RESPONSES)
def test_both_accuracies_are_those_of_lm_evaluation_harness(tmp_path: Path, response: str, answer: str) -> None:
    folder = write(tmp_path, "test", [answer])
    report = gsm8k.score(written(list(gsm8k.prepare(folder, shots=0)), [response]), folder)
    assert report.aggregates["strict_match"].score == lm_eval_matches(response, answer, flexible=False)
    assert report.aggregates["flexible_extract"].score == lm_eval_matches(response, answer, flexible=True)


def test_the_strict_accuracy_leads_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, "test", ANSWERS)
    report = gsm8k.score(written(list(gsm8k.prepare(folder, shots=0)), ["#### 5", "1200", "none", "#### 1"]), folder)
    assert list(report.aggregates)[:3] == ["strict_match", "flexible_extract", "number_match"]
    assert report.headline[1].score == report.overall.score == pytest.approx(1 / 3)
    assert report.aggregates["flexible_extract"].score == pytest.approx(2 / 3)
    assert dict(report.unparsed) == {"gsm8k-00001": "1200", "gsm8k-00002": "none"}
    assert dict(report.excluded) == {"no final answer after '####'": 1}
    assert report.aggregates["number_match"].score == pytest.approx(2 / 3)
    assert report.notes == (
        "strict_match finds no number in 2 responses.",
        "flexible_extract finds no number in 1 responses.",
        "number_match finds no number in 1 responses.",
    )


def test_our_own_reading_compares_numbers_and_not_texts(tmp_path: Path) -> None:
    folder = write(tmp_path, "test", ANSWERS[:3])
    responses = ["The answer is 5.00 dollars, after 3 steps.", "#### 1200.0", "-7/2"]
    report = gsm8k.score(written(list(gsm8k.prepare(folder, shots=0)), responses), folder)
    assert (report.aggregates["number_match"].score, report.aggregates["strict_match"].score) == (1.0, 0.0)


def test_a_hub_gives_the_rows_of_its_main_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, configuration: str, *, split: str) -> list[dict[str, str]]:
        assert (name, configuration) == ("openai/gsm8k", "main")
        return [{"question": f"{split}?", "answer": "#### 1"}] * 2

    monkeypatch.setattr(datasets, "load_dataset", load)
    prompts = list(gsm8k.prepare(Path("openai/gsm8k"), shots=1))
    assert [prompt.id for prompt in prompts] == ["gsm8k-00000", "gsm8k-00001"]
    assert prompts[0].messages[0]["content"] == "Question: train?\nAnswer: #### 1\n\nQuestion: test?\nAnswer:"


def test_a_path_that_is_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, configuration: str, *, split: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"gone/test.jsonl: no such file.*ConnectionError: no route"):
        list(gsm8k.prepare(Path("gone/test.jsonl"), shots=0))


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not part of this repository")
def test_every_real_solution_is_read_as_its_own_answer() -> None:
    rows = [json.loads(line) for line in (SHARED / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = list(gsm8k.prepare(SHARED, shots=0))
    report = gsm8k.score(written(prompts, [row["answer"] for row in rows]), SHARED)
    assert report.overall.n == 330
    assert {name: one.score for name, one in report.aggregates.items()} == dict.fromkeys(report.aggregates, 1.0)
