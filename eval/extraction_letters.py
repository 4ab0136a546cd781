"""Reads a list of option letters at a place of a text, and tells whether it stands there as letters of options.

`A`, `AC`, `A、C`, `(A) and (C)`, `A、C两项` are lists; the B of `B细胞`, the A of `A good idea` and `AB=5` are not.
"""

import re
from dataclasses import dataclass

_OPENING = r"(?:[$(\[{【「『“\"'‘<《]\s*){0,4}"
_CLOSING = r"(?:\s*[)\]}】」』”\"'’》]){0,4}"
_PREFIX = r"(?:(?:选项|选|options?|choices?|letters?|statements?)[ \t]*[:是为]?[ \t]*)?"
_SUFFIX = r"(?:[ \t]*(?:选项|项)(?!目))?"
_GLOSS = r"(?:\s*\([^()\n]{1,60}\)(?=\s*(?:[、,;/&+]|和|与|及|以及|and\b)))?"
_ITEM = re.compile(
    rf"(?P<open>{_OPENING})(?P<prefix>{_PREFIX}){_OPENING}(?P<run>[A-H]{{1,8}}|[a-h]{{1,8}})(?![A-Za-z0-9_])"
    rf"(?P<close>{_CLOSING})(?P<suffix>{_SUFFIX}){_CLOSING}{_GLOSS}",
    re.IGNORECASE,
)
_TIGHT = re.compile(
    r"[ \t]*(?:、|/|&|\+|和|与|及|以及|跟|还有|,?[ \t]*\band\b|或者?|,?[ \t]*\bor\b)[ \t]*"
    r"|[ \t]*(?=[(\[【][ \t]*[A-H][ \t]*[)\]】])"
)
_LOOSE = re.compile(r"[ \t]*[,;][ \t]*(?:和|以及|and\b[ \t]*|or\b[ \t]*)?|[ \t]+|\.(?=[A-H](?![A-Za-z0-9]))")
_ALTERNATIVE = re.compile(r"或|\bor\b")

_NOT_SO_ZH = (
    r"(?:并|都|均|也|完全|说法|表述|描述|看来|显然)*\s*(?:是|为)?\s*(?:并|都|均|完全|明显)*\s*"
    r"(?:不(?!仅|但|过|难|选|是[ \t(]*[A-H]|能选)|错|误|有误|有错|非|排除|没(?!错|问题|有疑)|[✗✘✖❌])"
)
_NOT_SO_EN = (
    r"\s+(?:(?:is|are|was|were|seems?|can|could|would|should|does|do)\b\s*"
    r"(?:both |all |clearly |also |definitely |probably |simply )?(?:not\b|n't|incorrect|wrong|false|never|ruled|too )"
    r"|(?:isn't|aren't|can't|cannot|doesn't|wasn't)\b)"
)
DENIED = re.compile(rf"(?:{_NOT_SO_ZH}|{_NOT_SO_EN})", re.IGNORECASE)
_QUESTIONED = re.compile(r"\s*(?:选项|项)?\s*(?:吗|么|还是|\?|是不是|是否|对不对)")
_SUPPOSED = re.compile(
    r"\s*(?:选项|项)?\s*(?:的话|的同学|的学生|的人|的考生|的错误|时,|会导致|的是因为没)"
    r"|[ \t]+as[ \t]+(?:the|an?|our|its)\b(?![ \t]+(?:\w+[ \t]+){0,2}(?:answer|option|choice|response))"
)
_STOP = re.compile(r"[ \t]*(?:$|[。.,;:!、…)\]】}>\"”」』<\n—~|《#$]|\((?!\s*\d+\s*,)|'(?![a-z])|[-–](?![A-Za-z0-9]))")
_NEXT_NUMBERED = re.compile(r"\s*[(]?\d{1,3}[).、]\s*[(]?[A-H](?![A-Za-z0-9])")
_NEXT_LABEL = re.compile(r"[ \t]*([.:)])[^\nA-Za-z。,;.]{1,20}[ \t][A-H]\1")
_NEXT_CLAUSE = re.compile(
    r"[ \t]*(?:选项|项)?[ \t]*(?:是|为|都|均|则|也|的|错|误|不|没|与|说|指|虽|只|仅|属|正确|对|符合|描|表)"
    r"|[ \t]+(?:is|are|was|were|has|have|does|do|can|would|will|refers?|means?|describes?)\b",
)
_GOES_ON = re.compile(
    r"选项|项(?!目)|因|由于|所以|故|是(?!否)|为(?:正确|本题|最|什么)|吧|呢|啊|哦|呀|而|但|理由|原因|的(?:原因|理由)|解析|分析|解释|说明|"
    r"正确|符合|最|对(?!照|应|称|象)|这(?!点)|其|即|也|才|就|都|均|应|[两三四五六七](?:项|个选项|者|种说法)|全|当选|了|答案|更|选|只有|题|本题|"
    r"较|比较|合适|无疑|没错|不(?:选|是|能选)"
)
_COMPOUND = re.compile(
    r"语言|股|型|超|细胞|淋巴|物质|元素|粒子|同学|先生|女士|公司|君|点|与|和|到|至|在|从|"
    r"(?:级|类|轮|站|片|区|栋|座|组|班|市|地|国|盘|树|端|族|线|面|角|边|轴|图|卷|城|队|车|楼|室|球|村|省|县|港|校|厂|等|中|上|下|处|肝|肽|链|环)"
    r"(?![一-龥])|(?:[一-龥](?:的|上|下|中|与|和|到|之))"
)
_ENGLISH_GOES_ON = re.compile(
    r"(?:because|since|as|for|and|is|are|due|which|that|while|although|though|but|so|therefore|hence|thus|if|it|the|this|"
    r"these|from|in|on|by|with|option|choice|given|rather|not|my|i|we|you|please|explanation|reason|reasoning|here|to|only)",
    re.IGNORECASE,
)
_ENGLISH_COMPOUND = re.compile(
    r"(?:vitamins?|major|minor|sharp|flat|cells?|lymphocytes?|language|programming|battery|batteries|drive|students?|"
    r"grades?|teams?|sections?|class|train|plus|minus|levels?|notes?|strings?|types?|groups?|movies?|sides?|road|line|"
    r"points?|company|stocks?|shares|hepatitis)",
    re.IGNORECASE,
)


BULLET = re.compile(r"[-*•>#\s]*")
_FULL_STOP_LIST = re.compile(r"(?<=[A-Ha-h])\.[ \t]*(?=[A-Ha-h](?![A-Za-z]))")
_LINE_END = re.compile(r"[\s.。,、;:!?…)\]】]*")


_MOST = 8
"""Letters of a list; more are no options."""


@dataclass(frozen=True)
class LetterList:
    """Option letters that stand together."""

    letters: str
    """Upper case, in the order of the text."""
    start: int
    """Where the first letter stands."""
    end: int
    alternatives: bool = False
    """Whether they are joined by `or`, so that no one answer is given."""
    marked: bool = False
    """Whether brackets or the word option tell that letters of options are meant."""


def read_list(text: str, position: int, *, bare: bool = False) -> LetterList | None:
    """Return the letters that stand at a position as an answer, or `None`.

    Args:
        text: plain text.
        position: where the list must begin, opening brackets included.
        bare: whether nothing but the word before (`答案A`) tells that an answer comes; then it must end its sentence.
    """
    items, joints = _scan(text, position)
    whole = _list(items, joints)
    if whole is None:
        return None
    if _ends_well(text, whole, bare=bare):
        return whole
    loose = next((index for index, joint in enumerate(joints) if _LOOSE.fullmatch(joint)), None)
    if bare or loose is None or not _NEXT_CLAUSE.match(text, items[-1].end()):
        return None
    # `选A，B项错误`: what follows the comma begins the next clause.
    return _list(items[: loose + 1], joints[:loose])


def scan_list(text: str, position: int) -> LetterList | None:
    """Return the letters that stand at a position, whatever follows them, or `None`."""
    return _list(*_scan(text, position))


def _scan(text: str, position: int) -> tuple[list[re.Match[str]], list[str]]:
    """Return the letters (or one run of them) from a position on, and what joins each to the next."""
    first = _item(text, position)
    if first is None:
        return [], []
    items, joints = [first], []
    while len(items[-1]["run"]) == 1 and len(items) <= _MOST:
        joint = _TIGHT.match(text, items[-1].end()) or _LOOSE.match(text, items[-1].end())
        following = joint and _item(text, joint.end())
        if not joint or not following or len(following["run"]) > 1:
            break
        if items[-1]["run"].isupper() != following["run"].isupper():
            break
        items.append(following)
        joints.append(joint[0])
    return items, joints


def _item(text: str, position: int) -> re.Match[str] | None:
    found = _ITEM.match(text, position)
    if found is None:
        return None
    run = found["run"]
    ascending = list(run) == sorted(set(run))
    good = len(set(run)) == len(run) and (run.isupper() or (run.islower() and ascending))
    return found if good else None


def _list(items: list[re.Match[str]], joints: list[str]) -> LetterList | None:
    letters = "".join(item["run"] for item in items).upper()
    if not letters or len(letters) > _MOST or len(set(letters)) != len(letters):
        return None
    return LetterList(
        letters,
        items[0].start("run"),
        items[-1].end(),
        alternatives=any(_ALTERNATIVE.search(joint) for joint in joints),
        marked=all(_is_marked(item) for item in items),
    )


def _is_marked(item: re.Match[str]) -> bool:
    return item["prefix"].strip() not in ("", "选") or bool(item["suffix"] or (item["open"] and item["close"]))


def _ends_well(text: str, found: LetterList, *, bare: bool) -> bool:
    """Return whether the text after the letters lets them be the answer: not denied, asked, supposed or a compound."""
    end = found.end
    if any(pattern.match(text, end) for pattern in (DENIED, _QUESTIONED, _SUPPOSED, _NEXT_NUMBERED, _NEXT_LABEL)):
        return False
    joint = _TIGHT.match(text, end)
    if joint and _ITEM.match(text, joint.end()):
        return False  # `AB、CD`: more letters that make no list with the first
    if _STOP.match(text, end):
        return True
    if bare:
        return False
    rest = text[end : end + 40]
    spaced, rest = rest[:1] in " \t", rest.lstrip(" \t")
    if "\u4e00" <= rest[:1] <= "\u9fff":
        return _goes_on_in_chinese(rest, found, spaced=spaced)
    word = re.match(r"[A-Za-z]+(?:'[a-z]+)?", rest)
    if not word and found.marked and spaced:
        return not re.match(r"[=+*/^<>\\×÷-]", rest)
    return bool(spaced and word) and _goes_on_in_english(word[0] if word else "", found)


def _goes_on_in_chinese(rest: str, found: LetterList, *, spaced: bool) -> bool:
    if found.marked or _GOES_ON.match(rest):
        return True
    return spaced and len(found.letters) == 1 and not _COMPOUND.match(rest)


def _goes_on_in_english(word: str, found: LetterList) -> bool:
    if found.marked or _ENGLISH_GOES_ON.fullmatch(word):
        return True
    # `A` before a noun is an article, and a lower-case letter before a word may be one too.
    return found.letters in tuple("BCDEFGH") and not _ENGLISH_COMPOUND.fullmatch(word)


def only_letters(text: str) -> str | None:
    """Return the letters of a text that holds nothing but them, their brackets and separators; else `None`."""
    letters = ""
    for line in text.split("\n"):
        line = _FULL_STOP_LIST.sub("、", BULLET.sub("", line, count=1).strip())
        if not line:
            continue
        found = scan_list(line, 0)
        if found is None or found.alternatives or not _LINE_END.fullmatch(line, found.end):
            return None
        if set(found.letters) & set(letters):
            return None
        letters += found.letters
    return letters or None


def stands_apart(text: str, found: LetterList) -> bool:
    """Return whether the letters are set off from what follows and not denied, which does after an explicit marker."""
    if any(pattern.match(text, found.end) for pattern in (DENIED, _QUESTIONED, _NEXT_NUMBERED)):
        return False
    return bool(_STOP.match(text, found.end)) or (
        text[found.end] in " \t" and not re.match(r"\s+[a-z=+]", text[found.end :])
    )
