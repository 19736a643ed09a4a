"""The backend `vllm`: the teacher's own weights on GPUs, batched by vLLM.

vLLM plans its own batches, so in bfloat16 an answer whose two likeliest tokens are almost tied can
differ from run to run. Answers in the ledger do not change.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cohobate.backends.endpoint import check_weights, request_seed
from cohobate.backends.requests import (
    EMPTY_LEDGER,
    AnswerFunction,
    LedgerTotals,
    Outcomes,
    TeacherRequest,
)
from cohobate.data.tokenized import prompt_ids
from cohobate.errors import UserError
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Answer, Completion, Decoding, Request
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
    """Prompts after whose answers the ledger is output."""

    def key_parts(self) -> list[Any]:
        """Return the params of this backend that an answer depends on: they are part of its key."""
        return [self.type, self.number_format]

    @property
    def number_format(self) -> NumberFormat:
        """The number format of weights and matrix products."""
        return resolve(self.precision, "cuda")

    def open(self, checkpoint: Path, history: LedgerTotals = EMPTY_LEDGER) -> AnswerFunction:
        """Load the teacher; return the function that answers.

        Raises:
            UserError: the weights are not on this machine, or vLLM is not installed.
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

        def answers(requests: Sequence[TeacherRequest], decoding: Decoding) -> Iterator[Outcomes]:
            for start in range(0, len(requests), self.rows):
                # answers reach the ledger after each chunk: a kill loses no more than one
                chunk = requests[start : start + self.rows]
                ids = prompt_ids(tokenizer, [request.prompt for request in chunk])
                prompts = [{"prompt_token_ids": row} for row in ids]
                samplings = [
                    vllm.SamplingParams(**_sampling(request, decoding)) for request in chunk
                ]
                outputs = model.generate(prompts, samplings, use_tqdm=False)
                triples = zip(chunk, ids, outputs, strict=True)
                yield {
                    request.key: _answer(
                        tokenizer, output.outputs[0], Request.of(request.prompt, row, request.draw)
                    )
                    for request, row, output in triples
                }

        return answers


def _sampling(request: TeacherRequest, decoding: Decoding) -> dict[str, Any]:
    choice: dict[str, Any] = {"temperature": decoding.temperature}
    if decoding.temperature > 0:
        choice |= {"top_p": decoding.top_p, "seed": request_seed(request, decoding)}
    # 0: the drawn token's own log-probability, and no others
    return {"max_tokens": decoding.max_tokens, "logprobs": 0, **choice}


def _answer(tokenizer: Any, output: Any, request: Request) -> Answer:
    """Return an answer of vLLM, whose ids include a closing token that the model generated."""
    ids = list(output.token_ids)
    finish: Literal["stop", "length"] = "stop" if output.finish_reason == "stop" else "length"
    logprob = output.cumulative_logprob / len(ids) if ids else None
    return to_answer(tokenizer, Completion(ids, finish, logprob, []), request)
