"""Row functions of data sets that write a whole dialogue into one text, with markers before each turn.

A marker with the one blank that follows it is cut, and so is what stands between two turns (named in each docstring);
all else is kept exactly. Where the markers do not tell the turns apart, the row is refused.
"""

import re
from dataclasses import dataclass

from ift.data.conversation import Conversation, Message, Role
from ift.data.layouts.chats import sharegpt
from ift.data.layouts.fields import Row, RowError, exchange, identifier, needed, optional, rest
from ift.data.layouts.pairs import alpaca


@dataclass(frozen=True)
class _Marks:
    """How one data set marks its turns."""

    pattern: re.Pattern[str]
    """Finds a marker with what separates it from the turn before; its group is the speaker's name."""
    roles: dict[str, Role]
    open_end: bool = False
    """Whether the text may end with a marker and nothing after it, which is then no turn."""


def _split(text: str, marks: _Marks, key: str) -> tuple[str, tuple[Message, ...]]:
    """Return the text before the first marker, and the turns.

    Raises:
        RowError: there is no marker.
    """
    places = list(marks.pattern.finditer(text))
    if not places:
        raise RowError(f"'{key}' holds none of the markers {' and '.join(marks.roles)}")
    ends = [place.start() for place in places[1:]] + [len(text)]
    turns = [(marks.roles[p.group(1)], text[p.end() : end]) for p, end in zip(places, ends, strict=True)]
    if marks.open_end and len(turns) > 1 and not turns[-1][1].strip():
        turns.pop()
    return text[: places[0].start()], tuple(Message(role, said) for role, said in turns)


def _dialogue(row: Row, key: str, layout: str, marks: _Marks) -> Conversation:
    text = needed(row, key, layout, needs=f"'{key}'")
    before, messages = _split(text, marks, key)
    return Conversation(messages, system=before.strip(), id=identifier(row), meta=rest(row, "id", key))


_HUMAN: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_FLAT = _Marks(re.compile(r"(?:\A\s*|\n)(Human|Assistant): ?"), _HUMAN)
_FLAT_APART = _Marks(re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?"), _HUMAN)
_ANTHROPIC = _Marks(re.compile(r"(?:\A|\n\n)(Human|Assistant):(?: |\Z|(?=\n))"), _HUMAN)
_OPEN_ASSISTANT = _Marks(re.compile(r"### (Human|Assistant): ?"), _HUMAN)
_GUANACO = _Marks(re.compile(r"(?:\A|\n)(User|Assistant): ?"), {"User": "user", "Assistant": "assistant"})
_BAIZE = _Marks(re.compile(r"(?:\A|\n)\[\|(Human|AI)\|\] ?"), {"Human": "user", "AI": "assistant"}, open_end=True)
_OIG = _Marks(re.compile(r"(?:\A|\n)<(human|bot)>: ?"), {"human": "user", "bot": "assistant"}, open_end=True)
_GUANACO_REQUEST = re.compile(r"(?:System: ?(.*?)\n)?User: ?(.*)", re.DOTALL)


def alpaca_cot(row: Row) -> Conversation:
    r"""Read an alpaca row whose `instruction` may hold a dialogue: `Human:...\nAssistant:...\nHuman:...\nAssistant:`.

    It does where it begins with `Human:` and an `Assistant:` follows; other rows are plain alpaca. Markers stand at the
    beginning of a line; one blank after a marker and one newline before the next (or an empty line, if there is one
    before every marker) are cut. `output` is the last response.
    """
    conversation = alpaca(row)
    text = conversation.messages[-2].text
    if not text.lstrip().startswith("Human:") or "Assistant:" not in text:
        return conversation
    all_apart = len(_FLAT_APART.pattern.findall(text)) == len(_FLAT.pattern.findall(text))
    _, marked = _split(text, _FLAT_APART if all_apart else _FLAT, "instruction")
    ends_open = marked[-1].role == "assistant" and not marked[-1].text.strip()
    turns = marked[:-1] if ends_open else marked
    in_turn = [turn.role for turn in turns] == [("user", "assistant")[i % 2] for i in range(len(turns))]
    if not in_turn or not len(turns) % 2 or len(marked) == 1:
        raise RowError("the turns of 'instruction' cannot be told apart: 'Human:' and 'Assistant:' must begin a line")
    last = Message("user", turns[-1].text, context=conversation.messages[-2].context)
    messages = (*conversation.messages[:-2], *turns[:-1], last, conversation.messages[-1])
    return Conversation(messages, system=conversation.system, id=conversation.id, meta=conversation.meta)


def belle(row: Row) -> Conversation:
    """Read BELLE's forms: alpaca, alpaca with a dialogue in `instruction` (as `alpaca_cot`), and `conversations`."""
    return sharegpt(row) if "conversations" in row else alpaca_cot(row)


def guanaco(row: Row) -> Conversation:
    r"""Read both data sets of this name.

    GuanacoDataset: alpaca, in whose chats `instruction` holds the earlier turns (`User: ...\nAssistant: ...`) and
    `input` the new one (`User: ...`, before it perhaps `System: ...`, which becomes the system text).
    openassistant-guanaco: `text` with `### Human: ` and `### Assistant: `, nothing cut but the markers.
    """
    if "instruction" not in row and "text" in row:
        return _dialogue(row, "text", "guanaco", _OPEN_ASSISTANT)
    asked, earlier = optional(row, "input"), optional(row, "instruction")
    if not asked.startswith(("User:", "System:")):
        return alpaca(row)
    new = _GUANACO_REQUEST.fullmatch(asked)
    if new is None:
        raise RowError("'input' begins with 'System:', but no 'User:' follows")
    history = _split(earlier, _GUANACO, "instruction")[1] if earlier.strip() else ()
    last = exchange(new.group(2), needed(row, "output", "guanaco", needs="'instruction', 'input' and 'output'"))
    meta = rest(row, "id", "instruction", "input", "output")
    return Conversation((*history, *last), system=new.group(1) or "", id=identifier(row), meta=meta)


def hh_rlhf(row: Row) -> Conversation:
    r"""Read `chosen`, the better of two dialogues: `\n\nHuman: ...\n\nAssistant: ...`; `rejected` is not used."""
    return _dialogue(row, "chosen", "hh_rlhf", _ANTHROPIC)


def baize(row: Row) -> Conversation:
    r"""Read `input`: an opening sentence, then `\n[|Human|] ...\n[|AI|] ...`, ended by an empty `[|Human|] `.

    The opening sentence becomes the system text, without the white space around it.
    """
    return _dialogue(row, "input", "baize", _BAIZE)


def oig(row: Row) -> Conversation:
    r"""Read `text`: `<human>: ...\n<bot>: ...` (LAION's Open Instruction Generalist)."""
    return _dialogue(row, "text", "oig", _OIG)
