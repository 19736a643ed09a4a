"""Compare the new student (challenger) with the one in use (champion), on the dev rows.

In:  data/collect/dev.jsonl, models/train/<student>, and the champion's checkpoint: before the
     first promotion that is models/init_student, the untrained student
Out: reports/challenge.json, which `dvc metrics show` shows; and, where the architectures
     differ, reports/latency.json, which nothing hashes (tasks/challenge/latency.py)

    {"promote": true, "why": "+8.2 points [+4.9, +11.6] on 500 dev rows", "seed": 2,
     "champion": 0.641, "challenger": 0.723, "gain": {"low": 0.049, "mean": 0.082, "high": 0.116},
     "by_seed": {"1": 0.721, "2": 0.725}, "growth": {"bits_per_byte": 1.05, …},
     "intervals": {"champion": {"low": 0.601, "mean": 0.641, "high": 0.680}, "challenger": {…}}}

Where the round has several sources, `tasks` has these figures of each, and `each_task` of
`evaluate.gate` must hold on the dev rows of each, against the champion.

Decoding and metric are those of `evaluate`. Test rows are not used: they must not select anything.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cohobate.data.records import DEV, TRAIN, VERDICT, Row, read_rows, write_json
from cohobate.errors import UserError
from cohobate.evaluation.answering import Answering
from cohobate.evaluation.bootstrap import ArmIntervals, Bootstrap, LikelihoodBootstrap
from cohobate.evaluation.deciding_metric import AnswerScorer, DecidingMetric
from cohobate.evaluation.footprint import footprint
from cohobate.evaluation.forgetting import Forgetting
from cohobate.evaluation.gate import Gate, ScoreComparison
from cohobate.evaluation.model_under_test import open_model
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import resolve
from cohobate.params import ValueOf
from cohobate.progress import say, track
from cohobate.scoring.metrics import LikelihoodScore, refuse_raw_text
from cohobate.scoring.verifiers import Task
from tasks.challenge.guards import Guards
from tasks.challenge.latency import Latency, timed_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTEXT = 64
"""Context length at which FLOPs are counted."""
_NO_CONDITIONS = Gate()


class ChallengeParams(Answering):
    """The champion, and the conditions of a promotion."""

    champion: str = "models/init_student"
    """Checkpoint of the student in use; `iterate_rounds` names the one it promoted last."""
    min_gain: float = Field(0.0, ge=0)
    """The lower end of the gain's interval must be above this."""
    guards: Guards = Guards()
    """Limits on size, work and forgetting."""
    latency: Latency = Latency()
    """Limit on latency, which `iterate_rounds` checks."""
    general: Forgetting = Forgetting()
    """General text, for the guard on forgetting."""


def run(
    challenge: ChallengeParams,
    task: Task,
    seeds: list[int],
    *,
    student: Annotated[str, ValueOf("evaluate.student")],
    metric: DecidingMetric,
    decoding: Annotated[Decoding, ValueOf("evaluate.decoding")],
    gate: Annotated[Gate, ValueOf("evaluate.gate")],
) -> None:
    """Run the champion and all seeds of the phase `student` on the dev rows; write the verdict.

    Raises:
        UserError: no dev row has an answer.
    """
    import numpy as np

    rows = [row for row in read_rows(DEV, Row) if row.answer is not None]
    if not rows:
        raise UserError("no dev row has an answer", where=str(DEV), fix="give collect.split.dev")
    folders = {str(seed): TRAIN / student / f"seed-{seed}" for seed in seeds}
    folders["champion"] = Path(challenge.champion)
    scores, figures, answers = {}, {}, {}
    likelihood = metric if isinstance(metric, LikelihoodScore) else None
    for name, folder in folders.items():
        model = _Model.load(challenge, folder, rows)
        if isinstance(metric, LikelihoodScore):
            scores[name] = model.loss_shares(metric)
        else:
            refuse_raw_text(rows, metric.type, "dev")
            answers[name] = model.answers(decoding, name)
        figures[name] = model.guarded_figures()
    scorer = None if isinstance(metric, LikelihoodScore) else AnswerScorer(metric, task)
    if scorer:
        scores = {
            name: np.array(scorer.scores(rows, texts, answers["champion"], name))
            for name, texts in answers.items()
        }
    # a likelihood is a figure of all rows together
    tasks = [] if likelihood else [row.task for row in rows]
    verdict = judge(challenge, scores, figures, likelihood, TaskConditions(tasks, gate))
    if scorer and (judged := scorer.record()):
        verdict["judged"] = judged
    write_json(VERDICT, verdict)
    if timed_apart(verdict):
        pair = {"champion": folders["champion"], "challenger": folders[str(verdict["seed"])]}
        # raw text has no prompt: the text stands for one
        prompts = [row.source_text if row.is_raw_text else row.full_prompt for row in rows]
        challenge.latency.compare(
            pair, prompts, VERDICT, precision=challenge.precision, threads=challenge.threads
        )
    say(f"{'promote' if verdict['promote'] else 'keep the champion'}: {verdict['why']}")


def judge(
    challenge: ChallengeParams,
    scores: Mapping[str, "NDArray[np.float64]"],
    figures: Mapping[str, Mapping[str, float]],
    likelihood: LikelihoodScore | None = None,
    conditions: "TaskConditions | None" = None,
) -> dict[str, Any]:
    """Return the verdict.

    Args:
        challenge: the conditions of a promotion.
        scores: for each row, by name: `champion`, or the seed. Where a likelihood decides, the
            row's share of the mean loss.
        figures: the guarded figures, by the same names.
        likelihood: the metric that decides, where it is one of a likelihood: lower is better.
        conditions: of the tasks, where the round has several sources.
    """
    import numpy as np

    seeds = [name for name in scores if name != "champion"]
    # The gain is that of the method, over all seeds; the best seed is the one to be promoted.
    both = {
        "challenger": np.stack([scores[name] for name in seeds]),
        "champion": scores["champion"][None],
    }
    bootstrap: ArmIntervals = Bootstrap(both, draws=10_000, seed=0)
    if likelihood:
        bootstrap = LikelihoodBootstrap(both, likelihood, draws=10_000, seed=0)
    by_seed = dict(zip(seeds, bootstrap.seed_scores("challenger").tolist(), strict=True))
    sign = -1 if likelihood else 1
    best = max(by_seed, key=lambda name: sign * by_seed[name])  # the first one of equal seeds
    gain = bootstrap.difference("challenger", "champion")
    growth = challenge.guards.growth(figures[best], figures["champion"])
    unit = f"% lower {likelihood.type}" if likelihood else "points"
    summary = f"{100 * gain.mean:+.1f} {unit} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    summary += f" on {len(scores['champion'])} dev rows"
    broken = challenge.guards.broken(growth)
    by_task, failed = (conditions or TaskConditions()).compare(both)
    broken += failed
    return {
        "promote": gain.low > challenge.min_gain and not broken,
        "why": "; ".join([summary, *broken]),
        "seed": int(best),
        "champion": round(float(bootstrap.seed_scores("champion")[0]), 6),
        "challenger": round(float(np.mean(list(by_seed.values()))), 6),
        "by_seed": {name: round(score, 6) for name, score in by_seed.items()},
        "gain": gain.rounded(),
        "intervals": {name: bootstrap.score(name).rounded() for name in both},
        "growth": growth,
        **({"tasks": by_task} if by_task else {}),
        "number_format": resolve(challenge.precision, checkpoints.accelerator()),
    }


@dataclass(frozen=True)
class TaskConditions:
    """The tasks of the dev rows, and what the gate asks of each."""

    tasks: Sequence[str | None] = ()
    """Of each row; None of a round with one source."""
    gate: Gate = _NO_CONDITIONS

    def compare(
        self, scores: Mapping[str, "NDArray[np.float64]"]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the figures of each task, and a message for each task that does not pass.

        Args:
            scores: of champion and challenger, (Z, R): Z seeds, R rows.
        """
        members: defaultdict[str, list[int]] = defaultdict(list)
        for position, task in enumerate(self.tasks):
            if task is not None:
                members[task].append(position)
        figures: dict[str, Any] = {}
        compared: dict[str, ScoreComparison] = {}
        for task, positions in sorted(members.items()):
            own = {name: scores_ZR[:, positions] for name, scores_ZR in scores.items()}
            bootstrap = Bootstrap(own, draws=10_000, seed=0)
            gain = bootstrap.difference("challenger", "champion")
            kept = bootstrap.ratio("challenger", "champion")
            figures[task] = {
                **{name: round(float(scores_ZR.mean()), 6) for name, scores_ZR in own.items()},
                "gain": gain.rounded(),
                "rows": len(positions),
            }
            compared[task] = ScoreComparison(gain.low, kept.mean if kept else None)
        passed = self.gate.by_task(compared)
        failed = [name for name, is_passed in passed.items() if not is_passed]
        return figures, [f"the task {name} does not pass the gate" for name in failed]


@dataclass(frozen=True)
class _Model:
    """A model in memory, and the dev rows as it reads them."""

    params: ChallengeParams
    folder: Path
    tested: ModelUnderTest
    rows: list[Row]

    @classmethod
    def load(cls, params: ChallengeParams, folder: Path, rows: list[Row]) -> "_Model":
        """Load a checkpoint."""
        tested = open_model(folder, params.precision, params.backend)
        return cls(params, folder, tested, tested.prefixed(rows))

    def answers(self, decoding: Decoding, name: str) -> list[str]:
        """Return the model's answer to each row; `name` is the model's."""
        rows, params = self.rows, self.params
        prompts = [row.full_prompt for row in rows]
        tested = self.tested.with_documents(row.full_answer for row in rows)
        answered = tested.answers(prompts, decoding, params.batching, threads=params.threads)
        # answers come batch by batch, rows of like length first
        texts = [""] * len(rows)
        tracked = track(answered, total=len(rows), label=f"{name} on dev rows", in_batches=True)
        for position, answer in tracked:
            texts[position] = answer.full_text
        self.tested.close()
        return texts

    def loss_shares(self, metric: LikelihoodScore) -> "NDArray[np.float64]":
        """Return each row's share of the mean loss on the right answers."""
        from cohobate.evaluation.text_losses import TextLosses
        from cohobate.generation.likelihood import Likelihood

        params = self.params
        tested = self.tested
        likelihood = Likelihood(tested.model, tested.tokenizer, params.batching, params.threads)
        return TextLosses.of(likelihood, self.rows, metric).shares_R

    def guarded_figures(self) -> dict[str, float]:
        """Return the figures that `challenge.guards` limits, as far as the model has them."""
        from cohobate.models.layers import blocks_of

        model = self.tested.model
        size = footprint(model, self.folder, _CONTEXT)
        return {
            "parameters": float(size.parameters),
            "flops_per_token": float(size.flops_per_token),
            "blocks": float(len(blocks_of(model))),
            **self._general_loss(),
        }

    def _general_loss(self) -> dict[str, float]:
        """Return the loss on general text, by which forgetting is limited; none of a classifier."""
        from cohobate.evaluation.answer_logprobs import AnswerLogprobs

        if not self.tested.scores_tokens:
            return {}
        threads, general = self.params.threads, self.params.general
        logprobs = AnswerLogprobs(self.tested.model, self.tested.tokenizer, threads=threads)
        return {"bits_per_byte": general.measure(logprobs, general.passages())["bits_per_byte"]}
