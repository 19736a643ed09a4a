"""The growing pool of Self-Instruct: tasks that a teacher made up join it where they are novel.

Wang et al. 2023, "Self-Instruct: Aligning Language Models with Self-Generated Instructions",
sections 2.2 and 2.3: a task is kept only if its ROUGE-L similarity to every task of the pool is
below a threshold, and later tasks are made after the pattern of seeds and of tasks made before.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cohobate.errors import UserError
from cohobate.progress import say
from cohobate.scoring.metrics import Rouge

if TYPE_CHECKING:
    from cohobate.backends.settings import GenerateParams
    from cohobate.backends.templates import Template

_ROUGE_L = Rouge(type="rouge_l")


class _Task(NamedTuple):
    text: str
    length: int
    """Words."""
    words: frozenset[tuple[str, int]]
    """Each word with the number of its occurrence, so that a common part is that of multisets."""


class TaskPool:
    """Seed tasks, and the novel ones of those that a teacher made up.

    What a pool draws from, `drawn`, is that of the waves before: a request does not depend on the
    others of its wave, nor on how they are batched.
    """

    def __init__(self, seeds: Iterable[str], novelty: float) -> None:
        """Fill the pool with seeds.

        Args:
            seeds: texts of the seed tasks.
            novelty: ROUGE-L F-measure, above 0 and up to 1, that a novel task stays below.
        """
        self.novelty = novelty
        self.seen = 0
        """Tasks that were compared with the pool."""
        self.made: list[str] = []
        """The novel ones of them, in the order in which they were made."""
        self.drawn: tuple[str, ...] = ()
        """Those of the waves that are over."""
        self._tasks = {seed: _task(seed) for seed in seeds}

    @classmethod
    def of(
        cls, params: "GenerateParams", template: "Template", seeds: Iterable[str]
    ) -> "TaskPool | None":
        """Return the pool of `generate.pool`; None where it is not given.

        Raises:
            UserError: the template makes up no tasks.
        """
        if params.pool is None:
            return None
        if not any(step.new_task for step in template.steps):
            raise UserError(
                f"the template {params.template} makes up no tasks that could join a pool",
                where="params.yaml, generate.pool",
                fix="cohobate run --set generate.template=self-instruct   (or --set "
                "generate.pool=null)",
            )
        return cls(seeds, params.pool.novelty)

    def add(self, text: str) -> bool:
        """Add a task that the teacher made up, if it is novel; return whether it is."""
        self.seen += 1
        # the same text has no ROUGE-L where it has no Latin letters
        if text in self._tasks:
            return False
        task = _task(text)
        if any(self._alike(task, other) for other in self._tasks.values()):
            return False
        self._tasks[text] = task
        self.made.append(text)
        return True

    def end_wave(self, name: str) -> None:
        """Let later requests draw from what was made so far, and print how much that is."""
        self.drawn = tuple(self.made)
        say(f"{name}: {len(self.made)} of {self.seen} tasks made up so far are novel")

    def summary(self) -> dict[str, int]:
        """Return the figures of `summary.json`."""
        return {"tasks_made": self.seen, "novel_tasks": len(self.made)}

    def _alike(self, task: _Task, other: _Task) -> bool:
        # F = 2 LCS / (m + n), and a common subsequence has no more words than both have in common:
        # of 5,000 tasks all but a few are settled by this bound, without a table of m x n
        most = self.novelty * (task.length + other.length) / 2
        if min(task.length, other.length) < most or len(task.words & other.words) < most:
            return False
        return _ROUGE_L.f_measure(task.text, other.text) >= self.novelty


def _task(text: str) -> _Task:
    seen = Counter[str]()
    words = []
    for word in _tokenizer().tokenize(text):
        words.append((word, seen[word]))
        seen[word] += 1
    return _Task(text, len(words), frozenset(words))


@cache
def _tokenizer() -> Any:
    """Return what makes the words that ROUGE-L compares."""
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer()
