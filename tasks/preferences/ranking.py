"""Rankings: score the answers to a prompt, the higher the better.

Where the right answer is known the task's verifier decides, and a judge is not used: the text of an
answer cannot influence it.

To add one: a class with `open`, and its name in `Ranking` at the bottom.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cohobate.data.messages import Prompt, ToolCall
from cohobate.data.reasoning import inline_cut
from cohobate.data.records import Row
from cohobate.data.tool_calls import with_calls
from cohobate.generation.requests import Answer
from cohobate.models.number_formats import Precision
from cohobate.params import Section
from cohobate.scoring.judge import Comparison, Judge, Outcome, count_outcomes
from cohobate.scoring.verifiers import Task

Origin = Literal["ground_truth", "teacher", "student"]


class Candidate(NamedTuple):
    """One of the answers to a prompt."""

    text: str
    origin: Origin
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None

    @classmethod
    def of(cls, row: Row, origin: Origin) -> "Candidate":
        """Return the answer of a row."""
        return cls(row.answer or "", origin, row.reasoning, row.tool_calls)

    @classmethod
    def generated(cls, answer: Answer) -> "Candidate":
        """Return an answer of the student; one that is cut off in its reasoning as it stands."""
        if answer.is_cut_in_reasoning:
            return cls(inline_cut(answer.reasoning or ""), "student")
        return cls(answer.text, "student", answer.reasoning, answer.tool_calls)

    @property
    def full_text(self) -> str:
        """The answer with its calls of tools as text: what answers are compared by."""
        return with_calls(self.text, self.tool_calls)


class Candidates(NamedTuple):
    """The answers to one prompt."""

    id: str
    prompt: Prompt
    prefix: str | None
    group: str
    answers: list[Candidate]
    task: str | None = None
    weight: float | None = None


Scores = list[float] | None
"""A score for each answer; None where there is no verdict."""
ScoreAnswers = Callable[[Sequence[Candidates]], list[Scores]]


@dataclass
class RankingContext:
    """What a ranking can use beside the answers, and the counts that it reports."""

    task: Task
    references: Mapping[str, str]
    """Right answers, by id."""
    judge: Callable[[], Path]
    """Returns the folder of the judge or reward model that `preferences.judge` names."""
    counts: dict[str, int] = field(default_factory=dict)
    """Counts for the summary."""

    def verified(self, candidates: Candidates) -> Scores:
        """Score by the verifier: 1 for right answers, 0 for wrong ones."""
        reference = self.references.get(candidates.id)
        if reference is None:
            return None
        correct = self.task.verifier_of(candidates.task).correct
        return [float(correct(answer.full_text, reference)) for answer in candidates.answers]

    def canonical(self, candidates: Candidates) -> list[str]:
        """Return the answers in the form in which answers are compared."""
        verifier = self.task.verifier_of(candidates.task)
        texts = [answer.full_text for answer in candidates.answers]
        return [verifier.canonical(text) or text for text in texts]


class VerifierRanking(Section):
    """Right answers before wrong ones, by the task's verifier; needs a known right answer."""

    type: Literal["verifier"]

    def open(self, context: RankingContext) -> ScoreAnswers:
        """Return a function that scores by the verifier."""
        return lambda window: [context.verified(candidates) for candidates in window]


class VoteRanking(Section):
    """Common answers before rare ones (self-consistency)."""

    type: Literal["votes"]

    def open(self, context: RankingContext) -> ScoreAnswers:
        """Return a function that scores by the share of samples."""

        def shares(candidates: Candidates) -> list[float]:
            forms = context.canonical(candidates)
            votes = Counter(forms)
            return [votes[form] / len(forms) for form in forms]

        return lambda window: [shares(candidates) for candidates in window]


class OriginRanking(Section):
    """Ground truth and teacher before student, wherever their answers differ."""

    type: Literal["trusted"]

    def open(self, context: RankingContext) -> ScoreAnswers:
        """Return a function that scores by origin."""
        trust = {"ground_truth": 1.0, "teacher": 1.0, "student": 0.0}

        def scores(candidates: Candidates) -> list[float]:
            forms = context.canonical(candidates)
            pairs = zip(candidates.answers, forms, strict=True)
            right = {form for answer, form in pairs if trust[answer.origin]}
            return [float(form in right) for form in forms]

        return lambda window: [scores(candidates) for candidates in window]


class JudgeRanking(Section):
    """The share of pairwise comparisons that an answer wins, by a judge.

    Every two answers are shown in both orders; a tie counts half for each, and so do contradicting
    verdicts. The scores are None unless there is a verdict on every two answers.
    """

    type: Literal["judge"]
    judge: Judge = Judge()

    def open(self, context: RankingContext) -> ScoreAnswers:
        """Load the judge; return a function that compares all answers."""
        generate = self.judge.open(context.judge())

        def scores(window: Sequence[Candidates]) -> list[Scores]:
            verified = [context.verified(candidates) for candidates in window]
            comparisons = [
                Comparison(candidates.prompt, a.full_text, b.full_text)
                for candidates, decided in zip(window, verified, strict=True)
                for a, b in combinations(candidates.answers if decided is None else [], 2)
            ]
            outcomes = self.judge.compare(comparisons, generate)
            for name, count in count_outcomes(outcomes).items():
                context.counts[f"judged {name}"] = context.counts.get(f"judged {name}", 0) + count
            remaining = iter(outcomes)
            return [
                _wins(len(candidates.answers), remaining) if decided is None else decided
                for candidates, decided in zip(window, verified, strict=True)
            ]

        return scores


class RewardRanking(Section):
    """The reward of a reward model: a sequence classifier with one output."""

    type: Literal["reward"]
    precision: Precision = "auto"

    def open(self, context: RankingContext) -> ScoreAnswers:
        """Load the model; return a function that scores by reward."""
        from cohobate.scoring.reward_models import RewardModel

        model = RewardModel.of(context.judge(), self.precision)

        def scores(window: Sequence[Candidates]) -> list[Scores]:
            rewards = model.scores(
                (candidates.prompt, answer.full_text)
                for candidates in window
                for answer in candidates.answers
            )
            return [[next(rewards) for _ in candidates.answers] for candidates in window]

        return scores


def _wins(answers: int, outcomes: Iterator[Outcome]) -> Scores:
    points, incomplete = [0.0] * answers, False
    for first, second in combinations(range(answers), 2):
        outcome = next(outcomes)
        incomplete = incomplete or outcome == "no verdict"
        share = {"first": 1.0, "second": 0.0}.get(outcome, 0.5)
        points[first] += share
        points[second] += 1 - share
    return None if incomplete else [point / max(answers - 1, 1) for point in points]


Ranking = Annotated[
    VerifierRanking | VoteRanking | OriginRanking | JudgeRanking | RewardRanking,
    Field(discriminator="type"),
]
