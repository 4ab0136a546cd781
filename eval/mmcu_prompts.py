"""The prompts of MMCU's three protocols; every wording stands here once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.mmcu_questions import Question, read_examples
from eval.mmcu_rules import LETTERS, original_option, strict_gold
from ift.errors import UserError

READ_AND_CHOOSE = "请阅读以下选择题并给出正确选项，不要解释原因。"
LETTERS_ONLY = "请只给出答案的序号。"
"""MMCU's scripts add it for BLOOMZ, ChatGLM and MOSS, and not for ChatGPT."""
ANSWER = "正确答案的序号是："
# Alpaca's sentence for requests with an input, which Alpaca-CoT uses although its MMCU prompts have none.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def original_block(question: Question) -> str:
    """Return a question as MMCU's scripts write it, up to where the answer goes."""
    named = zip(LETTERS, question.options, strict=False)
    options = "".join(f"\n{letter}. {original_option(text)}" for letter, text in named)
    return f"{question.text}{options}\n{ANSWER}"


def strict_block(question: Question) -> str:
    """Return a question with its options as they are, up to where the answer goes."""
    options = "".join(f"\n{letter}. {text}" for letter, text in question.filled_options)
    return f"{question.text.strip()}{options}\n{ANSWER}"


def alpaca_cot_instruction(question: Question) -> str:
    """Return the instruction of Alpaca-CoT's prompt, up to the blank line that template `alpaca` writes after it."""
    return f"{READ_AND_CHOOSE}\n{question.text}\n{question.joined}\n{ANSWER}"


class Examples:
    """The worked examples that go before a question, from the `dev` folder."""

    def __init__(self, path: Path, shots: int) -> None:
        self._path, self._shots = path, shots
        self._by_source: Mapping[str, Sequence[Question]] = read_examples(path) if shots else {}

    def original(self, question: Question) -> str:
        """Return the first examples of the question's workbook, as MMCU's scripts write them."""
        chosen = self._first(question, self._of(question))
        return "".join(f"{original_block(one)} {one.answer}\n\n" for one in chosen)

    def strict(self, question: Question) -> str:
        """Return the first examples that are not the question itself and whose answer can be read."""
        usable = [
            one
            for one in self._of(question)
            if one.text.strip() != question.text.strip() and strict_gold(one.answer, one.letters).letters
        ]
        chosen = self._first(question, usable)
        return "".join(f"{strict_block(one)} {_right(one)}\n\n" for one in chosen)

    def _of(self, question: Question) -> Sequence[Question]:
        return self._by_source.get(question.source, ())

    def _first(self, question: Question, usable: Sequence[Question]) -> Sequence[Question]:
        if len(usable) < self._shots:
            raise UserError(
                f"--shots: {self._shots} worked examples are needed for {question.id}; "
                f"{self._path / 'dev' / question.source}.xlsx has {len(usable)} that can be used."
            )
        return usable[: self._shots]


def _right(question: Question) -> str:
    return "".join(sorted(strict_gold(question.answer, question.letters).letters))
