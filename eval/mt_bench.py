"""MT-Bench and sets of its kind: questions of two turns, each of the two answers rated by a judge from 1 to 10.

Data: `question.jsonl` with `question_id`, `category`, `turns` and optional `reference` (one text per turn), or its
folder. The second turn is asked with the model's own first answer before it, in a second pass (`conversations.py`).
The judge sees the first question with its answer, or both turns with the stress on the second. In the categories math,
reasoning and coding it also sees the references, where the file has them.

`own_wording` asks in the words below. `fastchat` takes those of FastChat's `judge_prompts.jsonl`, which must lie beside
the questions. FastChat's references are GPT-4's answers in a file of their own; here they are those of `reference`.

The score is the mean rating, from 1 to 10, over all rated turns; apart per turn (`turn_1`, `turn_2`) and per category.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Formatter

from eval.aggregation import MICRO
from eval.benchmark import Benchmark, Judge, Systems
from eval.conversations import answers_of, first_prompt, next_prompts
from eval.judge_reading import read_rating
from eval.judged import judge_prompt, judged_outcome, read_replies, share_unread
from eval.report import Outcome, Report, summarize
from eval.rows import Row, read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "mt_bench"
VERSION = 1
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""Categories in which the judge sees the references."""


@dataclass(frozen=True)
class Question:
    """One conversation of the set."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]
    """Of every turn, for the judge; empty where it gets none."""


@dataclass(frozen=True)
class Template:
    """One wording of a message to the judge."""

    system_message: str
    text: str
    """With `{question}` and `{answer}`, or for two turns `{question_1}`, `{answer_1}`, `{question_2}`, `{answer_2}`;
    references are `{ref_answer_1}` and `{ref_answer_2}`."""


Templates = Mapping[str, Template]
"""By FastChat's names: `single-v1`, `single-math-v1` and the same with `-multi-turn`."""

_RATE = (
    "Explain your judgement briefly first. Then rate the answer with a whole or decimal number from 1 (useless) to 10 "
    "(could not be better), and end with that number in exactly this form: Rating: [[7]]"
)
_GENERAL = (
    "You are a fair judge of an AI assistant's answer to {what}. Consider how helpful, relevant, correct, thorough and "
    "well written it is, and whether it does all that was asked. Its length is no merit."
)
_CHECKED = (
    "You are a fair judge of an AI assistant's answer to {what}. A reference answer is given. Compare the two, find "
    "the mistakes, and judge above all whether the answer is correct, then how helpful it is."
)
_ONE = "the user's question"
_SECOND = "the second of a user's two questions; the first is shown as its context"
_REFERENCE_1 = "=== Reference answer ===\n{ref_answer_1}\n\n"
_REFERENCES = "=== Reference answer to question 1 ===\n{ref_answer_1}\n\n"
_REFERENCES += "=== Reference answer to question 2 ===\n{ref_answer_2}\n\n"
_QUESTION = "=== Question ===\n{question}\n\n"
_BOTH = "=== Question 1 ===\n{question_1}\n\n=== Answer 1 ===\n{answer_1}\n\n=== Question 2 ===\n{question_2}\n\n"
_SYSTEM = "You are a helpful assistant."
OWN: Templates = {
    "single-v1": Template(
        _SYSTEM, f"{_GENERAL.format(what=_ONE)} {_RATE}\n\n{_QUESTION}=== Answer ===\n{{answer}}\n=== End ==="
    ),
    "single-math-v1": Template(
        _SYSTEM,
        f"{_CHECKED.format(what=_ONE)} {_RATE}\n\n{_QUESTION}{_REFERENCE_1}=== Answer ===\n{{answer}}\n=== End ===",
    ),
    "single-v1-multi-turn": Template(
        f"{_GENERAL.format(what=_SECOND)} {_RATE}", f"{_BOTH}=== Answer 2 ===\n{{answer_2}}\n=== End ==="
    ),
    "single-math-v1-multi-turn": Template(
        f"{_CHECKED.format(what=_SECOND)} {_RATE}",
        f"{_REFERENCES}{_BOTH}=== Answer 2 ===\n{{answer_2}}\n=== End ===",
    ),
}


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield the first turn of every question."""
    for question in _read(path).values():
        yield first_prompt(question.id, question.turns, {"category": question.category})


def prepare_second(path: Path, first: Sequence[Prediction]) -> Iterator[PromptRecord]:
    """Yield the second turn of every question, after the model's own answer to the first.

    Args:
        path: the questions.
        first: predictions for what `prepare` yields.
    """
    questions = _read(path)
    for prompt in next_prompts(first):
        if prompt.id not in questions:
            raise UserError(f"--predictions: '{prompt.id}' is not in {path}. Give the predictions of its first turns.")
        yield prompt


def ask(systems: Systems, path: Path, seed: int, *, templates: Callable[[Path], Templates]) -> Iterator[PromptRecord]:
    """Yield one message to the judge per system and answered turn."""
    questions, texts = _read(path), templates(path)
    for name, predictions in systems.items():
        for one in predictions:
            question, answers = questions[one.id], answers_of(one)
            for turn in range(1, len(answers) + 1):
                template, text = _message(question, answers[:turn], texts)
                item = _turn_id(one.id, turn)
                system = template.system_message or None
                yield judge_prompt(f"{name}/{item}", text, item=item, systems=[name], system_message=system)


def score(replies: Sequence[Prediction], systems: Systems, path: Path) -> Mapping[str, Report]:
    """Read the rating of every answered turn."""
    questions = _read(path)
    readings = read_replies(replies, lambda reply, _: [read_rating(reply)])
    reports = {}
    for name, predictions in systems.items():
        outcomes: list[Outcome] = []
        for one in predictions:
            question, answered = questions[one.id], len(answers_of(one))
            for turn in range(1, len(question.turns) + 1):
                item, category, kind = _turn_id(one.id, turn), question.category, f"turn_{turn}"
                if turn > answered:
                    note = f"turn {turn} is not answered"
                    outcomes.append(Outcome(item, category, status="excluded", note=note, kinds=(kind,)))
                else:
                    outcomes.append(judged_outcome(readings, item, name, category=category, kinds=(kind,)))
        unseen = _without_reference(questions[one.id] for one in predictions)
        notes = (*share_unread(outcomes), *unseen)
        reports[name] = summarize(outcomes, predictions, aggregations=(MICRO,), notes=notes)
    return reports


def own_templates(path: Path) -> Templates:
    """Return this module's own wording, whatever lies beside the questions."""
    return OWN


def fastchat_templates(path: Path) -> Templates:
    """Return the wording of `judge_prompts.jsonl` beside the questions.

    Raises:
        UserError: no such file, or one without the four prompts for single answers.
    """
    file = _file(path).with_name("judge_prompts.jsonl")
    found = {
        row.text("name"): Template(row.text("system_prompt"), row.text("prompt_template")) for row in read_rows(file)
    }
    missing = [name for name in OWN if name not in found]
    if missing:
        raise UserError(f"--data: {file} lacks the prompts {', '.join(missing)}. Take FastChat's whole file.")
    for name, own in OWN.items():
        unknown = _fields(found[name].text) - _fields(own.text)
        if unknown:
            raise UserError(f"--data: {file}: '{name}' has places for {', '.join(sorted(unknown))}, which are unknown.")
    return found


def _fields(text: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}


def _message(question: Question, answers: Sequence[str], templates: Templates) -> tuple[Template, str]:
    name = "single-math-v1" if question.references else "single-v1"
    fields = {f"ref_answer_{number}": text for number, text in enumerate(question.references, 1)}
    if len(answers) == 1:
        template = templates[name]
        return template, template.text.format(question=question.turns[0], answer=answers[0], **fields)
    template = templates[f"{name}-multi-turn"]
    for number, (turn, answer) in enumerate(zip(question.turns, answers, strict=True), 1):
        fields |= {f"question_{number}": turn, f"answer_{number}": answer}
    return template, template.text.format(**fields)


def _without_reference(questions: Iterator[Question]) -> tuple[str, ...]:
    names = [one.id for one in questions if one.category in WITH_REFERENCE and not one.references]
    if not names:
        return ()
    return (f"{len(names)} questions of math, reasoning or coding have no reference: {', '.join(names)}.",)


def _turn_id(item: str, turn: int) -> str:
    return f"{item}-turn-{turn}"


def _file(path: Path) -> Path:
    return path / "question.jsonl" if path.is_dir() else path


def _read(path: Path) -> dict[str, Question]:
    questions: dict[str, Question] = {}
    for row in read_rows(_file(path)):
        question = _question(row)
        if questions.setdefault(question.id, question) is not question:
            raise UserError(f"{row.place}: the question '{question.id}' occurs twice. Give each its own 'question_id'.")
    return questions


def _question(row: Row) -> Question:
    turns = _texts(row, "turns")
    if len(turns) not in (1, 2):
        raise UserError(f"{row.place}: 'turns' must hold one or two texts; found {len(turns)}.")
    category = row.text("category")
    references = _texts(row, "reference") if category in WITH_REFERENCE and row.fields.get("reference") else ()
    if references and len(references) != len(turns):
        raise UserError(f"{row.place}: {len(references)} references for {len(turns)} turns. Give one for each.")
    number = row.fields.get("question_id")
    named = replace(row, fields={**row.fields, "id": number}) if number is not None else row
    return Question(f"{NAME}-{named.id(NAME)}" if number is not None else row.id(NAME), category, turns, references)


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.fields.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{row.place}: '{key}' must be a list of texts.")
    return tuple(value)


def _benchmark(
    protocol: str,
    description: str,
    templates: Callable[[Path], Templates],
    protocols: Mapping[str, Benchmark] | None = None,
) -> Benchmark:
    judge = Judge(partial(ask, templates=templates), score)
    return Benchmark(NAME, protocol, VERSION, description, prepare, protocols=protocols or {}, judge=judge)


_FASTCHAT = _benchmark("fastchat", "the same in the words of judge_prompts.jsonl", fastchat_templates)
BENCHMARK = _benchmark(
    "own_wording",
    "questions of two turns, each answer rated by a judge from 1 to 10 (second turns: eval/conversations.py)",
    own_templates,
    protocols={_FASTCHAT.protocol: _FASTCHAT},
)
