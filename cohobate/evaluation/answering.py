"""How a stage runs the models that it compares: the settings that evaluate and challenge share."""

from pydantic import Field

from cohobate.backends.answer_backend import LOADED, AnswerBackend
from cohobate.generation.requests import Batching
from cohobate.models.number_formats import Precision
from cohobate.params import Section


class Answering(Section):
    """Number format, batches, and what generates the answers."""

    batching: Batching = Batching()
    """Rows and tokens of a batch."""
    precision: Precision = "auto"
    """Number format of the models."""
    threads: int = Field(2, ge=1)
    """CPU threads. Another number can change the last digits."""
    backend: AnswerBackend = LOADED
    """What generates the answers: the loaded model (`transformers`), or `{type: vllm}` with the
    settings of `generate.backend`, for models that generate on GPUs. vLLM has one model at a time
    and ends before the weights are loaded for likelihoods; the number format is `precision`."""
