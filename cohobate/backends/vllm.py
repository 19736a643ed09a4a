"""The backend `vllm`: the teacher's own weights on GPUs, batched by vLLM.

vLLM plans its own batches, so in bfloat16 an answer whose two likeliest tokens are almost tied can
differ from run to run. Answers in the ledger do not change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from cohobate.generation.requests import Completion, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section
from cohobate.teachers.signal_store.packing import SMALLEST

if TYPE_CHECKING:
    from cohobate.backends.answer_signals import AnswerSignals
    from cohobate.backends.signal_log import SignalLog


class Vllm(Section):
    """vLLM, in this process or in several of Ray's."""

    type: Literal["vllm"]
    precision: Precision = "auto"
    """Number format of weights and matrix products."""
    gpus: int = Field(1, ge=1)
    """GPUs that share each layer (tensor parallelism)."""
    stages: int = Field(1, ge=1)
    """Groups of `gpus` that have some of the layers each (pipeline parallelism)."""
    replicas: int = Field(1, ge=1)
    """Copies of the model, each in a Ray actor with `gpus` x `stages` GPUs; prompts are divided
    among them, and the answers' order stays."""
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

    def open(
        self,
        checkpoint: Path,
        history: LedgerTotals = EMPTY_LEDGER,
        signal_log: "SignalLog | None" = None,
    ) -> AnswerFunction:
        """Load the teacher; return the function that answers, and keeps signals in `signal_log`.

        vLLM gives log-probabilities at temperature 1: no signals are kept for others.

        Raises:
            UserError: the weights are not on this machine, or vLLM is not installed.
        """
        check_weights(checkpoint)
        tokenizer = checkpoints.load_tokenizer(checkpoint)
        signals = self._signals(checkpoint, tokenizer, signal_log)
        k = signals.form.k if signals else 0
        vllm, model = self._load(checkpoint, k)

        def answers(requests: Sequence[TeacherRequest], decoding: Decoding) -> Iterator[Outcomes]:
            for start in range(0, len(requests), self.rows):
                # answers reach the ledger after each chunk: a kill loses no more than one
                chunk = requests[start : start + self.rows]
                ids = prompt_ids(tokenizer, [request.prompt for request in chunk])
                prompts = [{"prompt_token_ids": row} for row in ids]
                samplings = [
                    vllm.SamplingParams(**_sampling(request, decoding, k)) for request in chunk
                ]
                outputs = model.generate(prompts, samplings, use_tqdm=False)
                completions = [_completion(output.outputs[0], k) for output in outputs]
                pairs = zip(chunk, ids, strict=True)
                own = [Request.of(request.prompt, row, request.draw) for request, row in pairs]
                if signal_log and signals:
                    # on disk before the answers: one in the ledger is not generated again
                    signal_log.append(signals.pack(own, completions))
                triples = zip(chunk, completions, own, strict=True)
                yield {
                    request.key: to_answer(tokenizer, completion, prompt)
                    for request, completion, prompt in triples
                }

        return answers

    def _load(self, checkpoint: Path, k: int) -> tuple[Any, Any]:
        """Return vLLM, and the model, which can give `k` log-probabilities a token."""
        try:
            import vllm
        except ImportError:
            raise UserError(
                "vLLM is not installed",
                where="params.yaml, generate.backend",
                fix="uv pip install vllm   (needs a GPU; or choose {type: transformers})",
            ) from None
        options: dict[str, Any] = {
            "model": str(checkpoint),
            "dtype": self.number_format,
            "tensor_parallel_size": self.gpus,
            "pipeline_parallel_size": self.stages,
            "gpu_memory_utilization": self.memory,
            "seed": 0,
        }
        if k:
            options["max_logprobs"] = k  # 20 unless it is told
        if self.replicas == 1:
            return vllm, vllm.LLM(**options)
        from cohobate.backends.ray_workers import start_vllm

        # workers have other folders
        options["model"] = str(checkpoint.resolve())
        return vllm, start_vllm(options, self.replicas, self.gpus * self.stages)

    def _signals(
        self, checkpoint: Path, tokenizer: Any, signal_log: "SignalLog | None"
    ) -> "AnswerSignals | None":
        """Return what packs the signals of the answers; None where none are kept."""
        if signal_log is None or signal_log.form.temperatures != (1.0,):
            return None
        from cohobate.backends.answer_signals import AnswerSignals

        return AnswerSignals.of_config(checkpoint, tokenizer, signal_log.form, self.number_format)


def _sampling(request: TeacherRequest, decoding: Decoding, k: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"temperature": decoding.temperature}
    if decoding.temperature > 0:
        choice |= {"top_p": decoding.top_p, "seed": request_seed(request, decoding)}
    # beside the k likeliest, always the drawn token's own log-probability
    return {"max_tokens": decoding.max_tokens, "logprobs": k, **choice}


def _completion(output: Any, k: int) -> Completion:
    """Return what vLLM generated, whose ids include a closing token that the model generated."""
    ids = list(output.token_ids)
    finish: Literal["stop", "length"] = "stop" if output.finish_reason == "stop" else "length"
    logprob = output.cumulative_logprob / len(ids) if ids else None
    return Completion(ids, finish, logprob, _signals(output.logprobs, k) if k else [])


def _signals(logprobs: Any, k: int) -> list[Mapping[str, Any]]:
    """Return the signals of each token of an answer: of a mapping of id to log-probability each.

    None where a token has fewer than `k` that can be used.
    """
    import torch

    signals: list[Mapping[str, Any]] = []
    for token in logprobs:
        likeliest = sorted(((n, float(one.logprob)) for n, one in token.items()), key=_likelier)[:k]
        if len(likeliest) < k or not all(logp <= 0 for _, logp in likeliest):
            return []
        ids, logp = zip(*likeliest, strict=True)
        rest = max(1 - math.fsum(map(math.exp, logp)), 0.0)
        rest_logprob = math.log(rest) if rest else SMALLEST
        numbers = torch.tensor([*logp, rest_logprob]).clamp_min(SMALLEST)
        signals.append(
            {
                "ids_NK": torch.tensor(ids),
                "logp_NK": numbers[:-1],
                "rest_logprob_NQ": numbers[-1:],
            }
        )
    return signals


def _likelier(entry: tuple[int, float]) -> tuple[float, int]:
    return -entry[1], entry[0]
