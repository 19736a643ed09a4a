"""What a person chooses of the evaluation."""

from pydantic import Field, model_validator

from cohobate.evaluation.forgetting import Forgetting
from cohobate.evaluation.timing import Timing
from cohobate.generation.requests import Batching, Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section
from cohobate.scoring.metrics import AnswerScore, Verified
from tasks.evaluate.cost import Prices
from tasks.evaluate.fidelity import FidelityOn, Live
from tasks.evaluate.gate import Gate
from tasks.evaluate.harness import Harness
from tasks.evaluate.memorisation import Memorisation
from tasks.evaluate.metrics import Metric, ReadingMetric
from tasks.evaluate.mistakes import Mistakes
from tasks.evaluate.robustness import Robustness
from tasks.evaluate.router import Router


class EvaluateParams(Section):
    """Which models are compared, on what, and what counts as a pass."""

    teacher: str = "main"
    """Key of the teacher in the section `teachers`."""
    baseline: str = "baseline"
    """Phase with as many updates as the student's, on labels alone."""
    student: str = "kd"
    """Phase whose checkpoint is the distilled student."""
    metrics: tuple[Metric, ...] = Field((Verified(),), min_length=1)
    """How answers are scored. The first decides, here and in `adapt`, `challenge` and `export`; the
    others are reported beside it."""
    decoding: Decoding = Decoding(max_tokens=8)
    """How every model answers, here and in `challenge`: greedily, unless a temperature is given.
    `export` takes its `max_tokens`."""
    batching: Batching = Batching()
    """How many rows are answered at once."""
    precision: Precision = "auto"
    """Number format in which the models answer."""
    bootstrap: int = Field(10_000, ge=100)
    """How many times the test rows are resampled for an interval."""
    calibration_bins: int = Field(15, ge=2)
    """Equal-width bins of confidence, for the calibration error."""
    reading_rows: int = Field(512, ge=0)
    """Test rows on which models read answers: to compare token distributions with the teacher's,
    and for the metrics that need it; 0: none."""
    fidelity: FidelityOn = Live()
    """On what a student's token distributions are compared with the teacher's."""
    robustness: Robustness = Robustness()
    """How prompts are changed that were not meant to be answered otherwise."""
    forgetting: Forgetting = Forgetting()
    """General text, on which the loss is compared before and after."""
    memorisation: Memorisation = Memorisation()
    """What counts as copied from the training answers."""
    router: Router = Router()
    """What is asked of student and teacher together."""
    mistakes: Mistakes = Mistakes()
    """How the student's mistakes are put together."""
    prices: Prices = Prices()
    """What things cost; for the report alone."""
    samples: int = Field(4, ge=0)
    """Rows of each kind that the report quotes."""
    seed: int = 0
    """Of the resampling and of the choice of quoted rows."""
    threads: int = Field(2, ge=1)
    """Threads of one model. Another number can change the last digits."""
    timing: Timing = Timing()
    """What is measured by the clock."""
    harness: Harness = Harness()
    """Tasks of lm-evaluation-harness, run beside the round's own test."""
    gate: Gate = Gate()
    """What counts as a pass."""

    @property
    def number_format(self) -> NumberFormat:
        """The number format in which the models answer on this machine."""
        return resolve(self.precision, checkpoints.accelerator())

    @property
    def answer_metrics(self) -> tuple[AnswerScore, ...]:
        """The metrics that look at one answer."""
        return tuple(metric for metric in self.metrics if isinstance(metric, AnswerScore))

    @property
    def reading_metrics(self) -> tuple[ReadingMetric, ...]:
        """The metrics for which the model reads the reference."""
        return tuple(metric for metric in self.metrics if isinstance(metric, ReadingMetric))

    @model_validator(mode="after")
    def _a_score_decides(self) -> "EvaluateParams":
        if not isinstance(self.metrics[0], AnswerScore):
            raise ValueError(f"{self.metrics[0].type} scores no single answer: it cannot decide")
        return self
