"""The section `evaluate` of params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from cohobate.evaluation.answering import Answering
from cohobate.evaluation.deciding_metric import is_judged
from cohobate.evaluation.forgetting import Forgetting
from cohobate.evaluation.gate import Gate
from cohobate.evaluation.judged_metrics import JudgedMetric
from cohobate.evaluation.timing import Timing
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, resolve
from cohobate.scoring.answer_figures import FigureOfAnswers
from cohobate.scoring.metrics import AnswerScore, LikelihoodScore, VerifierAccuracy
from tasks.evaluate.capabilities import Capability, GroupField
from tasks.evaluate.cost import Prices
from tasks.evaluate.fidelity import AnyFidelity, LiveFidelity
from tasks.evaluate.harness import Harness
from tasks.evaluate.memorisation import Memorisation
from tasks.evaluate.metrics import Metric, ModelMetric
from tasks.evaluate.mistakes import Mistakes
from tasks.evaluate.robustness import Robustness
from tasks.evaluate.router import Router


class EvaluateParams(Answering):
    """Which models are compared, on what, and what counts as a pass."""

    teacher: str = "main"
    """Key of the teacher in the section `teachers`."""
    teacher_reads: Literal["prompt", "teacher_prompt"] = "prompt"
    """What the teacher reads of test rows with a prompt of its own. `teacher_prompt`: that one, so
    that its score and distributions are those it teaches with, such as behind a long instruction;
    one that holds the reference answer says nothing about a score."""
    teacher_figures: Literal["all", "answers"] = "all"
    """`answers`: only the teacher's answers are evaluated, as of one behind an endpoint, and with
    `backend: {type: vllm}` its weights are never loaded in one process. For a teacher that is
    larger than a GPU. Fidelity, its likelihoods, size and speed are then left out."""
    baseline: str = "baseline"
    """Phase with as many updates as the student's, trained on labels alone."""
    student: str = "kd"
    """Phase whose checkpoint is the distilled student."""
    metrics: tuple[Metric, ...] = Field((VerifierAccuracy(),), min_length=1)
    """How answers are scored. The first decides, here and in `adapt`, `challenge` and `export`; the
    others are reported beside it. Raw text has no answers: there `perplexity` or `bits_per_byte`
    comes first, where lower is better. A gain is then the share by which it is lower."""
    decoding: Decoding = Decoding(max_tokens=8)
    """Decoding of every model, here and in `challenge`: greedy unless a temperature is given.
    `export` uses its `max_tokens`."""
    bootstrap: int = Field(10_000, ge=100)
    """Bootstrap draws for an interval."""
    calibration_bins: int = Field(15, ge=2)
    """Equal-width bins of confidence, for the calibration error."""
    reading_rows: int = Field(512, ge=0)
    """Test rows on which token log-probabilities are computed, for fidelity and for the metrics of
    a model; 0: none. Of raw text a few dozen are enough: their hidden states are in memory."""
    fidelity: AnyFidelity = LiveFidelity()
    """How token distributions are compared with the teacher's."""
    robustness: Robustness = Robustness()
    """Perturbed and out-of-distribution prompts."""
    forgetting: Forgetting = Forgetting()
    """General text, whose loss is compared before and after training."""
    memorisation: Memorisation = Memorisation()
    """What counts as a copy of a training answer."""
    router: Router = Router()
    """A router between student and teacher."""
    mistakes: Mistakes = Mistakes()
    """How the student's mistakes are clustered."""
    prices: Prices = Prices()
    """Prices, for the report alone."""
    capabilities: dict[str, Capability] = Field(default_factory=dict)
    """Named parts of the test rows, such as `{reasoning: {tasks: [sums]}, formatting: {metric:
    format}, long context: {longest: 0.25}}`: a table of what the student keeps of each."""
    groups: GroupField = ""
    """A field of the rows, `group` or `task`: the gap between teacher and student on each of its
    values, with an interval. It shows whether distillation harms some groups more than others."""
    samples: int = Field(4, ge=0)
    """Sample rows of each kind in the report."""
    seed: int = 0
    """Seed of the bootstrap and of the choice of sample rows."""
    timing: Timing = Timing()
    """Latency and throughput."""
    harness: Harness = Harness()
    """Tasks of lm-evaluation-harness, in addition to the round's own test."""
    gate: Gate = Gate()
    """What counts as a pass."""

    @property
    def number_format(self) -> NumberFormat:
        """The number format of the models on this machine."""
        return resolve(self.precision, checkpoints.accelerator())

    @property
    def answer_metrics(self) -> tuple[AnswerScore, ...]:
        """The metrics that score one answer."""
        return tuple(metric for metric in self.metrics if isinstance(metric, AnswerScore))

    @property
    def model_metrics(self) -> tuple[ModelMetric, ...]:
        """The metrics that need the model itself, on a sample of rows."""
        sampled = self.metrics[1:] if self.likelihood_metric else self.metrics
        of_answers = (AnswerScore, FigureOfAnswers)
        return tuple(metric for metric in sampled if not isinstance(metric, of_answers))

    @property
    def answer_figures(self) -> tuple[FigureOfAnswers, ...]:
        """The figures of all answers together."""
        return tuple(metric for metric in self.metrics if isinstance(metric, FigureOfAnswers))

    @property
    def plain_metrics(self) -> tuple[AnswerScore, ...]:
        """The metrics that score one answer without a judge."""
        return tuple(metric for metric in self.answer_metrics if not is_judged(metric))

    @property
    def judged_metrics(self) -> dict[str, AnswerScore]:
        """The metrics by a judge, by their places in params.yaml."""
        return {
            f"evaluate.metrics.{place}": metric
            for place, metric in enumerate(self.metrics)
            if isinstance(metric, AnswerScore) and is_judged(metric)
        }

    @property
    def likelihood_metric(self) -> LikelihoodScore | None:
        """The first metric, where it is one of a likelihood."""
        first = self.metrics[0]
        return first if isinstance(first, LikelihoodScore) else None

    @model_validator(mode="after")
    def _can_decide(self) -> "EvaluateParams":
        if getattr(self.metrics[0], "tasks", ()):
            raise ValueError(
                "the first metric decides, on the rows of every task: it cannot name tasks"
            )
        names = [metric.type for metric in self.answer_metrics]
        names += [figure.name for figure in self.answer_figures]
        if len(set(names)) < len(names):
            raise ValueError(f"a metric is there twice: {', '.join(sorted(names))}")
        if isinstance(self.metrics[0], JudgedMetric) and self.metrics[0].rows is not None:
            raise ValueError("the first metric decides, on all rows: leave out its `rows`")
        if self.teacher_figures == "answers" and self.likelihood_metric:
            raise ValueError(
                f"{self.metrics[0].type} needs the teacher's weights: teacher_figures must be all"
            )
        if (self.capabilities or self.groups) and self.likelihood_metric:
            raise ValueError(
                "capabilities and groups compare scores of answers: the first metric must be one"
            )
        if self.gate.each_task and self.likelihood_metric:
            raise ValueError(
                "gate.each_task compares scores of answers: the first metric must be one of these"
            )
        if not isinstance(self.metrics[0], AnswerScore | LikelihoodScore):
            raise ValueError(
                f"{self.metrics[0].type} does not score single rows: it cannot come first"
            )
        return self
