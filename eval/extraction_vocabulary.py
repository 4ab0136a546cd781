"""The patterns of words that declare an answer, in Chinese and English, and of those that deny, suppose or refuse one.

Patterns match plain text (`eval/extraction_text.py`). A head is followed by the letters (`答案是B`); a claim follows
them (`B是正确答案`). Their names are the rules that an `Extraction` shows.
"""

import re

_SPACE = r"[ \t]*"


def _any(*phrases: str) -> str:
    return "(?:" + "|".join(phrases) + ")"


_SURELY = _any(
    *(
        "应该",
        "应当",
        "应",
        "就",
        "也",
        "只能",
        "只",
        "显然",
        "当然",
        "很可能",
        "可能",
        "大概",
        "最终",
        "必然",
        "一定",
        "必",
    ),
    *("确实", "便", "则", "仍然", "仍", "还", "无疑", "我认为", "选择", "选"),
)
_IS_ZH = _any("是", "为", "选择", "选", "填", "即")
_TO = r"[ \t]*[\"'”]?\s*[:=]?\s*[\"'“]?\s*"
_NUMBERED = r"(?:[(]?\d{1,3}[).、][ \t]*)?"
_ANSWER_ZH = r"(?:答[ \t]?案|正解)(?:的?(?:序号|选项|字母|编号|代号|项|内容))?"
_BEST_ZH = _any(
    *("正确", "符合题意", "符合要求", "最合适", "最恰当", "最佳", "合适", "恰当", "最准确", r"最符合[^,。\n]{0,10}"),
)
_SO_ZH = _any("因此", "所以", "故", "综上所述", "综上", "因而", "于是", "可知", "可见", "由此可得")

_WORD_START = r"(?<![A-Za-z])"
_BEST_EN = (
    r"(?:(?:most|best|only|more|single|final|right|correct|likely|appropriate|suitable|accurate|probable)[ \t]+)*"
)
_BE = _any(
    *("is", "are", "was", "would be", "should be", "must be", "will be", "has to be", "have to be", "seems to be"),
    *("appears to be", "could be", "might be", "may be"),
)
_SURELY_EN = (
    r"(?:(?:therefore|thus|clearly|likely|probably|most likely|definitely|indeed|simply|then|actually|still|both|"
    r"the letter|letter|the option|the choice|the following)[ \t,]+)*(?:either[ \t]+)?"
)
_LABEL_EN = r"(?:answers?|ans|final answer|key|correct|(?:my |your )?(?:choice|selection|pick))"
_ANSWER_EN = (
    r"(?:answer|option|choice|solution|response|selection|pick|letter)s?(?:[ \t]+choices?|[ \t]+options?)?"
    r"(?:[ \t]+(?:to|for|here|in|among|of)\b[^.\n:]{0,60}?)?"
)
_CHOOSE_EN = _any(
    *("choose", "pick", "select", "go with", "going with", "opt for", "vote for", "answer", "say", "guess", "chose"),
    *("picked", "selected"),
)

HEADS = {
    "answer_zh": rf"{_ANSWER_ZH}{_SPACE}{_SURELY}*{_SPACE}{_IS_ZH}{_TO}{_NUMBERED}",
    "answer_colon": rf"(?:{_ANSWER_ZH}|答(?=[ \t]*:)|{_WORD_START}(?i:{_LABEL_EN})){_SPACE}(?:[)\]】][ \t]*)?"
    rf"[\"'”]?\s*(?:[:=]|[-–—]+[ \t])\s*[\"'“]?\s*{_NUMBERED}",
    "choose_zh": rf"选(?:择|定|取)?(?:的?(?:应该|应当|应)?(?:是|为)|了)?{_SPACE}:?{_SPACE}(?:答案|的是)?{_SPACE}",
    "correct_option_zh": rf"{_BEST_ZH}的?{_SPACE}(?:(?:一|那|这|几|两|三)?(?:项|个)|选项|答案|选择|说法|表述)*"
    rf"{_SPACE}{_SURELY}*(?:是|为|有|包括|:)+{_TO}",
    "therefore_zh": rf"{_SO_ZH}[,、]?{_SPACE}(?:本题|此题|该题|我)?的?(?:认为|觉得)?{_SPACE}{_SURELY}*"
    rf"(?:是|为|选){_TO}",
    "should_be_zh": rf"(?:应该|应当|应)(?:是|为){_SPACE}:?{_SPACE}",
    "that_is_zh": r"(?:选项|答案|选)[^。\n]{0,30}?(?<=[,、(个项])"
    rf"{_SPACE}(?:也就是|即|对应的?(?:是|为)?)(?:选项)?{_SPACE}:?{_SPACE}",
    "instead_zh": rf"{_ANSWER_ZH}{_SPACE}(?:应该)?(?:不是|并非|不为|不选){_SPACE}(?:选项)?{_SPACE}[A-H](?:选?项)?"
    rf"{_SPACE}[,;]?{_SPACE}"
    rf"(?:而是|而应(?:该)?(?:是|为|选)|应该?(?:是|为|选)){_SPACE}",
    "matching_option_zh": rf"[,;、]{_SPACE}(?:故|因此|所以)?对应的?(?:选项|答案)(?:是|为)?{_SPACE}:?{_SPACE}",
    "instead_en": r"(?<![A-Za-z])(?i:(?:it|that)(?:'s| is) not[ \t]+(?:option[ \t]+)?)[A-H][.,;][ \t]*"
    r"(?i:(?:it|that)(?:'s| is)[ \t]+)",
    "answer_en": rf"{_WORD_START}(?i:{_BEST_EN}{_ANSWER_EN}(?:[ \t]+{_BE}|'s){_SPACE}[:,]?{_SPACE}{_SURELY_EN}:?"
    rf"{_SPACE}\n?{_SPACE})",
    "choose_en": rf"{_WORD_START}(?i:(?:I|we)(?:[ \t]+(?:would|will|should|must|can|am going to)|'d|'ll)?"
    rf"(?:[ \t]+(?:therefore|thus|have to))?[ \t]+{_CHOOSE_EN}(?:[ \t]+(?:it is|it's))?{_SPACE}:?{_SPACE}"
    r"(?:the[ \t]+)?(?:answer[ \t]+)?)",
    "should_be_en": rf"{_WORD_START}(?i:(?:it|this|that)[ \t]+(?:should|must|has to|would)[ \t]+be[ \t]+)",
    "therefore_en": rf"{_WORD_START}(?i:(?:therefore|thus|so|hence|consequently|in conclusion)[,:]?[ \t]+"
    r"it(?:'s|[ \t]+is|[ \t]+must be)[ \t]+)",
    "think_en": rf"{_WORD_START}(?i:I[ \t]+(?:think|believe|guess|suppose)(?:[ \t]+that)?[ \t]+"
    r"it(?:'s|[ \t]+is)[ \t]+)",
    "best_thing_en": rf"{_WORD_START}(?i:(?:correct|right|best)[ \t]+(?:title|description|summary|statement|"
    rf"explanation|conclusion|word|phrase|sentence|one|alternative|match|definition|inference|interpretation|item)"
    rf"[ \t]+{_BE}[ \t]*:?[ \t]*)",
    "correct_option_en": rf"{_WORD_START}(?i:(?:correct|right|best)[ \t]+(?:answer|option|choice|statement)s?"
    rf"{_SPACE}[:=]{_SPACE})",
}
BARE_HEADS = {
    "answer_bare": rf"{_ANSWER_ZH}{_SPACE}|{_WORD_START}(?i:answer)[ \t]+",
    "therefore_bare": rf"(?:因此|所以|故|综上所述|综上|∴)[,、]?{_SPACE}|"
    rf"{_WORD_START}(?i:(?:therefore|thus|so|hence)[,:]?[ \t]+)",
}
"""Heads after which nothing but the end of the sentence tells that the letters are the answer."""

MARKER = re.compile(
    r"(?:【[^】\n]{0,4}(?:答案|解答|(?i:answer))[^】\n]{0,3}】|\[[^\]\n]{0,4}答案\]|\([^)\n]{0,4}答案\)"
    r"|(?<![一-龥])答案】|\[(?i:final |correct )?(?i:answer)\])\s*[:=]?\s*"
)
MARKED_END = re.compile(r"<eoa>|</?answer|【|\n[ \t]*\n(?!\s*[A-H]\b)")

_GLOSS = r"(?:\([^()\n]{1,80}\)|[\"“][^\"”\n]{1,80}[\"”])?"
_IS_EN = r"(?:is|are|seems|must be|would be|should be|seems to be)[ \t]+"
_ADVERB_EN = r"(?:therefore |thus |clearly |definitely |indeed |likely |probably |also |both |all )*"
ANSWER_CLAIMS = {
    "is_answer_zh": rf"{_SPACE}(?:都|均|才|就|显然|也|便)*(?:应该|应当|应)?(?:是|为)?"
    r"(?:唯一|本题|该题|此题|最终|最后)?的?(?:(?:正确|最佳|最优|最合适|最恰当|标准|合适|对)的?(?:答案|选项|选择)|(?<=[是为题])的?答案)",
    "is_answer_en": rf"{_SPACE}{_GLOSS}{_SPACE},?[ \t]+{_IS_EN}{_ADVERB_EN}(?:the |our |my )(?:only |single |most )?"
    rf"(?:correct|right|final|best|appropriate|accurate|suitable|likely)?{_SPACE}(?:answer|option|choice)s?"
    r"(?![ \t]+for\b)",
}
TRUTH_CLAIMS = {
    "is_right_zh": rf"{_SPACE}(?:[两二三四](?:项|者|个选项))?{_SPACE}:?{_SPACE}"
    r"(?:都|均|才|就|显然|也|完全|更|最|说法|表述|描述|内容|的)*(?:是|为|更|最)*"
    r"(?:正确|对的|符合|恰当|合适|合理|准确|佳|成立|当选|对(?![一-龥A-Za-z]))|[ \t]*[√✓✔✅]",
    "is_right_en": rf"{_SPACE}{_GLOSS}[ \t]+{_IS_EN}{_ADVERB_EN}(?:the most |most |the )?"
    r"(?:correct|right|true|accurate|appropriate|valid|best)",
}
RESTATED = re.compile(r"(?:的(?:一项|选项|一组|说法)?|(?:一项|选项|组))[ \t]*(?:应该|应|就)?(?:是|为)[ \t]*:?[ \t]*")
"""The end of a question said again: `不符合原文意思的一项是`."""
FIRST_LETTER = re.compile(
    r"(?<![A-Za-z0-9_])[(\[\"'“]{0,3}(?:(?:选项|(?i:options?|choices?|statements?))[ \t]*[(\[\"'“]{0,3})?"
    r"[A-H](?![a-z0-9_])"
)
BEFORE_CLAIM = re.compile(
    r"(?:^|[^一-龥A-Za-z \t]|所以|因此|故|只有|则|但|而|且|即|其中|说明|可知|得|知|认为|觉得|综上|综上所述|仅|只|显然"
    r"|此时|中|出|论|和|与|及|正确|错误|对|错|(?<![A-Za-z])(?i:so|therefore|thus|hence|that|and|but|only|because|since"
    r"|while|whereas|think|believe|conclude|then|clearly|actually|both|however|although|though|conclusion|say))[ \t]*$"
)
"""What may stand right before letters that do not say option; after other words they name a thing (`流向B`)."""
CONCLUDING = re.compile(
    r"(?:综上所述|综上|总之|总的来说|综合来看|综合以上|(?i:in conclusion|overall|in summary|to sum up))[^。.\n]{0,12}$"
)
DOUBTED = re.compile(r"[ \t]*(?:吗|\?|与否|的可能|的概率)")
JUDGED = re.compile(
    r"[ \t]*(?:正确|错|不|对|[√✓✔✅✗✘✖❌×]|true|false|correct|incorrect|wrong|right|this)", re.IGNORECASE
)

_SUPPOSED = (
    r"(?:不是|并非|而非|排除|不(?:应|能|可能|会|可以)?(?:是|选))[ \t]*$"
    r"|(?:同学|学生|有人|考生|很多人|不少人|他们|她们|他|她)[^。,;\n]{0,8}$"
    r"|(?:[甲乙丙丁戊]|小[明红刚华丽强亮芳])(?:认为|觉得|说|会|则|却|想|也)?(?:应该|应)?[ \t]*$"
    r"|(?:如果|若|假如|假设|倘若|要是|即使|虽然|就算|是否|为什么|为何|怎么|何时|哪些)[^。,\n]{0,8}$"
    r"|(?i:\b(?:if|whether|suppose|assume|assuming|unless|why|not|never|cannot|students|people|they|he|she|some|many)"
    r"[ \t]+(?:(?:the|an?|that|said|says|think|chose|choose|also|of the|had|then|it is|you)[ \t]+)*"
    r"(?:(?:correct|right|best)[ \t]+)?)$"
)
VOID_BEFORE_CLAIM = re.compile(_SUPPOSED)
VOID_BEFORE_HEAD = re.compile(
    r"(?:不|别|勿|未|没|误|错|易|非|无|难以|挑|筛|评|竞|入|候|备|(?<!应)当|文|预|多|先|所|海|大|普|推|供)[ \t]*$"
    r"|(?:不|没有)(?:应该|应|可|可能|可以|要|会|能|用|被|再|得|该)[ \t]*$|(?:错误|不正确|不对|非正确|干扰)的?[ \t]*$"
    r"|(?i:\b(?:wrong|incorrect|false|worst|another|first|other|each|every|one|could|might|possible|remaining|plausible|"
    rf"candidate|potential)[ \t]+)$|{_SUPPOSED}"
)
"""What stands before a declaration and makes it none: a denial, a supposition, a word such as `筛选`."""

_REFUSAL = _any(
    r"无法(?:确定|回答|判断|选择|作答|给出|得出|得知|确认|提供|解答|做出)",
    r"不能(?:确定|回答|判断|选择|作答|给出)|难以(?:确定|判断)|不知道|不清楚|不确定",
    r"没有(?:正确|合适|符合|一个|任何)?[^。\n]{0,6}(?:答案|选项)|无(?:正确|合适|符合)?[^。\n]{0,4}(?:答案|选项|解)",
    r"(?:以上|上述)皆(?:非|不|错)|(?:都|均)不(?:正确|对|符合)|不在选项(?:中|里)",
    r"(?:以上|上述|所有|四个|全部)[^。\n]{0,6}(?:都|均|全)?(?:不对|不正确|不是|不符|错|错误)",
    r"题目?[^。\n]{0,6}(?:有误|错误|不完整|不全)|信息不足|条件不足|抱歉|对不起",
    r"作为(?:一个|一名)?(?:人工智能|AI|语言模型)",
    r"(?i:\b(?:can(?:not|'t| not)|could not|couldn't|unable to|not able to|impossible to|won't|refuse to|"
    r"not possible to)\b[^.\n]{0,20}(?:answer|determine|decide|choose|tell|select|provide|help|assist|say|know|pick))",
    r"(?i:\b(?:(?:don't|do not) know|not (?:sure|certain|enough information)|none of (?:the|these|them)|no correct)\b)",
    r"(?i:\b(?:as an ai|insufficient (?:information|data)|I'm sorry|sorry, (?:but )?I|no idea|none is correct)\b)",
    r"(?i:\b(?:undetermined|not among the (?:options|choices))\b)",
)
_NONE = r"(?:无|没有|空|(?i:none|n/a|unknown))"
REFUSED = re.compile(_REFUSAL)
REFUSED_HERE = re.compile(rf"[^。.\n,;]{{0,16}}?{_REFUSAL}|{_NONE}[ \t]*(?=$|[。.,\n<])")
MARKED_NONE = re.compile(rf"\s*{_NONE}\s*[。.]?\s*$")
RETRACTED = re.compile(
    r"(?:^|[。.!,;\n][ \t]*)(?:等等|等一下|不对(?=[,。.!])|不,|不是,|更正|纠正|抱歉,我|我(?:说|算|弄)?错了|说错了|"
    r"重新|让我再"
    r"|(?i:wait\b|no,|actually,|correction\b|I made an?\b|my mistake|let me (?:re|correct)|on second thought))"
)
