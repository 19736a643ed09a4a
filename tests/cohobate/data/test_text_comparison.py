"""Words and signs: what makes two texts two, and what does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohobate.data.text_comparison import (
    _ASCII_TOKEN,
    _SETTINGS,
    _content,
    _token,
    differ_by_case,
    differ_by_signs,
    words_of,
)

MEANINGS = """
72 × 6      72 ÷ 6          a && b      a || b          a & b       a | b
a ≤ b       a ≥ b           a < b       a > b           a + b       a - b
x + y       x - y           5 - 3       5 + 3           7 - 2       7 2
€5          $5              5%          5‰              5′          5″
😀          😡              👍🏻          👍🏿              🇩🇪          🇫🇷
:)          :(              so :-) ok   so :-( ok       →           ←
café        cafe            कि          की              ج           جَ
が          か              ü           u               maße        masse
x²          x2              10⁻³        10³             α           β
a != b      a == b          !x          x               ¬a          a
∀x          ∃x              a ⊂ b       a ⊆ b           ~x          x
x++         x--             x++         x               i--;        i;
a -> b      a > b           => x        >= x            x := 3      x = 3
--force     force           rm -r x     rm r x          C#          C
C++         C               5! + 1      5 + 1           R&D         R D
3.5         35              3.5         3,5             3:5         3.5
.5          5               1.5         .15             -5          5
(2+3)*4     2+(3*4)         f(x)        f[x]            f'(x)       f(x)
{}          []              [0,1)       (0,1)           a[i]        a(i)
[0,1)       [0,1]           (2+3*4)     (2+3)*4         f(x)+1      f(x+1)
*args       **args          x**2        x*2             2*3*4       2*34
""".strip()
PAIRS = [
    tuple(cell.strip() for cell in cells[n : n + 2])
    for line in MEANINGS.splitlines()
    for cells in [[cell for cell in line.split("  ") if cell.strip()]]
    for n in (0, 2, 4)
    if cells[n : n + 2]
]


@pytest.mark.parametrize(("text", "other"), PAIRS)
def test_a_sign_makes_another_text(text, other):
    assert words_of(text) != words_of(other)
    assert words_of(f"Say what {text} means.") != words_of(f"Say what {other} means.")


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Hello, world!", "hello   world"),
        ('It\'s "x" here.', "it’s “x” here"),
        ("« oui »", "'oui'"),
        ("¿Qué?", "qué"),
        ("`x` and ´y´", "x and y"),
        ("What is it?", "what is it"),
        ("The end...", "the end…"),
        ("one; two: three", "one, two, three"),
        ("well-known", "well known"),
        ("word — word", "word -- word"),
        ("(a small rodent)", "a small rodent"),
        ("e.g. this", "e g this"),
        ("cafe\u0301", "caf\u00e9"),
        ("5 − 3", "5 - 3"),
        ("❤️", "❤"),
        ("zero\u200bwidth", "zero width"),
        ("「はい」。", "はい"),
        ("**Note:** do *this* now", "Note: do this now"),
        ("* one\n* two", "- one\n- two"),
        ("• one\n● two", "one\ntwo"),
        ("# Title\n`code`", "Title code"),
        ("Solve $x+1=2$.", "Solve x+1=2"),
        ("Solve \\(x^{2}=2\\)", "Solve x^2=2"),
        ("water (100 C)?", "water, 100 C?"),
        ("Count to 5!", "Count to 5."),
        ("in 1990 - the year", "in 1990, the year"),
        ("1) one 2) two", "1. one 2. two"),
        ("Lego® bricks", "Lego bricks"),
    ],
)
def test_how_a_text_is_set_makes_no_other(text, other):
    assert words_of(text) == words_of(other)


def test_texts_that_differ_by_signs_alone():
    def differ(text: str, other: str) -> bool:
        return differ_by_signs(words_of(text), words_of(other))

    assert differ("72 × 6", "72 ÷ 6") and differ("😀", "😡") and differ("lives", "lives not")
    assert not differ("72 × 6", "72 × 6") and not differ("72 × 6", "73 ÷ 6")


@pytest.mark.parametrize(
    ("text", "other", "differ"),
    [
        ("5 mW", "5 MW", True),
        ("call userName", "call username", True),
        ("a pH of 7", "A PH OF 7", True),
        ("the Capital of France", "The capital of FRANCE", False),
        ("the same", "the same", False),
    ],
)
def test_capitals_within_a_word(text, other, differ):
    assert differ_by_case(text, other) == differ_by_case(other, text) == differ


@settings(max_examples=500)
@given(st.text(alphabet="aB3_ -+*/=<>^%.,;:!()[]{}'#@&|$~\\\n\té猫ß−😀", max_size=30))
def test_plain_text_is_cut_into_the_same_words_as_any(text):
    lower = _SETTINGS.sub(_content, text.lower())
    if lower.isascii():
        assert words_of(text) == _token().findall(lower) == _ASCII_TOKEN.findall(lower)
    assert words_of(text) == words_of(text.lower())
