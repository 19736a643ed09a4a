import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohobate.data.contamination import Contamination, bigrams_of
from cohobate.data.text_comparison import words_of

WORDS = [f"w{n}" for n in range(3000)]
IDENTICAL = "identical to an evaluation prompt"
OVERLAP = "8 words in a row of an evaluation prompt"
NEAR = "near-duplicate of an evaluation prompt"


def templated(text: str) -> str:
    return f"Read this definition with great care, then name its category: {text}\nCategory:"


@pytest.fixture
def prompts() -> list[str]:
    drawn = random.Random(0)
    return [" ".join(drawn.choices(WORDS, k=14)) for _ in range(60)]


def test_an_evaluation_prompt_is_found_whatever_its_case_and_punctuation(prompts):
    index = Contamination(prompts)
    assert index.reason(prompts[7].upper().replace(" ", ", ")) == IDENTICAL


def test_a_run_of_eight_words_is_found_and_of_seven_is_not(prompts):
    index, words = Contamination(prompts), prompts[3].split()
    assert index.reason(" ".join(["new", *words[4:12], "text"])) == OVERLAP
    assert index.reason(" ".join(["new", *words[4:11], "text"])) is None


def test_a_near_duplicate_is_found_where_no_long_run_is_shared():
    words = WORDS[:13]
    index = Contamination([" ".join(words), "something else entirely"])
    changed = [*words[:6], "other", *words[7:]]  # two runs of six words are left
    assert index.reason(" ".join(changed)) == NEAR
    assert index.reason(" ".join([*words[:3], "x", *words[4:6], "other", *words[7:]])) is None


def test_the_template_is_no_overlap(prompts):
    index = Contamination([templated(prompt) for prompt in prompts])
    assert index.reason(templated("an entirely new text")) is None
    assert index.reason(templated(prompts[0])) == IDENTICAL
    seven = " ".join(prompts[0].split()[:7])  # with the template's words, this would be ten
    assert index.reason(templated(f"{seven} and a different end")) is None


PHRASE = "the second best known member of the same large family as"


@pytest.fixture
def phrased(prompts) -> Contamination:
    drawn = random.Random(2)
    return Contamination(
        [f"{PHRASE} {' '.join(drawn.choices(WORDS, k=2))}" for _ in range(10)] + prompts
    )


def test_a_phrase_of_many_prompts_is_no_sign_by_itself(phrased):
    assert phrased.reason(f"{PHRASE} nothing that was seen") is None


def test_nor_is_the_phrase_with_a_word_of_one_prompt(prompts):
    questions = [f"{PHRASE} {n} and {n * n}" for n in range(10)]
    index = Contamination([*questions, *prompts])
    assert index.reason(f"{PHRASE} 7 and 3") is None  # nine words in a row of a question
    assert index.reason(f"{PHRASE} 7 and 49") == IDENTICAL
    assert index.reason(f"so tell me {PHRASE} 7 and 49 please") == OVERLAP


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("Work out 72 × 6", "Work out 72 ÷ 6"),
        ("3 + 4 = ?", "3 * 4 = ?"),
        ("The parcel came 😀", "The parcel came 😡"),
        (
            "Which of the animals below lives in the sea?",
            "Which of the animals below lives not in the sea?",
        ),
    ],
)
@pytest.mark.parametrize(
    "before", ["", "Read what follows with care before you say what it gives you. "]
)
def test_prompts_that_differ_by_a_sign_are_two(prompt, other, before):
    index = Contamination([before + prompt, "another prompt of quite another kind"])
    assert index.reason(before + other) is None
    assert index.reason(before + prompt) == index.reason((before + prompt).upper()) == IDENTICAL


def test_a_prompt_of_other_signs_is_compared_with_the_rest(prompts):
    index = Contamination([f"{prompts[0]} + 1", f"{prompts[0]} - 1", *prompts[1:]])
    assert index.reason(f"{prompts[0]} / 1") is None
    assert index.reason(f"{prompts[0]} / 1 {prompts[1]}") == OVERLAP


def test_chinese_is_read_by_the_sign():
    index = Contamination(["中国最长的河流是哪一条河"])
    assert index.reason("请问中国最长的河流是哪一条呢") == OVERLAP


def test_similarity_is_the_exact_jaccard_of_bigrams(prompts):
    """The inverted index finds what comparing with every prompt finds."""
    drawn = random.Random(1)
    index = Contamination(prompts, words=100)  # no run is that long
    for _ in range(300):
        words = list(drawn.choice(prompts).split())
        for _ in range(drawn.randrange(6)):
            words[drawn.randrange(len(words))] = drawn.choice(WORDS)
        own = bigrams_of(words)
        best = max(
            len(own & other) / len(own | other)
            for other in (bigrams_of(words_of(prompt)) for prompt in prompts)
        )
        reason = index.reason(" ".join(words))
        assert (reason in (NEAR, IDENTICAL)) == (best >= 0.7)


@given(st.lists(st.text(max_size=40), max_size=30), st.text(max_size=60))
def test_any_text_can_be_asked(prompts, text):
    index = Contamination(prompts)
    index.reason(text)
    assert all(index.reason(prompt) == IDENTICAL for prompt in prompts)
