"""What judges write, and what is read from it: the tables are in `data/`, the properties below."""

import json
import random
from pathlib import Path

import pytest
import yaml

from eval.judge_numbers import clean
from eval.judge_scores import JudgeScore, parse_rating, parse_score
from eval.judge_systems import parse_system_scores
from eval.judge_verdicts import parse_verdict
from eval.ordering import extract_ordering

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SCORES = yaml.safe_load((DATA / "judge_scores.yaml").read_text(encoding="utf-8"))
SYSTEMS = yaml.safe_load((DATA / "judge_systems.yaml").read_text(encoding="utf-8"))
VERDICTS = yaml.safe_load((DATA / "judge_verdicts.yaml").read_text(encoding="utf-8"))


def shown(score: JudgeScore) -> float | str:
    """Return the value, or the status where there is none."""
    assert (score.value is None) == (score.status != "read")
    return score.status if score.value is None else score.value


def test_the_tables_are_large() -> None:
    replies = [row["reply"] for row in (*SCORES, *SYSTEMS, *(one for part in VERDICTS.values() for one in part))]
    assert len(replies) >= 250 and len({row["reply"] for row in SCORES}) == len(SCORES)


@pytest.mark.parametrize("row", SCORES, ids=lambda row: row["reply"][:40])
def test_one_answer(row: dict[str, str | float]) -> None:
    assert shown(parse_score(str(row["reply"]))) == row["score"]


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row["reply"][:40])
def test_several_systems(row: dict[str, object]) -> None:
    expected = row["scores"]
    assert isinstance(expected, list)
    assert [shown(score) for score in parse_system_scores(str(row["reply"]), len(expected))] == expected


@pytest.mark.parametrize("row", VERDICTS["ratings"], ids=lambda row: row["reply"][:40])
def test_ratings(row: dict[str, str | float]) -> None:
    assert shown(parse_rating(str(row["reply"]))) == row["score"]


@pytest.mark.parametrize("row", VERDICTS["verdicts"], ids=lambda row: row["reply"][:40])
def test_verdicts(row: dict[str, str]) -> None:
    verdict = parse_verdict(row["reply"])
    assert (verdict.winner or verdict.status) == row["verdict"]


@pytest.mark.parametrize("row", VERDICTS["orders"], ids=lambda row: row["reply"][:40])
def test_orders(row: dict[str, object]) -> None:
    ranks = row["ranks"]
    count = len(ranks) if isinstance(ranks, list) else row["count"]
    assert isinstance(count, int)
    order = extract_ordering(str(row["reply"]), count)
    assert order.ranks == (tuple(ranks) if isinstance(ranks, list) else None)
    assert order.status == ("read" if ranks else "unparsed")


LABELS = ["得分", "评分", "分数", "最终得分", "模型回答的得分", "Score", "The score", "**得分**", "【得分】"]
SEPARATORS = ["：", ":", " ", ": ", " = ", "：\n", "为", "是：", "： **", "：`"]
TAILS = ["", "。", "\n理由：回答正确。", "；解释", " 因为只有2个要点", "\n\n1. 完整\n2. 通顺"]


def test_every_score_in_every_wording_is_read_back() -> None:
    generator = random.Random(0)
    for _ in range(3000):
        hundredths = generator.randrange(101)
        value = f"{hundredths / 100:g}"
        wordings = [value, f"{value}分", f"{value}/1", f"{hundredths}%", f"{hundredths}/100", f"{value} 分（满分1分）"]
        parts = [generator.choice(part) for part in (LABELS, SEPARATORS, wordings, TAILS)]
        if not parts[0].isascii() and generator.random() < 0.2:
            parts[2] = parts[2].translate({ord(digit): chr(ord(digit) + 0xFEE0) for digit in "0123456789./%"})
        reply = "".join(parts)
        assert shown(parse_score(reply)) == pytest.approx(hundredths / 100, abs=1e-12), reply


def test_every_system_in_every_wording_is_read_back() -> None:
    generator = random.Random(1)
    names = ["System{}", "System {}", "系统{}", "**System {}**", "Assistant {}", "助手 {}"]
    forms = ["{}", "{}分", "{}/10", "{} / 10", "({}分)", "**{}**"]
    separators = ["：", ": ", " - ", " ", "得分：", "\n"]
    for _ in range(2000):
        count = generator.randrange(2, 6)
        scores = [generator.randrange(41) / 4 for _ in range(count)]
        name, form, separator = (generator.choice(part) for part in (names, forms, separators))
        ends = ["；解释：好\n", "\n", "；", "，理由是内容完整。\n"]
        order = generator.sample(range(count), count)
        reply = "".join(
            name.format(place + 1) + separator + form.format(f"{scores[place]:g}") + generator.choice(ends)
            for place in order
        )
        assert [shown(score) for score in parse_system_scores(reply, count)] == scores, reply


def test_a_score_out_of_range_is_never_brought_into_it() -> None:
    generator = random.Random(2)
    for _ in range(500):
        value = generator.choice([generator.uniform(1.001, 100), -generator.uniform(0.001, 5)])
        reply = (
            f"{generator.choice(['得分：', 'Score: ', '评分为：'])}{value:.3f}{generator.choice(['', '分', '。理由'])}"
        )
        assert parse_score(reply).status == "out of range", reply
    assert parse_score("得分：8", maximum=10).value == 8
    assert parse_score("得分：0.5", minimum=1, maximum=5).status == "out of range"


def test_any_text_has_an_answer_and_none_is_a_crash() -> None:
    generator = random.Random(3)
    pieces = '得分 System1 系统2 : ： 0.8 8 / 10 % [[ ]] ( ） - ~ \n 1. 满分 分 < > > = | { } " , ， 。 十 点 ½ <think>'
    for _ in range(4000):
        reply = "".join(generator.choices(pieces.split(" "), k=generator.randrange(14)))
        for score in (parse_score(reply), parse_rating(reply), *parse_system_scores(reply, 3)):
            assert score.value is None or 0 <= score.value <= 10
        parse_verdict(reply), extract_ordering(reply, 2)


def test_long_replies_are_read_in_time() -> None:
    for piece in ("得分：", "System1 ", "1 ", "[", "{", "| ", "((", "System1 > ", "得分（", "<think>"):
        text = clean(piece * 1000)
        assert parse_score(text).value in (None, 1.0) or piece == "1 "
        parse_system_scores(text, 5), extract_ordering(text, 5), parse_rating(text), parse_verdict(text)


PIECES = [
    "9",
    "[",
    "(",
    "{",
    "]",
    "[[",
    "[{",
    '{"a":',
    "|",
    "得分",
    "1.",
    "1,",
    "9分",
    "<think>",
    "~",
    " ",
    "\n",
    "十",
    "\\[",
]


@pytest.mark.parametrize("piece", PIECES)
def test_a_judge_that_does_not_stop_says_nothing(piece: str) -> None:
    text = piece * 10_000
    assert len(clean(text)) <= 101 * len(piece)
    for score in (parse_score(text), parse_rating(text), *parse_system_scores(text, 3)):
        assert score.value is None and score.status in ("unparsed", "out of range", "missing")
    assert parse_verdict(text).status == extract_ordering(text, 3).status == "unparsed"


def test_random_digits_and_brackets_are_no_crash() -> None:
    generator = random.Random(4)
    for alphabet in ("0123456789", "[](){}【】", "[{(", '0123456789,"[]{}:', "12><= ", "AB> ="):
        text = "".join(generator.choices(alphabet, k=10_000))
        systems = f"System1: {text}\nSystem2: 7"
        assert {one.status for one in parse_system_scores(text, 3)} <= {"missing", "unparsed"}
        assert parse_system_scores(systems, 2)[1].value in (7, None)
        assert parse_score(f"得分：{text}").status in ("unparsed", "out of range")
        assert parse_rating(f"[[{text}]]").status == extract_ordering(text, 3).status == "unparsed"
    assert parse_system_scores('{"System1": ' + "12345" * 2000 + "}", 2)[0].value is None


def test_no_number_goes_to_another_system() -> None:
    """In any order and wording, with numbers behind or before the names, a score is its system's or it is unread."""
    generator = random.Random(6)
    behind = ["{name}: {score}", "{name} {score}", "{name}，{score}分", "{name} gets {score}/10", "{name}（{score}分）"]
    before = [
        "{score} for {name}", "{score}/10 to {name}", "{score}分给{name}", "{score} ({name})", "a {score} for {name}",
        "{score} - {name}", "{score}={name}", "{score} {name}", "{score} points go to {name}", "{score}: {name}",
        "{score}分，{name}", "{score} | {name}", "{score}\n{name}", "({score}) {name}", "with {score}, {name}",
        "{score} as to {name}", "{score}<-{name}", "{score} @ {name}", "{score}. {name}", "{score}分的是{name}",
    ]  # fmt: skip
    separators = [
        ", ",
        "，",
        "\n",
        "；",
        " and ",
        " ",
        "; ",
        " / ",
        "。",
        "\n\n",
        " | ",
        " - ",
        "和",
        ". ",
        "、",
        " vs ",
    ]
    names = ["System{}", "System {}", "系统{}", "**Assistant {}**"]
    read = 0
    for _ in range(4000):
        count = generator.randrange(2, 5)
        scores = generator.sample([score / 2 for score in range(9, 21)], count)
        name, form = generator.choice(names), generator.choice(generator.choice([behind, before]))
        parts = [form.format(name=name.format(place + 1), score=f"{scores[place]:g}") for place in range(count)]
        generator.shuffle(parts)
        reply = generator.choice(["", "Scores: ", "I give ", "结果：\n"]) + generator.choice(separators).join(parts)
        found = [score.value for score in parse_system_scores(reply, count)]
        assert all(one in (None, score) for one, score in zip(found, scores, strict=True)), (reply, found)
        read += sum(one is not None for one in found)
    assert read > 6000


def test_the_note_tells_of_other_scores() -> None:
    assert parse_score("得分：0.8\n得分：0.9").note == "2 different scores; the first counts"
    assert parse_score("得分：0.8\n得分：0.8").note == ""
    assert "range" in parse_score("得分：0.7-0.8").note
    (first, _) = parse_system_scores("System1: 8\nSystem1: 9\nSystem2: 7", 2)
    assert first.note == "8, 9"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared judge replies")
def test_llmzoos_published_orders() -> None:
    """All 70 replies of gpt-3.5-turbo over four systems give the published order."""
    path = SHARED / "llmzoo_judge_replies" / "review_zh__zh__general__review.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 70
    for row in rows:
        assert extract_ordering(row["text"], 4).ranks == tuple(row["order"])
        # No such reply scores a system as a whole (single aspects are rated, systems enumerated); none is made up.
        assert {score.status for score in parse_system_scores(row["text"], 4)} == {"unparsed"}


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared judge prompts")
def test_the_judges_instructions_hold_no_score() -> None:
    """Belle-Eval's and MT-Bench's own prompts restate scales and formats; none of that is a score."""
    for line in (SHARED / "belle_eval" / "eval_prompt.json").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        assert parse_score(prompt).status == "unparsed", prompt
        assert parse_score(prompt + "得分：0.5").value == 0.5
    for line in (SHARED / "mt_bench" / "judge_prompts.jsonl").read_text(encoding="utf-8").splitlines():
        template = json.loads(line)["system_prompt"]
        if "[[A]]" in template:
            assert parse_verdict(template).status == "contradictory"
