"""Choice sets by every rule for likelihoods: from the prompts over made-up likelihoods to the report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from exam_files import ranked, write_ceval, write_cmmlu, written

import eval.__main__ as program
from eval.benchmark import get_benchmark, how_asked, prompts_of
from eval.likelihood import SCORINGS
from eval.matching import match, select
from eval.report import Report
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, write_jsonl

Likelihoods = Mapping[str, float]


def quiz(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    path = tmp_path / "quiz.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def asked(name: str, data: Path, *, limit: int | None = None, mode: str = "scorings") -> list[PromptRecord]:
    benchmark = get_benchmark(name)
    return select(prompts_of(benchmark, data, how_asked(benchmark, mode=mode, shots=None)), limit=limit, seed=1)


def answered(prompt: PromptRecord, likelihoods: Likelihoods, sizes: Mapping[str, int] | None = None) -> Prediction:
    """Return a prediction; what is not named has likelihood 0.001 and one token."""
    return Prediction(
        prompt.id,
        "?",
        options=prompt.options,
        option_scores=tuple(math.log(likelihoods.get(option, 0.001)) for option in prompt.options),
        option_num_tokens=tuple((sizes or {}).get(option, 1) for option in prompt.options),
        reference=prompt.reference,
        meta=prompt.meta,
    )


def score(name: str, predictions: list[Prediction], data: Path, rule: str | None = None) -> Report:
    benchmark = get_benchmark(name)
    assert benchmark.score is not None
    return benchmark.score(predictions, data, **({} if rule is None else {"scoring": rule}))


# One question with two options, whose likelihoods part the families of rules.
ROW = {"类别": "医", "题目": "问", "选项": "A:河流\nB:a stone", "答案": "B"}
QUESTION = {
    "A": 0.30,
    " A": 0.01,
    "B": 0.20,
    " B": 0.20,
    "河流": 0.02,
    " 河流": 0.03,
    "a stone": 0.01,
    " a stone": 0.01,
}
SIZES = {"河流": 1, " 河流": 1, "a stone": 4, " a stone": 4}
FREE = {
    "pmi-0": {"A": 0.1, " A": 0.1, "B": 0.3, " B": 0.3, "河流": 0.1, " 河流": 0.1, "a stone": 0.002, " a stone": 0.002},
    # As shares of A and B in letters: 1/2, 1/4 and 3/4 of A; in all 1/2.
    "contextual-0": {"A": 0.1, " A": 0.1, "B": 0.1, " B": 0.1},
    "contextual-1": {"A": 0.05, " A": 0.05, "B": 0.15, " B": 0.15},
    "contextual-2": {"A": 0.15, " A": 0.15, "B": 0.05, " B": 0.05},
}


def answers_by_rule(data: Path) -> dict[str, str]:
    predictions = [
        answered(prompt, FREE.get(prompt.id.partition("/")[2], QUESTION), SIZES) for prompt in asked("quiz", data)
    ]
    return {name: score("quiz", predictions, data, name).items[0].answer for name in SCORINGS}


def test_families_of_rules_by_hand(tmp_path: Path) -> None:
    found = answers_by_rule(quiz(tmp_path, [ROW]))
    # 0.30 + 0.01 < 0.20 + 0.20, but 0.30 is the highest.
    assert (found["letter_sum"], found["letter_max"]) == ("B", "A")
    # Letters are one token and one character long.
    assert (found["letter_sum_tokens"], found["letter_max_characters"]) == ("B", "A")
    # 0.05 > 0.02; ln 0.05 = -3.00 in one token, two characters and six bytes, ln 0.02 = -3.91 in four, seven and seven:
    # -3.00 < -0.98, -1.50 < -0.56 and -0.499 > -0.559.
    assert [found[f"text_sum{length}"] for length in ("", "_tokens", "_characters", "_bytes")] == ["A", "B", "B", "A"]
    # 0.31 / 0.2 > 0.4 / 0.6 in letters; 0.05 / 0.2 < 0.02 / 0.004 in texts.
    assert (found["letter_sum_pmi"], found["text_sum_pmi"]) == ("A", "B")
    # 0.31/0.71 : 1/2 < 0.40/0.71 : 1/2; as the texts are unlikely alike without content, 0.05 > 0.02 stays.
    assert (found["letter_sum_contextual"], found["text_sum_contextual"]) == ("B", "A")


def test_what_is_asked_of_a_quiz(tmp_path: Path) -> None:
    prompts = asked("quiz", quiz(tmp_path, [ROW, {**ROW, "选项": "A：甲 \nＢ、  乙\n续"}]))
    assert [prompt.id.partition("/")[2] for prompt in prompts[2:]] == [
        kind for kind in ("pmi-0", "contextual-0", "contextual-1", "contextual-2") for _ in range(2)
    ]
    first, second, *free = prompts
    assert first.options == ("A", " A", "B", " B", "河流", " 河流", "a stone", " a stone")
    assert second.options[4:] == ("甲", " 甲", "乙\n续", " 乙\n续")
    assert {prompt.options for prompt in free[::2]} == {first.options}
    assert {prompt.reference for prompt in free} == {None} and all(prompt.meta["join_options"] for prompt in prompts)
    texts = [prompt.messages[0]["content"] for prompt in free[::2]]
    before, after = "请阅读以下选择题并给出正确选项，不要解释原因。\n", "\n正确答案的序号是：\n"
    assert texts == ["正确答案的序号是：\n"] + [
        f"{before}{free}\nA:{free}\nB:{free}{after}" for free in ("N/A", "", "[MASK]")
    ]


def test_what_is_asked_of_an_exam(tmp_path: Path) -> None:
    benchmark = get_benchmark("ceval")
    data = write_ceval(tmp_path, {"law": "AB", "logic": "C"})
    prompts = list(benchmark.modes["scorings"](data, shots=1))
    alone = list(benchmark.modes["choice"](data, shots=1))
    assert [prompt.messages for prompt in prompts[:3]] == [prompt.messages for prompt in alone]
    assert prompts[1].options[8:] == ("甲0", " 甲0", "1,5{0}", " 1,5{0}", "丙", " 丙", "DNA和维生素A", " DNA和维生素A")
    assert len(prompts) == 3 * (1 + 1 + 3)
    assert [prompt.messages[0]["content"] for prompt in prompts[3:6]] == ["答案："] * 3
    # Subject and worked example stay, and nothing of the question.
    stem = alone[1].messages[0]["content"].partition("law题0")[0]
    (free,) = [prompt for prompt in prompts if prompt.id == "val-law-0000/contextual-0"]
    assert "law例0" in stem
    assert free.messages[0]["content"] == stem + "N/A\nA. N/A\nB. N/A\nC. N/A\nD. N/A\n答案："
    places = [prompt.messages[0]["content"] for prompt in prompts[6:]]
    assert places == sorted(places, key=places.index) and len(set(places)) == 6  # equal ones stand together


@pytest.mark.parametrize("limit", [1, 4])
def test_a_sample_keeps_the_prompts_without_content_of_its_questions(tmp_path: Path, limit: int) -> None:
    data = write_cmmlu(tmp_path, {"anatomy": "ABCD", "virology": "AB"})
    prompts = asked("cmmlu", data, limit=limit)
    questions = [prompt.id for prompt in prompts if "/" not in prompt.id]
    assert questions == [prompt.id for prompt in asked("cmmlu", data, limit=limit, mode="choice")]
    assert len(questions) == limit and len(prompts) == 5 * limit
    assert {prompt.meta["baseline_of"] for prompt in prompts if "/" in prompt.id} == set(questions)
    predictions = [answered(prompt, {"A": 0.9}) for prompt in prompts]
    report = score("cmmlu", match(prompts, predictions), data)
    assert report.overall.n == limit == report.aggregates["text_max_pmi_macro"].n == len(report.items)
    with pytest.raises(UserError, match=rf"{5 * limit - 1} predictions for {5 * limit} prompts: 1 missing"):
        match(prompts, predictions[:-1])
    with pytest.raises(UserError, match="the data of cmmlu has 6 rows"):
        asked("cmmlu", data, limit=7)


def test_every_rule_stands_beside_the_protocols_own(tmp_path: Path) -> None:
    data = write_cmmlu(tmp_path, {"anatomy": "AAAA", "virology": "AB"})
    letters = iter("AABB" + "AA")
    predictions = []
    for prompt in asked("cmmlu", data):
        if "/" in prompt.id:
            predictions.append(answered(prompt, {}))
        else:  # the letters say what is right in part, one text is always likeliest, and its letter is A
            predictions.append(answered(prompt, {next(letters): 0.5, prompt.options[8]: 0.5}))
    report = score("cmmlu", predictions, data)
    assert (report.headline[0], report.scoring, set(report.rules)) == ("macro", "letter_sum", set(SCORINGS))
    assert report.headline[1] == report.aggregates["letter_sum_macro"]
    assert report.aggregates["macro"].score == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert report.aggregates["text_sum_macro"].score == pytest.approx((4 / 4 + 1 / 2) / 2)
    assert (report.rules["letter_max"].changed, report.rules["text_sum"].changed) == (0, 2)
    other = score("cmmlu", predictions, data, "text_sum")
    assert other.headline[1] == report.aggregates["text_sum_macro"] and other.scoring == "text_sum"
    assert other.categories["anatomy"].score == 1 and {item.answer for item in other.items} == {"A"}
    assert {name: other.aggregates[f"{name}_macro"] for name in SCORINGS} == {
        name: report.aggregates[f"{name}_macro"] for name in SCORINGS
    }


def test_ties_are_counted_by_rule(tmp_path: Path) -> None:
    data = quiz(tmp_path, [ROW, {**ROW, "答案": "AB"}])  # the second one is excluded
    predictions = [answered(prompt, {"A": 0.5} if "/" not in prompt.id else {}) for prompt in asked("quiz", data)]
    report = score("quiz", predictions, data)
    assert (report.overall.n, report.excluded, report.tied) == (1, {"several answers": 1}, 0)
    # 0.001 for either text: equal unless their lengths part them.
    tied = [name for name, rule in report.rules.items() if rule.tied]
    assert tied == [f"text_{own}{more}" for own in ("sum", "max") for more in ("", "_pmi", "_contextual", "_tokens")]
    assert "by rule: " + ", ".join(f"{name} 1" for name in tied) in report.notes[-1]
    assert score("quiz", predictions, data, "text_max").tied == 1


def test_the_rule_of_the_choice_mode_gives_the_same(tmp_path: Path) -> None:
    data = write_ceval(tmp_path, {"law": "ABCD"})
    likelihoods = [{"A": 0.2, " A": 0.2, "B": 0.3}, {" B": 0.2}, {"D": 0.4}, {"A": 0.5, "B": 0.5}]
    alone, every = asked("ceval", data, mode="choice"), asked("ceval", data)
    one = score("ceval", [answered(*both) for both in zip(alone, likelihoods, strict=True)], data)
    questions = [answered(*both) for both in zip(every[:4], likelihoods, strict=True)]
    other = score("ceval", [*questions, *(answered(prompt, {}) for prompt in every[4:])], data)
    assert [vars(item) for item in one.items] == [vars(item) for item in other.items]
    assert one.headline == other.headline and one.scoring == other.scoring == "letter_sum"
    assert not one.rules and one.tied == 1


def test_letters_alone_take_the_rules_for_letters(tmp_path: Path) -> None:
    data = write_ceval(tmp_path, {"law": "A"})
    (prompt,) = asked("ceval", data, mode="choice")
    predictions = [answered(prompt, {"A": 0.3, "B": 0.2, " B": 0.2})]
    found = [score("ceval", predictions, data, name).overall.score for name in ("letter_sum", "letter_max_bytes")]
    assert found == [0, 1]
    message = r"'text_max_pmi' needs options that 'val-law-0000' was not asked with.*Did you mean 'letter_max'\?"
    with pytest.raises(UserError, match=message):
        score("ceval", predictions, data, "text_max_pmi")
    quizzed = quiz(tmp_path, [ROW])
    predictions = [answered(prompt, {"B": 0.5}) for prompt in asked("quiz", quizzed, mode="choice")]
    assert score("quiz", predictions, quizzed, "letter_max").headline[1].score == 1
    with pytest.raises(UserError, match="'letter_sum_pmi' needs options"):
        score("quiz", predictions, quizzed, "letter_sum_pmi")


@pytest.mark.parametrize("name", ["ceval", "quiz"])
def test_written_answers_take_no_rule(tmp_path: Path, name: str) -> None:
    data = write_ceval(tmp_path, {"law": "A"}) if name == "ceval" else quiz(tmp_path, [ROW])
    predictions = written(asked(name, data, mode="generate"), ["A"])
    assert score(name, predictions, data).scoring is None
    with pytest.raises(UserError, match="a rule for likelihoods, and these answers were written"):
        score(name, predictions, data, "letter_max")


def test_an_option_without_text_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quiz.json \[0\]': option B has no text to rank. Take --mode choice"):
        asked("quiz", quiz(tmp_path, [{**ROW, "选项": "A:河流\nB: "}]))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = program.main([str(one) for one in arguments])
    return code, "".join(capsys.readouterr())


def test_the_program_scores_by_a_named_rule_and_compares_like_with_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_cmmlu(tmp_path / "data", {"anatomy": "ABCD"}), tmp_path / "p.jsonl"
    assert (
        run(capsys, "prepare", "cmmlu", "--data", data, "--mode", "scorings", "--output", tmp_path / "q.jsonl")[0] == 0
    )
    write_jsonl(file, [answered(prompt, {"A": 0.3, "B": 0.2, " B": 0.2}) for prompt in asked("cmmlu", data)])
    arguments = ["score", "cmmlu", "--data", data, "--predictions", file]
    for folder, more in (("sum", []), ("max", ["--scoring", "letter_max"])):
        code, told = run(capsys, *arguments, *more, "--output", tmp_path / folder)
        assert (code, f"macro by letter_{folder} 0.2500" in told) == (0, True)
    facts: dict[str, Any] = json.loads((tmp_path / "max" / "report.json").read_text(encoding="utf-8"))
    assert (facts["scoring"], facts["mode"], facts["data"]["n"]) == ("letter_max", "scorings", 4)
    assert facts["rules"]["letter_sum"] == {"average": "letter_sum_macro", "changed": 4, "tied": 0}
    text = (tmp_path / "max" / "report.md").read_text(encoding="utf-8")
    assert "| rule | macro | 95 % interval | less letter_max | other answers | tied |" in text
    assert "| letter_sum | 0.2500 |" in text and "| +0.0000 | 4 | 0 |" in text and "| **letter_max** | 0.2500 |" in text
    assert len((tmp_path / "max" / "items.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    code, told = run(capsys, "compare", tmp_path / "sum", tmp_path / "max")
    assert code == 2 and "scoring: 'sum' letter_sum, 'max' letter_max" in told
    assert run(capsys, "compare", tmp_path / "sum", f"again={tmp_path / 'sum'}")[0] == 0


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("ceval", ["--scoring", "letter_sun"], "--scoring: unknown name 'letter_sun'. Did you mean 'letter_sum'?"),
        ("ceval", ["--scoring", "letter_max", "--protocol", "lm_eval"], "ceval (lm_eval) chooses in one way"),
        ("gsm8k", ["--scoring", "letter_max"], "gsm8k (lm_eval) chooses in one way"),
    ],
)
def test_rules_that_are_not_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str], message: str
) -> None:
    data, file = write_ceval(tmp_path / "data", {"law": "A"}), tmp_path / "p.jsonl"
    prompts = list(get_benchmark("ceval", "lm_eval").prepare(data, shots=0))
    write_jsonl(file, ranked(prompts, "A"))
    arguments = ["score", name, "--data", data, "--predictions", file, "--output", tmp_path / "report"]
    code, told = run(capsys, *arguments, *more)
    assert code == 2 and message in told


def test_published_answers_take_no_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", "mmcu", "--predictions", tmp_path / "published.json", "--output", tmp_path / "report"]
    code, told = run(capsys, *arguments, "--scoring", "letter_max")
    assert code == 2 and "--scoring: 'letter_max': mmcu (strict) chooses in one way" in told
