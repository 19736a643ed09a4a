"""What a person chooses of the evaluation."""

from pydantic import Field

from tasks.checkpoints import Precision
from tasks.decoding import Batching, Decoding
from tasks.evaluate.gate import Gate
from tasks.evaluate.metrics import Metric, Verified
from tasks.evaluate.timing import Timing
from tasks.params import Section


class EvaluateParams(Section):
    """Which models are compared, on what, and what counts as a pass."""

    teacher: str = "main"
    """Key of the teacher in the section `teachers`."""
    baseline: str = "baseline"
    """Phase with as many updates as the student's, on labels alone."""
    student: str = "kd"
    """Phase whose checkpoint is the distilled student."""
    metrics: tuple[Metric, ...] = Field((Verified(),), min_length=1)
    """How answers are scored. The first decides; the others are reported beside it."""
    decoding: Decoding = Decoding(max_tokens=8)
    """How every model answers: greedily, unless a temperature is given."""
    batching: Batching = Batching()
    """How many rows are answered at once."""
    precision: Precision = "bfloat16"
    """Number format in which the models answer."""
    bootstrap: int = Field(10_000, ge=100)
    """How many times the test rows are resampled for an interval."""
    calibration_bins: int = Field(15, ge=2)
    """Equal-width bins of confidence, for the calibration error."""
    fidelity_rows: int = Field(512, ge=0)
    """Test rows on which the token distributions are compared with the teacher's; 0: on none."""
    samples: int = Field(4, ge=0)
    """Rows of each kind that the report quotes."""
    seed: int = 0
    """Of the resampling and of the choice of quoted rows."""
    threads: int = Field(2, ge=1)
    """Threads of one model. Another number can change the last digits."""
    timing: Timing = Timing()
    """What is measured by the clock."""
    gate: Gate = Gate()
    """What counts as a pass."""
