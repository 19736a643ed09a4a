"""Words and signs of a text: what two texts must share to be the same but for how they are set.

Words lose their letter case; white space, quotation marks, the punctuation of prose and the marks
of Markdown and TeX are left out. A sign that changes the meaning of a formula, of code or of a
message is a token of its own: operators, currency, emoji, brackets in a formula, points within
numbers. Accents stay with their word.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

_OPERATORS = "+*/=<>^%&|$~\\"
# by Unicode, the first are punctuation and the second are symbols
_OTHER_OPERATORS, _NO_SIGNS = "‰‱′″‴％＆＃＠＊／＼", "`´¨©®™"
# what is a sign in some places only; `.` in what comes before is the character itself
_IN_PLACES = {
    "-": r"(?=\s*\d|[=>(])|(?<!\w-)(?=-?\w)|(?<=\b\w-)(?=\w\b)"  # -5, ->, -r, --force, x-y
    r"|(?:(?<=\b\w -)|(?<=[\d)] -))(?= [b-hj-z]\b)"  # x - y, 12 - x
    r"|(?<=\w-)(?=-(?![\w\s-]))|(?<=\w--)(?![\w\s-])",  # i--;
    "!": r"(?==)|(?<!\w!)(?=[\w(])|(?<=\d!)(?=\s*[-+*/=)^?])",  # !=, !x, 5! + 1
    ".,": r"(?<=\d.)(?=\d)|(?<=\.)(?<![\w.].)(?=\d)",  # 3.5, .5
    ":": r"(?<=\d.)(?=\d)|(?==)",  # 3:5, :=
    "([{": r"(?<=\w.)|(?<=[+*/=<>^%-].)|(?<=[+*/=<>^%-] .)|(?=[(\[{)\]}])"  # f(x), 2 * (, []
    r"|(?=[^()\[\]{}\n]*?(?:[+*=<>^]|\d ?[/%-] ?\d))"  # (2 + 3)
    r"|(?=-?\d+(?:\.\d+)?, ?-?\d)",  # [0, 1)
    ")]}": r"(?=\s*[+*/=<>^%(\[{-])|(?<=[(\[{)\]}].)|(?<=,\d.)|(?<=, \d.)",
    "'": r"(?=\()",  # f'(x)
    "#": r"(?<=\w.)|(?=\w)",  # C#
    "@": r"(?=\w)",
    ":;": r"(?<![\w:;].)-?[()\[\]dpo/|](?!\w)",  # :-)
}
# how Markdown and TeX set a text: bullets, emphasis, formulas, braces around an exponent
_SETTINGS = re.compile(
    r"(?m)^[ \t]*[*+•●■▪◦►▶-] +|\\[()\[\]]"
    r"|(?<![^\s(\[\"'])(?P<mark>\*{1,3}|\$\$?)(?=[^\s*$])"
    r"(?P<set>[^*$\n]*[^\s*$])(?P=mark)(?![\w*$])"
    r"|(?<=[\^_])\{(?P<index>\w+)\}"
)
_SETS = re.compile(r"[*+$^_•●■▪◦►▶\\]")
_PLACED = "".join(sorted({*"".join(_IN_PLACES)}))
# punctuation between a letter and a blank is that of prose: tested first, since most of it is
_SOMETIMES = r"[{}](?!(?<=[a-z][.,:;!'])(?:\s|$))(?:{})".format(
    re.escape(_PLACED),
    "|".join(f"(?<=[{re.escape(signs)}])(?:{where})" for signs, where in _IN_PLACES.items()),
)
_SIGN_IN_PLACE = re.compile(_SOMETIMES)
_ASCII_TOKEN = re.compile(rf"\w+|[{re.escape(_OPERATORS)}]|{_SOMETIMES}", re.ASCII)
# plain text is cut five times as fast by `split`, into the same words
_SPACED = bytes(n if chr(n).isalnum() or n == ord("_") else ord(" ") for n in range(256))
_PROSE = bytes(n for n in range(128) if chr(n) not in _OPERATORS + _PLACED)
_PUNCTUATION = bytes(n for n in range(128) if chr(n) not in _OPERATORS)
_WORD = re.compile(r"\w+")
_NEGATIONS = frozenset({"not", "no", "never", "without"})
_DASHES = str.maketrans("−–", "--")  # minus and en dash: a hyphen, as far as meaning goes


def words_of(text: str) -> list[str]:
    """Return the words and signs of a text."""
    lower = text.lower()
    if _SETS.search(lower):
        lower = _SETTINGS.sub(_content, lower)
    if not lower.isascii():
        return _token().findall(unicodedata.normalize("NFC", lower).translate(_DASHES))
    # ASCII: without letters and punctuation of prose, what is left may be signs
    plain = lower.encode()
    signs = plain.translate(None, _PROSE)
    if signs and (signs.translate(None, _PUNCTUATION) or _SIGN_IN_PLACE.search(lower)):
        return _ASCII_TOKEN.findall(lower)
    return plain.translate(_SPACED).decode().split()


def _content(setting: re.Match[str]) -> str:
    return setting["set"] or setting["index"] or " "


def without_signs(words: Iterable[str]) -> str:
    """Return the words of a text without signs and negations, a space between them."""
    return " ".join(
        word for word in words if (word[0].isalnum() or word[0] == "_") and word not in _NEGATIONS
    )


def differ_by_signs(words: list[str], others: list[str]) -> bool:
    """Say whether texts differ by signs or negations alone: these are what they are about then."""
    return words != others and without_signs(words) == without_signs(others)


def differ_by_case(text: str, other: str) -> bool:
    """Say whether texts of the same words differ by capitals within one, as mW and MW do."""
    pairs = zip(_WORD.findall(text), _WORD.findall(other), strict=False)
    return any(
        word != twin and word.lower() == twin.lower() and not (_is_plain(word) and _is_plain(twin))
        for word, twin in pairs
    )


def _is_plain(word: str) -> bool:
    return word.islower() or word.isupper() or word.istitle()


@cache
def _token() -> re.Pattern[str]:
    """Return the pattern of a token: a Chinese or Japanese sign, a word, or a sign."""
    cjk = r"\u3040-\u30ff\u3400-\u9fff"
    kinds: dict[str, list[int]] = {"M": [], "S": []}
    for code in range(0x80, 0x1FC00):
        kinds.setdefault(unicodedata.category(chr(code))[0], []).append(code)
    marks = _ranges(code for code in kinds["M"] if not 0xFE00 <= code <= 0xFE0F)  # how it is drawn
    signs = _ranges(code for code in kinds["S"] if chr(code) not in _NO_SIGNS)
    return re.compile(
        rf"[{cjk}][{marks}]*|(?:[^\W{cjk}]+[{marks}]*)+|{_SOMETIMES}"
        rf"|[{re.escape(_OPERATORS)}{_OTHER_OPERATORS}{signs}]|[{marks}]"
    )


def _ranges(codes: Iterable[int]) -> str:
    """Return code points as the inside of a character class."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
