"""Which of several answers to a prompt is better: a score for each, the higher the better.

Where the task's verifier knows the right answer it comes first: a judge is then not asked, so that
nothing that an answer says can change the verdict.

To add one: a class with `open`, and its name in `Ranking` at the bottom.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cohobate.data.records import Message
from cohobate.models.number_formats import Precision
from cohobate.params import Section
from cohobate.scoring.judge import Comparison, Judge, Outcome, count_outcomes
from cohobate.scoring.verifiers import Task

Origin = Literal["ground_truth", "teacher", "student"]


class Candidate(NamedTuple):
    """One of the answers to a prompt."""

    text: str
    origin: Origin


class Candidates(NamedTuple):
    """The answers to one prompt."""

    id: str
    prompt: str | tuple[Message, ...]
    prefix: str | None
    group: str
    answers: list[Candidate]


Scores = list[float] | None
"""A score for each answer; None where nothing can be said."""
ScoreAnswers = Callable[[Sequence[Candidates]], list[Scores]]


@dataclass
class RankingContext:
    """What a ranking can know beside the answers, and what it tells of its work."""

    task: Task
    references: Mapping[str, str]
    """Right answers, by id."""
    judge: Callable[[], Path]
    """Gives the folder of the judge or reward model: what `preferences.judge` names."""
    told: dict[str, int] = field(default_factory=dict)
    """Counts for the summary."""

    def verified(self, asked: Candidates) -> Scores:
        """Score by the verifier: 1 for right answers, 0 for wrong ones."""
        reference = self.references.get(asked.id)
        if reference is None:
            return None
        correct = self.task.verifier.correct
        return [float(correct(answer.text, reference)) for answer in asked.answers]

    def canonical(self, answer: Candidate) -> str:
        """Return an answer in the form in which answers are compared."""
        return self.task.verifier.canonical(answer.text) or answer.text


class VerifierRanking(Section):
    """Right before wrong, by the task's verifier; prompts without a known answer are left out."""

    type: Literal["verifier"]

    def open(self, known: RankingContext) -> ScoreAnswers:
        """Return what asks the verifier."""
        return lambda window: [known.verified(asked) for asked in window]


class VoteRanking(Section):
    """The answer that most samples give before the rarest (self-consistency)."""

    type: Literal["votes"]

    def open(self, known: RankingContext) -> ScoreAnswers:
        """Return what counts the samples."""

        def shares(asked: Candidates) -> list[float]:
            forms = [known.canonical(answer) for answer in asked.answers]
            votes = Counter(forms)
            return [votes[form] / len(forms) for form in forms]

        return lambda window: [shares(asked) for asked in window]


class OriginRanking(Section):
    """Ground truth before teacher before student, wherever their answers differ."""

    type: Literal["trusted"]

    def open(self, known: RankingContext) -> ScoreAnswers:
        """Return what goes by the origin."""
        trust = {"ground_truth": 1.0, "teacher": 1.0, "student": 0.0}

        def scores(asked: Candidates) -> list[float]:
            right = {known.canonical(a) for a in asked.answers if trust[a.origin]}
            return [float(known.canonical(answer) in right) for answer in asked.answers]

        return lambda window: [scores(asked) for asked in window]


class JudgeRanking(Section):
    """The share of comparisons with the other answers that an answer wins, by a judge.

    Every two answers are shown in both orders; a tie counts half for each, and so does a judge
    that contradicts itself. Without a verdict on every two answers nothing is said.
    """

    type: Literal["judge"]
    judge: Judge = Judge()

    def open(self, known: RankingContext) -> ScoreAnswers:
        """Load the judge; return what compares."""
        ask = self.judge.open(known.judge())

        def scores(window: Sequence[Candidates]) -> list[Scores]:
            verified = [known.verified(asked) for asked in window]
            contests = [
                Comparison(asked.prompt, a.text, b.text)
                for asked, decided in zip(window, verified, strict=True)
                for a, b in combinations(asked.answers if decided is None else [], 2)
            ]
            outcomes = self.judge.compare(contests, ask)
            for name, count in count_outcomes(outcomes).items():
                known.told[f"judged {name}"] = known.told.get(f"judged {name}", 0) + count
            rest = iter(outcomes)
            return [
                _wins(len(asked.answers), rest) if decided is None else decided
                for asked, decided in zip(window, verified, strict=True)
            ]

        return scores


class RewardRanking(Section):
    """The reward of a reward model: a sequence classifier with one output."""

    type: Literal["reward"]
    precision: Precision = "auto"

    def open(self, known: RankingContext) -> ScoreAnswers:
        """Load the model; return what scores."""
        from cohobate.scoring.reward_models import RewardModel

        model = RewardModel.of(known.judge(), self.precision)

        def scores(window: Sequence[Candidates]) -> list[Scores]:
            rewards = model.scores((a.prompt, answer.text) for a in window for answer in a.answers)
            return [[next(rewards) for _ in asked.answers] for asked in window]

        return scores


def _wins(answers: int, outcomes: Iterator[Outcome]) -> Scores:
    points, silent = [0.0] * answers, False
    for first, second in combinations(range(answers), 2):
        outcome = next(outcomes)
        silent = silent or outcome == "no verdict"
        share = {"first": 1.0, "second": 0.0}.get(outcome, 0.5)
        points[first] += share
        points[second] += 1 - share
    return None if silent else [point / max(answers - 1, 1) for point in points]


Ranking = Annotated[
    VerifierRanking | VoteRanking | OriginRanking | JudgeRanking | RewardRanking,
    Field(discriminator="type"),
]
