"""Random conversations with texts that templates, tokenizers and parsers stumble over, from a seed."""

import random
from dataclasses import replace

from conversations import NASTY

from ift.data.conversation import Conversation, Message

WORDS = (
    *("{text}", "{{", "}}", "{end}", "{", "}", "%s", "%(text)s", "%", "\\n"),
    *("<|im_end|>", "<|im_start|>", "</s>", "<s>", "<eoh>", "[gMASK]", "<sop>", "[INST]", "[/INST]", "<<SYS>>"),
    *("### Response:", "Human:", "问：", "答：", "[Round 1]", "你好", "请写一首诗。", "hello", "world", "🙂", "é", "1"),
    *("\n", "\n\n", " ", "\t"),
)


def random_text(source: random.Random) -> str:
    """Return a nasty text or a mixture of words, never without a visible character."""
    if source.random() < 0.3:
        return source.choice(NASTY)
    words = [source.choice(WORDS) for _ in range(source.randint(1, 6))]
    return source.choice(("", " ")).join((*words, source.choice(("x", "好"))))


def random_conversation(source: random.Random, *, flags: bool = False, tools: bool = False) -> Conversation:
    """Return one to four rounds, with system text and contexts now and then.

    Args:
        source: of chance.
        flags: whether messages say themselves whether they are supervised.
        tools: whether tools are called in between.
    """
    messages: list[Message] = []
    for _ in range(source.randint(1, 4)):
        context = random_text(source) if source.random() < 0.3 else ""
        messages.append(Message("user", random_text(source), context=context))
        while tools and source.random() < 0.4:
            messages.append(Message("assistant", random_text(source), thought=random_text(source), call=True))
            messages.append(Message("tool", random_text(source)))
        messages.append(Message("assistant", random_text(source)))
    if flags:
        messages = [replace(m, supervised=source.choice((None, True, False))) for m in messages]
    return Conversation(tuple(messages), system=random_text(source) if source.random() < 0.5 else "")
