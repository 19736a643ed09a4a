"""What writes the student's answers while it learns: the model itself, or vLLM with its weights.

A writer answers with the student's weights of that very moment. To add one: a class with `answers`
here, and its params in `cohobate/methods/rollout_settings.py`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cohobate.errors import UserError
from cohobate.generation.decoding import decode_batch, plan_batches, stop_ids
from cohobate.generation.requests import Completion, Request
from cohobate.methods.rollout_settings import Sampling, VllmSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = 32
"""Tokens by which the prompts of a batch may differ: the longer ones are read on token by token,
and a pass over all rows of an update costs little more than one over a few of them."""


class RolloutGenerator(Protocol):
    """Answers prompts with the student's weights as they are now."""

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the answers in the order of the requests."""
        ...


def rollout_generator(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    *,
    autocast: bool,
) -> RolloutGenerator:
    """Return the writer that `sampling` asks for.

    Raises:
        UserError: it asks for vLLM, which is not installed.
    """
    stop = stop_ids(model, tokenizer)
    if isinstance(sampling.writer, VllmSettings):
        return VllmGenerator(model, tokenizer, sampling, sampling.writer, stop)
    return TransformersGenerator(model, sampling, stop, autocast)


class TransformersGenerator:
    """The model in training itself; the same requests give the same answers."""

    def __init__(
        self, model: "PreTrainedModel", sampling: Sampling, stop: frozenset[int], autocast: bool
    ) -> None:
        self.model, self.sampling, self.stop, self.autocast = model, sampling, stop, autocast

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        """Write in few batches, like lengths together."""
        how, batching = self.sampling.decoding, self.sampling.batching
        found: dict[int, Completion] = {}
        with precision_of(self.model, self.autocast), cast_once(self.model):
            for batch in plan_batches(requests, how, batching, near=SPREAD):
                asked = [requests[n] for n in batch]
                written = decode_batch(self.model, asked, how, self.stop, batching)
                found |= zip(batch, written, strict=True)
        return [found[n] for n in range(len(requests))]


class VllmGenerator:
    """vLLM on the trainer's own GPU, through TRL's helper: the weights are handed over each time.

    It samples from random numbers of its own: a run repeats as far as vLLM's batches do.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sampling: Sampling,
        chosen: VllmSettings,
        stop: frozenset[int],
    ) -> None:
        if find_spec("vllm") is None:
            raise UserError(
                "vLLM is not installed",
                where="params.yaml, sampling.writer",
                fix="uv pip install vllm   (needs a GPU; or leave `writer` out)",
            )
        from accelerate import Accelerator
        from trl.generation.vllm_generation import VLLMGeneration

        how = sampling.decoding
        self.stop = stop
        with _environment_kept():
            self.engine = VLLMGeneration(
                model,
                Accelerator(),
                tokenizer,
                mode="colocate",
                gpu_memory_utilization=chosen.memory,
                temperature=how.temperature,
                top_p=how.top_p,
                max_completion_length=how.max_tokens,
                generation_kwargs={"stop_token_ids": sorted(stop)},
            )

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        """Hand the weights over, then write all at once."""
        self.engine.sync_weights()
        prompts = [request.ids for request in requests]
        _, written, logprobs, _ = self.engine.generate(prompts, None, num_generations=1)
        return [
            Completion(
                list(ids),
                "stop" if ids and ids[-1] in self.stop else "length",
                sum(each[0] for each in logs) / len(logs) if logs else None,
                [],
            )
            for ids, logs in zip(written, logprobs, strict=True)
        ]


def precision_of(model: "PreTrainedModel", autocast: bool) -> AbstractContextManager[Any]:
    """Return the block in which a student that learns in bfloat16 is asked anything."""
    return torch.autocast(model.device.type, torch.bfloat16) if autocast else nullcontext()


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what is set within: RANK and its like would make later trainings think they are many."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def cast_once(model: "PreTrainedModel") -> Iterator[None]:
    """Let autocast keep its casts of frozen weights too, which else it makes anew at every pass."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
