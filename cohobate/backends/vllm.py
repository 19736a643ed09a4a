"""The backend `vllm`: the teacher's own weights on GPUs, batched by vLLM.

vLLM plans its own batches, so in bfloat16 an answer whose two likeliest tokens are almost tied can
differ from run to run. Answers in the ledger do not change.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cohobate.backends.endpoint import check_weights
from cohobate.backends.requests import (
    EMPTY_LEDGER,
    AnswerFunction,
    LedgerTotals,
    Outcomes,
    TeacherRequest,
)
from cohobate.backends.vllm_engine import VllmEngine, context_of, refuse_suppressed
from cohobate.data.tokenized import prompt_ids
from cohobate.errors import UserError
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section

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
        engine = self.start(checkpoint, k)

        def answers(requests: Sequence[TeacherRequest], decoding: Decoding) -> Iterator[Outcomes]:
            for start in range(0, len(requests), self.rows):
                # answers reach the ledger after each chunk: a kill loses no more than one
                chunk = requests[start : start + self.rows]
                ids = prompt_ids(tokenizer, [request.prompt for request in chunk])
                pairs = zip(chunk, ids, strict=True)
                own = [Request.of(request.prompt, row, request.draw) for request, row in pairs]
                completions = engine.complete(own, decoding)
                if signal_log and signals:
                    # on disk before the answers: one in the ledger is not generated again
                    signal_log.append(signals.pack(own, completions))
                triples = zip(chunk, completions, own, strict=True)
                yield {
                    request.key: to_answer(tokenizer, completion, prompt)
                    for request, completion, prompt in triples
                }

        return answers

    def start(self, checkpoint: Path, k: int = 0) -> VllmEngine:
        """Start vLLM with a model, of which it can give `k` log-probabilities a token.

        Raises:
            UserError: vLLM is not installed, or would generate what the model must not.
        """
        refuse_suppressed(checkpoint)
        try:
            import vllm
        except ImportError:
            raise UserError(
                "vLLM is not installed",
                where="params.yaml, a backend of type vllm",
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
        context = context_of(checkpoint)
        if self.replicas == 1:
            return VllmEngine(vllm.LLM(**options), vllm.SamplingParams, context, k)
        from cohobate.backends.ray_workers import start_vllm

        # workers have other folders
        options["model"] = str(checkpoint.resolve())
        replicas = start_vllm(options, self.replicas, self.gpus * self.stages)
        return VllmEngine(replicas, vllm.SamplingParams, context, k)

    def _signals(
        self, checkpoint: Path, tokenizer: Any, signal_log: "SignalLog | None"
    ) -> "AnswerSignals | None":
        """Return what packs the signals of the answers; None where none are kept."""
        if signal_log is None or signal_log.form.temperatures != (1.0,):
            return None
        from cohobate.backends.answer_signals import AnswerSignals

        return AnswerSignals.of_config(checkpoint, tokenizer, signal_log.form, self.number_format)
