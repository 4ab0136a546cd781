"""The words that declare an answer, in Chinese and English, and those that refuse one.

A head is a phrase after which the letters stand; a claim has the letters before its words (`B是正确答案`). Every pattern has
the name that a report shows as the rule.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.extraction_letters import LetterList, only_letters, read_list, scan_list, stands_apart

_SURELY = r"(?:应该|应当|应|就|也|只能|只|显然|当然|很可能|可能|大概|最终|必然|一定|必|确实|便|则|仍然|仍|还|无疑|我认为|选择|选)*"
_IS = r"(?:是|为|选择|选|填|即)"
_TO = r"[ \t]*[\"'”]?\s*[:=]?\s*[\"'“]?\s*"
_NUMBERED = r"(?:[(]?\d{1,3}[).、][ \t]*)?"
_OF_OPTION = r"(?:的?(?:序号|选项|字母|编号|代号|项|内容))?"
_KIND = r"(?:(?:most|best|only|more|single|final|right|correct|likely|appropriate|suitable|accurate|probable)[ \t]+)*"
_CERTAINLY = (
    r"(?:(?:therefore|thus|clearly|likely|probably|most likely|definitely|indeed|simply|then|actually|still|both|"
    r"the letter|letter|the option|the choice|the following)[ \t,]+)*(?:either[ \t]+)?"
)
_BE = r"(?:is|are|was|would be|should be|must be|will be|has to be|have to be|seems to be|appears to be|could be|might be|may be)"

HEADS = {
    "answer_zh": rf"答案{_OF_OPTION}[ \t]*{_SURELY}[ \t]*{_IS}{_TO}{_NUMBERED}",
    "answer_colon": rf"(?:答案{_OF_OPTION}|答(?=[ \t]*:)|(?<![A-Za-z])(?i:answers?|ans|final answer|key|correct))[ \t]*(?:[)\]】][ \t]*)?"
    rf"[\"'”]?\s*(?:[:=]|[-–—]+[ \t])\s*[\"'“]?\s*{_NUMBERED}",
    "choose_zh": r"选(?:择|定|取)?(?:的?(?:应该|应当|应)?(?:是|为)|了)?[ \t]*:?[ \t]*(?:答案|的是)?[ \t]*",
    "correct_option_zh": r"(?:正确|符合题意|符合要求|最合适|最恰当|最佳|合适|恰当|最准确|最符合[^,。\n]{0,10})的?[ \t]*"
    rf"(?:(?:一|那|这|几|两|三)?(?:项|个)|选项|答案|选择|说法|表述)*[ \t]*{_SURELY}(?:是|为|有|包括|:)+{_TO}",
    "therefore_zh": r"(?:因此|所以|故|综上所述|综上|因而|于是|可知|可见|由此可得)[,、]?[ \t]*(?:本题|此题|该题|我)?(?:的)?"
    rf"(?:认为|觉得)?[ \t]*{_SURELY}(?:是|为|选){_TO}",
    "should_be_zh": r"(?:应该|应当|应)(?:是|为)[ \t]*:?[ \t]*",
    "that_is_zh": r"(?:选项|答案|选)[^。\n]{0,30}?(?<=[,、(个项])[ \t]*(?:也就是|即|对应(?:的)?(?:是|为)?)(?:选项)?[ \t]*:?[ \t]*",
    "answer_en": rf"(?<![A-Za-z])(?i:{_KIND}(?:answer|option|choice|solution|response|selection|pick|letter)s?(?:[ \t]+choices?|[ \t]+options?)?"
    rf"(?:[ \t]+(?:to|for|here|in|among|of)\b[^.\n:]{{0,60}}?)?(?:[ \t]+{_BE}|'s)[ \t]*[:,]?[ \t]*{_CERTAINLY}[:]?[ \t]*\n?[ \t]*)",
    "choose_en": r"(?<![A-Za-z])(?i:(?:I|we)(?:[ \t]+(?:would|will|should|must|can|am going to)|'d|'ll)?(?:[ \t]+(?:therefore|thus|have to))?"
    r"[ \t]+(?:choose|pick|select|go with|going with|opt for|vote for|answer|say|guess|chose|picked|selected)(?:[ \t]+(?:it is|it's))?"
    r"[ \t]*:?[ \t]*(?:the[ \t]+)?(?:answer[ \t]+)?)",
    "should_be_en": r"(?<![A-Za-z])(?i:(?:it|this|that)[ \t]+(?:should|must|has to|would)[ \t]+be[ \t]+)",
    "therefore_en": r"(?<![A-Za-z])(?i:(?:therefore|thus|so|hence|consequently|in conclusion)[,:]?[ \t]+it(?:'s|[ \t]+is|[ \t]+must be)[ \t]+)",
    "correct_option_en": r"(?<![A-Za-z])(?i:(?:correct|right|best)[ \t]+(?:answer|option|choice|statement)s?[ \t]*[:=][ \t]*)",
}
MARKER = re.compile(r"(?:【[^】\n]{0,4}(?:答案|解答|(?i:answer))[^】\n]{0,3}】|\[[^\]\n]{0,4}答案\]|(?<![一-龥])答案】)\s*[:=]?\s*")
MARKED_END = re.compile(r"<eoa>|</?answer|【|\n[ \t]*\n(?!\s*[A-H]\b)")
_NOTHING = re.compile(r"\s*(?:无|没有|空|(?i:none|n/a|unknown))\s*[。.]?\s*$")
_BARE_HEADS = {
    "answer_bare": rf"答案{_OF_OPTION}[ \t]*|(?<![A-Za-z])(?i:answer)[ \t]+",
    "therefore_bare": r"(?:因此|所以|故|综上所述|综上)[,、]?[ \t]*|(?<![A-Za-z])(?i:(?:therefore|thus|so|hence)[,:]?[ \t]+)",
}
_CLAIM_TAIL_ZH = r"[ \t]*(?:都|均|才|就|显然|也|便)*(?:应该|应当|应|)?(?:是|为)?(?:唯一|本题|该题|此题|最终|最后)?的?"
ANSWER_CLAIMS = {
    "is_answer_zh": rf"{_CLAIM_TAIL_ZH}(?:(?:正确|最佳|最优|最合适|最恰当|标准|合适|对)的?(?:答案|选项|选择)|(?<=[是为题])(?:的)?答案)",
    "is_answer_en": r"[ \t]*(?:\([^()\n]{1,80}\)|[\"“][^\"”\n]{1,80}[\"”])?[ \t]*,?[ \t]+(?:is|are|must be|would be|should be|seems to be)[ \t]+"
    r"(?:therefore |thus |clearly |definitely |indeed |likely |probably )?(?:the |our |my )"
    r"(?:only |single |most )?(?:correct|right|final|best|appropriate|accurate|suitable|likely)?[ \t]*(?:answer|option|choice)s?(?![ \t]+for\b)",
}
TRUTH_CLAIMS = {
    "is_right_zh": r"[ \t]*(?:都|均|才|就|显然|也|完全|更|最|说法|表述|描述|内容|的)*(?:是|为|更|最)*"
    r"(?:正确|对的|符合|恰当|合适|合理|准确|佳|成立|当选)",
    "is_right_en": r"[ \t]*(?:\([^()\n]{1,80}\))?[ \t]+(?:is|are|seems|must be|would be)[ \t]+(?:therefore |thus |clearly |definitely |indeed |also |both |all |"
    r"the most |most |the )*(?:correct|right|true|accurate|appropriate|valid|best)",
}
_CONCLUDING = re.compile(r"(?:综上所述|综上|总之|总的来说|综合来看|综合以上|(?i:in conclusion|overall|in summary|to sum up))[^。.\n]{0,12}$")
_VOID_BEFORE = re.compile(
    r"(?:不|别|勿|未|没|误|错|易|非|无|难以|排除|挑|筛|评|竞|入|候|备|当|文|预|多|先|所|海|大|普|推|供)[ \t]*$"
    r"|(?:不|没有|不能|无法|不会|不应|不可)(?:应该|应|可|可能|可以|要|会|能|用|被|再|得|该)?[ \t]*$"
    r"|(?:错误|不正确|不对|非正确|干扰)的?[ \t]*$|(?:同学|学生|有人|考生|很多人|不少人|他们|她们|他|她)[^。,\n]{0,8}$"
    r"|(?:如果|若|假如|假设|倘若|要是|即使|虽然|就算|是否|为什么|为何|怎么|何时|哪些)[^。,\n]{0,8}$"
    r"|(?i:\b(?:wrong|incorrect|if|whether|suppose|assume|assuming|unless|why|not|never|false|worst|another|first|other|each|every|one|"
    r"n't|cannot|students|people|they|he|she|some|many|could|might|possible|remaining|plausible|candidate|potential)[ \t]+(?:the|an?|that|said|says|think|chose|choose|think that|also|of the|"
    r"had|then|it is|you)?[ \t]*(?:the[ \t]+)?(?:correct[ \t]+|right[ \t]+|best[ \t]+)?)$"
)
_RESTATED = re.compile(r"(?:的(?:一项|选项|一组|说法)?|(?:一项|选项|组))[ \t]*(?:应该|应|就)?(?:是|为)[ \t]*:?[ \t]*")

_REFUSED_ZH = (
    r"无法(?:确定|回答|判断|选择|作答|给出|得出|得知|确认|提供|解答|做出)|不能(?:确定|回答|判断|选择|作答|给出)|难以(?:确定|判断)|"
    r"不知道|不清楚|不确定|没有(?:正确|合适|符合|一个|任何)?[^。\n]{0,6}(?:答案|选项)|无(?:正确|合适|符合)?[^。\n]{0,4}(?:答案|选项|解)|"
    r"(?:以上|上述|所有|四个|全部)[^。\n]{0,6}(?:都|均|全)?(?:不对|不正确|不是|不符|错|错误)|(?:都|均)不(?:正确|对|符合)|题目?[^。\n]{0,6}(?:有误|错误|不完整|不全)|"
    r"信息不足|条件不足|抱歉|对不起|作为(?:一个|一名)?(?:人工智能|AI|语言模型)|不在选项(?:中|里)"
)
_REFUSED_EN = (
    r"\b(?:can(?:not|'t| not)|could not|couldn't|unable to|am not able to|impossible to|won't|refuse to|not possible to)\b[^.\n]{0,20}"
    r"(?:answer|determine|decide|choose|tell|select|provide|help|assist|say|know|pick)|\b(?:don't|do not) know\b|\bnot (?:sure|certain|enough information)\b|"
    r"\bnone of (?:the|these|them)\b|\bno correct\b|\bas an ai\b|\binsufficient (?:information|data)\b|\bI'm sorry\b|\bsorry, (?:but )?I\b|\bno idea\b|"
    r"\bnone is correct\b|\bundetermined\b|\bnot among the (?:options|choices)\b"
)
REFUSED = re.compile(rf"{_REFUSED_ZH}|(?i:{_REFUSED_EN})")
_REFUSED_HERE = re.compile(rf"[^。.\n,;]{{0,16}}?(?:{_REFUSED_ZH}|(?i:{_REFUSED_EN}))|(?:无|没有|空|(?i:none|n/a|unknown))[ \t]*(?=$|[。.,\n<])")
_DOUBTED = re.compile(r"[ \t]*(?:吗|\?|与否|的可能|的概率)")
RETRACTED = re.compile(
    r"(?:^|[。.!,;\n][ \t]*)(?:等等|等一下|不对(?=[,。.!])|不,|不是,|更正|纠正|抱歉,我|我(?:说|算|弄)?错了|说错了|重新|让我再"
    r"|(?i:wait\b|no,|actually,|correction\b|I made (?:a|an)\b|my mistake|let me (?:re|correct)|on second thought))"
)


@dataclass(frozen=True)
class Reading:
    """A place of a text where an answer is given, or refused where `found` is `None`."""

    rule: str
    start: int
    end: int
    found: LetterList | None


def declarations(text: str) -> Iterator[Reading]:
    """Yield what the text declares to be the answer, in no order."""
    yield from _marked(text)
    for rule, pattern in _COMPILED_HEADS.items():
        for head in pattern.finditer(text):
            yield from _after_head(text, rule, head)
    for rule, pattern in _COMPILED_ANSWER_CLAIMS.items():
        for found, end in _claims(text, pattern):
            yield Reading(rule, found.start, end, found)
    for rule, pattern in _COMPILED_TRUTH_CLAIMS.items():
        for found, end in _claims(text, pattern):
            if _CONCLUDING.search(text, max(0, found.start - 30), found.start):
                yield Reading(rule, found.start, end, found)


def truth_claims(text: str) -> Iterator[Reading]:
    """Yield which options the text calls right (`B选项正确`), which is analysis and an answer only where it is one option."""
    for rule, pattern in _COMPILED_TRUTH_CLAIMS.items():
        for found, end in _claims(text, pattern):
            yield Reading(rule, found.start, end, found)
    for head in _RESTATED.finditer(text):
        if found := read_list(text, head.end()):
            yield Reading("restated_question", found.start, found.end, found)


def is_void(text: str, start: int) -> bool:
    """Return whether the words before a declaration deny it, ask it or only suppose it."""
    return _VOID_BEFORE.search(text, max(0, start - 40), start) is not None


def _marked(text: str) -> Iterator[Reading]:
    """Yield the answers in `【答案】…<eoa>` and its like."""
    for marker in MARKER.finditer(text):
        stop = MARKED_END.search(text, marker.end())
        content = text[: stop.start() if stop else len(text)]
        start, end = marker.end(), len(content)
        alone = only_letters(content[start:])
        found = LetterList(alone, start, end) if alone else read_list(content, start)
        lenient = None if found else scan_list(content, start)
        if lenient and stands_apart(content, lenient):
            found = lenient
        if found:
            yield Reading("marked", marker.start(), found.end, found)
        elif _NOTHING.match(content, start) or REFUSED.search(content, start):
            yield Reading("marked", marker.start(), start, None)


def _after_head(text: str, rule: str, head: re.Match[str]) -> Iterator[Reading]:
    if is_void(text, head.start()):
        return
    found = _lines_of_options(text, head) or read_list(text, head.end(), bare=rule in _BARE_HEADS)
    if found:
        yield Reading(rule, head.start(), found.end, found)
    elif rule in ("answer_zh", "answer_colon", "answer_en") and (refusal := _REFUSED_HERE.match(text, head.end())):
        yield Reading(rule, head.start(), refusal.end(), None)


def _lines_of_options(text: str, head: re.Match[str]) -> LetterList | None:
    """Return the letters of several lines `A. text` that follow a head on lines of their own."""
    block = _OPTION_LINES.match(text, head.end()) if "\n" in head[0] else None
    lines = list(_OPTION_LINE.finditer(block[0])) if block else []
    letters = "".join(line["letter"] for line in lines)
    if not block or len(lines) < 2 or len(set(letters)) < len(letters) or any(_JUDGED.match(line["text"]) for line in lines):
        return None
    return LetterList(letters, block.start(), block.end())


def _claims(text: str, tail: re.Pattern[str]) -> Iterator[tuple[LetterList, int]]:
    """Yield the letter lists before the words of a claim, and where the claim ends."""
    taken = 0
    for start in _FIRST_LETTER.finditer(text):
        if start.start() < taken or is_void(text, start.start()):
            continue
        found = scan_list(text, start.start())
        claim = tail.match(text, found.end) if found else None
        if found and claim:
            taken = found.end
            if not _DOUBTED.match(text, claim.end()):
                yield found, claim.end()


_OPTION_LINE = re.compile(r"[-*•> \t]*\(?(?P<letter>[A-H])\)?[ \t]*[.、:)](?P<text>[^\n]*)(?:\n|$)")
_OPTION_LINES = re.compile(rf"(?:{_OPTION_LINE.pattern.replace('?P<letter>', '?:').replace('?P<text>', '?:')})+")
_JUDGED = re.compile(r"[ \t]*(?:正确|错|不|对|true|false|correct|incorrect|wrong|right|this)", re.IGNORECASE)
_FIRST_LETTER = re.compile(r"(?<![A-Za-z0-9_])[(\[\"'“]*(?:(?:选项|(?i:options?|choices?|statements?))[ \t]*[(\[\"'“]*)?[A-H](?![a-z0-9_])")
_COMPILED_HEADS = {rule: re.compile(pattern) for rule, pattern in (HEADS | _BARE_HEADS).items()}
_COMPILED_ANSWER_CLAIMS = {rule: re.compile(pattern) for rule, pattern in ANSWER_CLAIMS.items()}
_COMPILED_TRUTH_CLAIMS = {rule: re.compile(pattern) for rule, pattern in TRUTH_CLAIMS.items()}
