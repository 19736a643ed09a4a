"""Does a training prompt give away an evaluation prompt? One rule for `collect` and `filter`.

Two signs are looked for: a run of n words in common (n-gram overlap, as in Brown et al. 2020,
appendix C), and a near-duplicate: Jaccard similarity of the sets of word bigrams. Both are exact
(an inverted index over the evaluation prompts, no sketches). What all prompts have in common, the
template above all, is no sign of anything and is left out on both sides. A prompt that differs
from an evaluation prompt by its signs alone (72 × 6, 72 ÷ 6) is another prompt.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain, pairwise

from cohobate.data.text_comparison import without_signs, words_of

WORDS = 8
"""Length of a run of words in common that counts as overlap."""
SIMILARITY = 0.7
"""Jaccard similarity of the bigrams from which two prompts are near-duplicates."""
_TEMPLATE_SHARE, _ENOUGH = 0.95, 20
_PHRASE_SHARE, _PHRASE_COUNT = 0.005, 3
_OWN_SHARE = 0.4


class Contamination:
    """The evaluation prompts, indexed: `reason(text)` says what a text has in common with them.

    A word that occurs in 95 % of the evaluation prompts belongs to the template and is ignored. A
    pair of words that recurs in more than 0.5 % of them (and in more than three) is the language
    of the task (`a native or inhabitant of`): a run of words is a sign only if 40 % of its pairs
    are its own, or if it goes on to a whole evaluation prompt.
    """

    def __init__(
        self, prompts: Iterable[str], words: int = WORDS, similarity: float = SIMILARITY
    ) -> None:
        # `all_words` has the words of each prompt, `content` those that are not the template's
        all_words = [words_of(prompt) for prompt in prompts]
        self._words, self._similarity = words, similarity
        self._whole = {" ".join(prompt_words) for prompt_words in all_words}
        self._template = _template_words(all_words)
        content = [self._without_template(prompt_words) for prompt_words in all_words]
        self._contents = [_spaced(prompt_words) for prompt_words in content]
        often = max(_PHRASE_COUNT, _PHRASE_SHARE * len(content))
        bigrams = Counter(chain.from_iterable(map(bigrams_of, content)))
        self.phrases = {bigram for bigram, n in bigrams.items() if n > often}
        """Pairs of words that are the language of the task."""
        self._sizes: list[int] = []
        self._by_words: defaultdict[str, list[int]] = defaultdict(list)
        self._runs: defaultdict[str, list[int]] = defaultdict(list)
        self._pairs: defaultdict[str, list[int]] = defaultdict(list)
        for number, prompt_words in enumerate(all_words):
            self._by_words[without_signs(prompt_words)].append(number)
        for number, prompt_words in enumerate(content):
            # inverted indices: from a pair or a run of words to the prompts that have it
            own = bigrams_of(prompt_words) - self.phrases
            self._sizes.append(len(own))
            for bigram in own:
                self._pairs[bigram].append(number)
            for run in _ngrams(prompt_words, words):
                self._runs[run].append(number)

    def reason(self, prompt: str) -> str | None:
        """Return what `prompt` shares with an evaluation prompt, or None."""
        words = words_of(prompt)
        if " ".join(words) in self._whole:
            return "identical to an evaluation prompt"
        content = self._without_template(words)
        # prompts of the same words and other signs (72 × 6, 72 ÷ 6) are not compared
        others = frozenset(self._by_words.get(without_signs(words), ()))
        if self._overlaps(content, others):
            return f"{self._words} words in a row of an evaluation prompt"
        if self._similar(bigrams_of(content) - self.phrases, others):
            return "near-duplicate of an evaluation prompt"
        return None

    def pairs(self, text: str) -> set[str]:
        """Return the pairs of neighbouring words of `text` that are its own, not the task's."""
        return bigrams_of(self.content(text)) - self.phrases

    def content(self, text: str) -> list[str]:
        """Return the words of `text` that are not the template's."""
        return self._without_template(words_of(text))

    def _without_template(self, words: list[str]) -> list[str]:
        if not self._template:
            return words
        return [word for word in words if word not in self._template]

    def _overlaps(self, content: list[str], others: frozenset[int]) -> bool:
        """Say whether a run is shared with an evaluation prompt that is none of `others`."""
        shared = [run for run in _ngrams(content, self._words) if run in self._runs]
        if others:
            shared = [run for run in shared if not others.issuperset(self._runs[run])]
        if any(self._is_own(run) for run in shared):
            return True
        # runs of the task's language are a sign where a whole evaluation prompt is in the text
        text = _spaced(content)
        numbers = set(chain.from_iterable(self._runs[run] for run in shared))
        return any(self._contents[number] in text for number in numbers - others)

    def _is_own(self, run: str) -> bool:
        pairs = list(pairwise(run.split(" ")))
        own = sum(f"{first} {second}" not in self.phrases for first, second in pairs)
        return own >= _OWN_SHARE * len(pairs)

    def _similar(self, bigrams: set[str], others: frozenset[int]) -> bool:
        postings = [self._pairs[bigram] for bigram in bigrams if bigram in self._pairs]
        if not postings or len(postings) < self._similarity * len(bigrams):
            return False  # even a prompt with just these bigrams would not be near enough
        shared = Counter(chain.from_iterable(postings))
        return any(
            # Jaccard: n in common, over the union of both sets
            n >= self._similarity * (len(bigrams) + self._sizes[number] - n)
            for number, n in shared.items()
            if number not in others
        )


class ContaminationOfTasks(Contamination):
    """The evaluation prompts of several tasks.

    `reason` compares a text with the prompts of each task by themselves: a template is in all
    prompts of its task, and not in those of the others. Words and phrases are those of all.
    """

    def __init__(
        self, by_task: Mapping[str | None, list[str]], words: int, similarity: float
    ) -> None:
        super().__init__(chain.from_iterable(by_task.values()), words, similarity)
        self._tasks = [Contamination(prompts, words, similarity) for prompts in by_task.values()]

    def reason(self, prompt: str) -> str | None:
        """Return what `prompt` shares with an evaluation prompt of any task, or None."""
        return next((why for task in self._tasks if (why := task.reason(prompt))), None)


def index_by_task(
    prompts: Iterable[tuple[str | None, str]], words: int = WORDS, similarity: float = SIMILARITY
) -> Contamination:
    """Index evaluation prompts, each given with the name of its task."""
    by_task: defaultdict[str | None, list[str]] = defaultdict(list)
    for task, prompt in prompts:
        by_task[task].append(prompt)
    if len(by_task) > 1:
        return ContaminationOfTasks(by_task, words, similarity)
    return Contamination(chain.from_iterable(by_task.values()), words, similarity)


def _spaced(words: list[str]) -> str:
    return f" {' '.join(words)} "  # so that only whole words are found in it


def _template_words(texts: list[list[str]]) -> set[str]:
    if len(texts) < _ENOUGH:
        return set()
    return {w for w, n in _count(texts, 1).items() if n >= _TEMPLATE_SHARE * len(texts)}


def bigrams_of(words: list[str]) -> set[str]:
    """Return the pairs of neighbouring words; the first and the last word make one each."""
    # a text of n words has n + 1 pairs, so a text of one word has some
    return set(map(" ".join, zip(["", *words], [*words, ""], strict=True))) if words else set()


def _ngrams(words: list[str], n: int) -> set[str]:
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def _count(texts: list[list[str]], n: int) -> Counter[str]:
    """Count in how many texts each n-gram occurs."""
    return Counter(chain.from_iterable(_ngrams(words, n) for words in texts))
