"""The backend `vllm`: the teacher's own weights on GPUs, batched by vLLM.

vLLM plans its own batches, so that in bfloat16 an answer whose best two tokens are all but tied can
differ from run to run. What is in the ledger stays as it is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cohobate.backends.endpoint import check_weights, seed_of
from cohobate.backends.requests import NO_HISTORY, Answering, Ask, Batch, History
from cohobate.data.tokenized import prompt_ids
from cohobate.errors import UserError
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Answer, Completion, Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section


class Vllm(Section):
    """vLLM, in this process."""

    type: Literal["vllm"]
    precision: Precision = "auto"
    """Number format of weights and matrix products."""
    gpus: int = Field(1, ge=1)
    """GPUs that share the model (tensor parallelism)."""
    memory: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory."""
    rows: int = Field(512, ge=1)
    """Prompts after whose answers the ledger is written."""

    def decided_by(self) -> list[Any]:
        """Return what of this backend decides an answer, and so belongs to its key."""
        return [self.type, self.number_format]

    @property
    def number_format(self) -> NumberFormat:
        """The number format of weights and matrix products."""
        return resolve(self.precision, "cuda")

    def open(self, checkpoint: Path, history: History = NO_HISTORY) -> Answering:
        """Load the teacher; return the function that answers.

        Raises:
            UserError: the weights are not here, or vLLM is not installed.
        """
        check_weights(checkpoint)
        try:
            import vllm
        except ImportError:
            raise UserError(
                "vLLM is not installed",
                where="params.yaml, generate.backend",
                fix="uv pip install vllm   (needs a GPU; or choose {type: transformers})",
            ) from None
        tokenizer = checkpoints.load_tokenizer(checkpoint)
        model = vllm.LLM(
            model=str(checkpoint),
            dtype=self.number_format,
            tensor_parallel_size=self.gpus,
            gpu_memory_utilization=self.memory,
            seed=0,
        )

        def answers(asks: Sequence[Ask], how: Decoding) -> Iterator[Batch]:
            for start in range(0, len(asks), self.rows):
                some = asks[start : start + self.rows]
                ids = prompt_ids(tokenizer, [ask.prompt for ask in some])
                prompts = [{"prompt_token_ids": row} for row in ids]
                samplings = [vllm.SamplingParams(**_sampling(ask, how)) for ask in some]
                written = model.generate(prompts, samplings, use_tqdm=False)
                pairs = zip(some, written, strict=True)
                yield {ask.key: _answer(tokenizer, one.outputs[0]) for ask, one in pairs}

        return answers


def _sampling(ask: Ask, how: Decoding) -> dict[str, Any]:
    choice: dict[str, Any] = {"temperature": how.temperature}
    if how.temperature > 0:
        choice |= {"top_p": how.top_p, "seed": seed_of(ask, how)}
    return {"max_tokens": how.max_tokens, "logprobs": 0, **choice}


def _answer(tokenizer: Any, written: Any) -> Answer:
    """Return an answer of vLLM, which counts the closing token in where the model ended itself."""
    ids = list(written.token_ids)
    finish: Literal["stop", "length"] = "stop" if written.finish_reason == "stop" else "length"
    logprob = written.cumulative_logprob / len(ids) if ids else None
    return to_answer(tokenizer, Completion(ids, finish, logprob, []))
