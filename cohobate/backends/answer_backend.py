"""What generates the answers of a model that is evaluated: the loaded model itself, or vLLM."""

from typing import Annotated, Literal

from pydantic import Field

from cohobate.backends.vllm import Vllm
from cohobate.params import Section


class LoadedDecoding(Section):
    """Batched decoding by the loaded model, with the batches and threads of the stage."""

    type: Literal["transformers"] = "transformers"


AnswerBackend = Annotated[LoadedDecoding | Vllm, Field(discriminator="type")]
LOADED = LoadedDecoding()
