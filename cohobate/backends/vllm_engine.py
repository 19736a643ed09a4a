"""One model in vLLM, in this process or in several of Ray's: token ids in, completions out."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cohobate.backends.endpoint import request_seed
from cohobate.errors import UserError
from cohobate.generation.requests import Completion, Decoding, Request
from cohobate.teachers.signal_store.packing import SMALLEST


class VllmEngine:
    """A model that vLLM has loaded.

    Args:
        model: `vllm.LLM`, or several of them behind its `generate`.
        sampling: `vllm.SamplingParams`.
        context: most tokens of a prompt and its answer; None where the model has no limit.
        k: log-probabilities that are kept of each token.
    """

    def __init__(
        self, model: Any, sampling: Callable[..., Any], context: int | None = None, k: int = 0
    ) -> None:
        self.model, self.sampling, self.context, self.k = model, sampling, context, k

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """Return a completion of each request, in their order.

        A prompt that fills the model's context gets an empty one that ended by `length`.
        """
        if any(one.images for one in requests):
            raise UserError("rows have pictures, and vLLM is given text alone")
        completions = [Completion([], "length", None, [])] * len(requests)
        fitting = [n for n, one in enumerate(requests) if self._has_room(one)]
        if not fitting:
            return completions
        outputs = self.model.generate(
            [{"prompt_token_ids": requests[n].ids} for n in fitting],
            [self.sampling(**self._options(requests[n], decoding)) for n in fitting],
            use_tqdm=False,
        )
        for n, output in zip(fitting, outputs, strict=True):
            completions[n] = _completion(output.outputs[0], self.k)
        return completions

    def close(self) -> None:
        """Give the GPUs' memory back: vLLM holds it until its processes end."""
        model, self.model = self.model, None
        # of Ray's actors, or of the process that vLLM computes in
        core = getattr(getattr(model, "llm_engine", None), "engine_core", None)
        for owner, name in ((model, "close"), (core, "shutdown")):
            if stop := getattr(owner, name, None):
                stop()

    def _has_room(self, request: Request) -> bool:
        return self.context is None or len(request.ids) < self.context

    def _options(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        choice: dict[str, Any] = {"temperature": decoding.temperature}
        if decoding.temperature > 0:
            choice |= {"top_p": decoding.top_p, "seed": request_seed(request.draw, decoding)}
        # beside the k likeliest, always the drawn token's own log-probability
        return {"max_tokens": decoding.max_tokens, "logprobs": self.k, **choice}


def refuse_suppressed(checkpoint: Path) -> None:
    """Refuse a model with tokens that are never generated, of which vLLM knows nothing.

    Raises:
        UserError: with how many there are.
    """
    path = checkpoint / "generation_config.json"
    config = json.loads(path.read_bytes()) if path.exists() else {}
    if suppressed := config.get("suppress_tokens"):
        raise UserError(
            f"the model suppresses {len(suppressed)} tokens, as its vocabulary was trimmed: vLLM "
            "would generate them",
            where=str(path),
            fix="backend: {type: transformers}",
        )


def context_of(checkpoint: Path) -> int | None:
    """Return the most tokens that a model reads, by its configuration; None without a limit."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_bytes()) if path.exists() else {}
    context = config.get("text_config", config).get("max_position_embeddings")
    return None if context is None else int(context)


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
