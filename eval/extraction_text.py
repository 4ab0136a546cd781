r"""Puts a response into plain form before an answer is looked for: widths, Markdown, HTML, LaTeX and thoughts.

Full-width forms become ASCII, but other compatibility characters stay (NFKC would turn `℃` into a letter C). What
encloses an answer (`\boxed{…}`, `<answer>…</answer>`) becomes the one marker `【答案】…<eoa>`.
"""

import re
import unicodedata

MARKER = "【答案】"
END = "<eoa>"

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CIRCLED = {first + offset: 65 + offset for first in (0x24B6, 0x1F130, 0x1F150, 0x1F170) for offset in range(26)}
_PARENTHESIZED = {0x249C + offset: f"({chr(97 + offset)})" for offset in range(26)}
_INVISIBLE = dict.fromkeys((8203, 8204, 8205, 8288, 65038, 65039, 65279, 173))
_SPACES = dict.fromkeys((160, 8194, 8195, 8201, 8239, 12288), " ")
# The traditional forms of the characters that the vocabulary of answers is written with.
_TRADITIONAL = str.maketrans(
    "選擇項應該為確當題錯誤對與無沒說這標準綜覺認參終結論個兩點細語請問顯這則僅於據條資訊斷難進確適",
    "选择项应该为确当题错误对与无没说这标准综觉认参终结论个两点细语请问显这则仅于据条资讯断难进确适",
)
_CHARACTERS = {
    **_TRADITIONAL,
    **_FULL_WIDTH,
    **_CIRCLED,
    **_PARENTHESIZED,
    **_INVISIBLE,
    **_SPACES,
    0xFF61: "。",
    0xFF64: "、",
}

_MATH_LETTER = re.compile("[\U0001d400-\U0001d7ff]")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THOUGHT_START = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_STRUCK = re.compile(r"~~[^~\n]*~~|<(?:del|s|strike)>.*?</(?:del|s|strike)>", re.IGNORECASE)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|rm|sf|it|tt)?|math(?:rm|bf|sf|it|tt|bb)?|mbox|operatorname|bf|rm)\s*\{([^{}]*)\}"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER_TAG = re.compile(r"<(answer|final_answer|答案)>(.*?)(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right|displaystyle|bf|rm)\b")
_LATEX_FENCE = re.compile(r"\\[()\[\]]|\$\$")
_LATEX_LETTERS = re.compile(r"\$[ \t]*(\(?[A-Ha-h]\)?(?:[ \t]*[,、][ \t]*[A-Ha-h])*|[A-H]{1,8})[ \t]*\$")
_LINE_TAG = re.compile(r"</?(?:br|p|div|li|tr|h[1-6])\b[^>]*>", re.IGNORECASE)
_INLINE_TAG = re.compile(r"</?(?:b|strong|i|em|u|span|font|mark|code|pre|ul|ol|center|sub|sup)\b[^>]*>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"</s>|<\|[^|<>\n]{1,30}\|>|<eo[a-z]>|<end_of_turn>")
_EMPHASIS = re.compile(r"\*{2,}|_{2,}|`+|(?<![\w*])\*(?=[^\s*][^*\n]{0,80}\*(?![\w*]))|(?<=\S)\*(?![\w*])")


def without_thought(response: str) -> str | None:
    """Return the response after its `<think>` block; `None` where the thought never ends, so nothing was said yet."""
    text = _THOUGHT.sub("", response)
    ends = list(_THOUGHT_END.finditer(text))
    if ends:  # the opening tag can be part of the prompt
        text = text[ends[-1].end() :]
    return None if _THOUGHT_START.search(text) else text


def ascii_forms(text: str) -> str:
    """Return the text with full-width, circled and mathematical characters as ASCII, and no invisible ones."""
    text = text.replace("\r\n", "\n").translate(_CHARACTERS)
    return _MATH_LETTER.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def without_markup(text: str) -> str:
    """Return text in ASCII forms without emphasis, HTML and LaTeX; struck-out words go with their content.

    Mathematics stays between `$`, except option letters, which stand free then.
    """
    text = _STRUCK.sub("", text).replace("{,}", ",")
    for _ in range(2):  # \mathbf{\text{A}}
        text = _WRAPPED.sub(r"\1", text)
    text = _BOXED.sub(lambda found: f" {MARKER}{found[1]}{END} ", text)
    text = _ANSWER_TAG.sub(lambda found: f" {MARKER}{found[2]}{END} ", text)
    text = _LATEX_FENCE.sub("$", _LATEX_SPACE.sub(" ", text.replace("\\$", "$")))
    text = _LATEX_LETTERS.sub(r"\1", text)
    text = _SPECIAL_TOKEN.sub(END, _INLINE_TAG.sub("", _LINE_TAG.sub("\n", text)))
    return _EMPHASIS.sub("", text)
