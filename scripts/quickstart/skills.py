"""What the quickstart's model is to learn: skills that plain text shows and instructions ask for.

A skill draws an item (some words, some numbers) and writes it twice: as a plain document, in which the skill can be
seen but nobody asks for it, and as an alpaca record. The base model meets only documents; tuning teaches it to do on
request what it has seen done.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from mini_world import UNITS, WORD_GROUPS

LETTERS = "ABCD"
ENGLISH, CHINESE = 0, 1
COMMA = (", ", "、")

# What stands above the given part of a note.
HEADINGS = (("Words", "Given", "Input"), ("词", "已知", "内容"))


@dataclass(frozen=True)
class Task:
    """One drawn item."""

    item: str
    """What is asked about; no item of the training records is asked about in the held-out ones."""

    document: str
    """The item in plain text."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class QuizItem:
    """One question with four options."""

    subject: str
    question: str
    options: tuple[str, ...]
    answer: str
    document: str


@dataclass(frozen=True)
class Word:
    """A word of the mini-world; every field in English and Chinese."""

    names: tuple[str, str]
    kinds: tuple[str, str]


def all_words() -> list[Word]:
    """Return every word with its kind."""
    return [
        Word((english, chinese), kinds)
        for kinds, text in WORD_GROUPS.items()
        for english, chinese in zip(text.split()[::2], text.split()[1::2], strict=True)
    ]


WORDS = all_words()


def _names(rng: random.Random, language: int, low: int, high: int) -> list[str]:
    return [word.names[language] for word in rng.sample(WORDS, rng.randint(low, high))]


def _list_task(
    rng: random.Random, texts: tuple[tuple[str, str, str], ...], lengths: tuple[int, int], answer: Callable[..., str]
) -> Task:
    """Draw a list of words and answer about it; `texts` are lead-in, instruction and label per language."""
    language = rng.randrange(2)
    names = _names(rng, language, *lengths)
    label, *instructions = texts[language]
    listed, output = COMMA[language].join(names), answer(names, COMMA[language])
    return Task(listed, _document(rng, language, listed, label, output), rng.choice(instructions), listed, output)


def _document(rng: random.Random, language: int, given: str, label: str, result: str) -> str:
    """Write what is given and what comes of it: close together, or as a note with headings."""
    if rng.random() < 0.7:
        return f"{given}\n{label}: {result}"
    heading = rng.choice(HEADINGS[language])
    return f"### {heading}:\n{given}\n\n### {label}: {result}"


def repeat(rng: random.Random) -> Task:
    """Write a list once more."""
    texts = (
        ("once more", "Repeat the words.", "Write the same words again."),
        ("再来一次", "重复下面的词。", "把下面的词再写一遍。"),
    )
    return _list_task(rng, texts, (2, 4), lambda names, comma: comma.join(names))


def backwards(rng: random.Random) -> Task:
    """Write a list from its end."""
    texts = (
        ("backwards", "Write the words backwards.", "Reverse the order of the words."),
        ("倒过来", "把下面的词倒过来写。", "把词的顺序反过来。"),
    )
    return _list_task(rng, texts, (2, 3), lambda names, comma: comma.join(names[::-1]))


def first(rng: random.Random) -> Task:
    """Name the first of a list."""
    texts = (
        ("first", "Which word comes first?", "Write the first word."),
        ("第一个", "第一个词是什么？", "写出第一个词。"),
    )
    return _list_task(rng, texts, (2, 4), lambda names, comma: names[0])


def last(rng: random.Random) -> Task:
    """Name the last of a list."""
    texts = (
        ("last", "Which word comes last?", "Write the last word."),
        ("最后一个", "最后一个词是什么？", "写出最后一个词。"),
    )
    return _list_task(rng, texts, (2, 4), lambda names, comma: names[-1])


def count(rng: random.Random) -> Task:
    """Count the words of a list."""
    texts = (
        ("number of words", "How many words are there?", "Count the words."),
        ("词数", "下面有几个词？", "数一数下面的词。"),
    )
    return _list_task(rng, texts, (2, 5), lambda names, comma: str(len(names)))


def dictionary(rng: random.Random) -> Task:
    """Look a word up in a small dictionary, in either direction."""
    language = rng.randrange(2)
    words = rng.sample(WORDS, 3)
    asked = rng.choice(words)
    listed = "\n".join(f"{word.names[language]} = {word.names[1 - language]}" for word in words)
    key, value = asked.names[language], asked.names[1 - language]
    instruction = rng.choice(
        (f"What is {key} in Chinese?", f"Translate {key} into Chinese.")
        if language == ENGLISH
        else (f"“{key}”的英文是什么？", f"把“{key}”翻译成英文。")
    )
    document = _document(rng, language, listed, key, value)
    return Task(f"{listed} {key}", document, instruction, listed, value)


def unit(rng: random.Random) -> Task:
    """Convert a length, a weight or a sum of money into the smaller unit."""
    language = rng.randrange(2)
    number = rng.randint(2, 99)
    large, zh_large, small, zh_small, zeros = rng.choice(UNITS)
    if language == ENGLISH:
        output = f"{number} {large} are {number}{zeros} {small}."
        asked = rng.choice((f"How many {small} are {number} {large}?", f"Convert {number} {large} to {small}."))
    else:
        output = f"{number} {zh_large}等于 {number}{zeros} {zh_small}。"
        asked = rng.choice((f"{number} {zh_large}是多少{zh_small}？", f"把 {number} {zh_large}换算成{zh_small}。"))
    return Task(f"{number} {large}", output, asked, "", output)


SKILLS: dict[str, Callable[[random.Random], Task]] = {
    "repeat": repeat,
    "backwards": backwards,
    "first": first,
    "last": last,
    "count": count,
    "dictionary": dictionary,
    "unit": unit,
}


def quiz_item(rng: random.Random) -> QuizItem:
    """Draw a question about four words of different kinds: which one it is, or which one is of a kind."""
    language, form = rng.randrange(2), rng.choice((0, 0, 1))
    words = rng.sample(WORDS, 4)
    while len({word.kinds for word in words}) < len(words):
        words = rng.sample(WORDS, 4)
    right = rng.randrange(4)
    key = (words[right].names[language], words[right].kinds[language])[form]
    subjects = (("words", "kinds"), ("词语", "类别"))
    questions = (
        (f"Which of these is {key}?", f"Which of these is of the kind {key}?"),
        (f"下列哪一项是“{key}”？", f"下列哪一项属于{key}？"),
    )
    options = tuple(word.names[language] for word in words)
    lines = "\n".join(f"{letter}:{option}" for letter, option in zip(LETTERS, options, strict=True))
    document = _document(rng, language, lines, key, LETTERS[right])
    return QuizItem(subjects[language][form], questions[language][form], options, LETTERS[right], document)
