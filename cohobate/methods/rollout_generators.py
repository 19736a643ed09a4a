"""Rollout generators: the student's answers during training, by the model itself or by vLLM.

A generator always uses the student's current weights. To add one: a class with `generate` here, and
its params in `cohobate/methods/rollout_settings.py`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cohobate.errors import UserError
from cohobate.generation.decoding import decode_batch, plan_batches, stop_ids
from cohobate.generation.requests import Completion, Request
from cohobate.methods.rollout_settings import Sampling, VllmSettings
from cohobate.training.adapters import merged_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = 32
"""Tokens by which the prompts of a batch may differ in length. The rest of the longer ones is read
token by token; one pass over all rows of an update costs little more than one over a few."""


OnFinished = Callable[[Mapping[int, Completion]], None]
"""Gets completions as they end, by the positions of their requests."""


class RolloutGenerator(Protocol):
    """Generates answers to prompts with the student's current weights."""

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """Return the completions in the order of the requests.

        `on_finished` gets each of them as soon as the generator has it.
        """
        ...


def rollout_generator(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    *,
    autocast: bool,
    vocabulary: int | None = None,
) -> RolloutGenerator:
    """Return the generator that `sampling.writer` names; `vocabulary` limits its candidates.

    Raises:
        UserError: it is vLLM, which is not installed.
    """
    stop = stop_ids(model, tokenizer)
    if isinstance(sampling.writer, VllmSettings):
        return VllmGenerator(model, tokenizer, sampling, sampling.writer, stop)
    return TransformersGenerator(model, sampling, stop, autocast, vocabulary)


class TransformersGenerator:
    """Batched decoding with the model in training; the same requests give the same answers."""

    def __init__(
        self,
        model: "PreTrainedModel",
        sampling: Sampling,
        stop: frozenset[int],
        autocast: bool,
        vocabulary: int | None = None,
    ) -> None:
        self.model, self.sampling, self.stop, self.autocast = model, sampling, stop, autocast
        self.vocabulary = vocabulary

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """Return the completions; prompts of like length are decoded together, in few batches."""
        decoding, batching = self.sampling.decoding, self.sampling.batching
        completions: dict[int, Completion] = {}
        with autocast_for(self.model, self.autocast), cached_casts(self.model):
            for numbers in plan_batches(requests, decoding, batching, near=SPREAD):
                batch = [requests[n] for n in numbers]
                # batches are sorted by length: `numbers` leads back to the order of the requests
                finished = _by_number(numbers, on_finished) if on_finished else None
                decoded = decode_batch(
                    self.model,
                    batch,
                    decoding,
                    self.stop,
                    batching,
                    measure=self._candidates if self.sampling.candidates else None,
                    on_finished=finished,
                )
                completions |= zip(numbers, decoded, strict=True)
        return [completions[n] for n in range(len(requests))]

    def _candidates(self, logits_BV: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the likeliest ids at the next token of each row, without those of padding."""
        return {"ids_K": logits_BV[:, : self.vocabulary].topk(self.sampling.candidates).indices}


class VllmGenerator:
    """vLLM on the trainer's own GPU, through TRL's VLLMGeneration.

    The weights are copied to vLLM before each call, with low-rank updates merged. vLLM samples from
    random numbers of its own: a run is reproducible as far as vLLM's batches are.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sampling: Sampling,
        settings: VllmSettings,
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

        decoding = sampling.decoding
        self.stop = stop
        with _environment_restored():
            self.engine = VLLMGeneration(
                model,
                Accelerator(),
                tokenizer,
                # vLLM in this process, on the GPU of the training
                mode="colocate",
                gpu_memory_utilization=settings.memory,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_completion_length=decoding.max_tokens,
                generation_kwargs={"stop_token_ids": sorted(stop)},
            )
        # TRL looks for PEFT's own model; here the updates lie in the student itself
        self.engine._iter_named_params = partial(merged_weights, model)

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """Copy the weights to vLLM, and generate all completions at once."""
        self.engine.sync_weights()
        prompts = [request.ids for request in requests]
        _, generated, logprobs, _ = self.engine.generate(prompts, None, num_generations=1)
        completions = [
            Completion(
                list(ids),
                "stop" if ids and ids[-1] in self.stop else "length",
                # one candidate a position: the token that was drawn
                sum(each[0] for each in logs) / len(logs) if logs else None,
                [],
            )
            for ids, logs in zip(generated, logprobs, strict=True)
        ]
        if on_finished:
            on_finished(dict(enumerate(completions)))
        return completions


def _by_number(
    numbers: Sequence[int], on_finished: OnFinished
) -> Callable[[int, Completion], None]:
    """Return what takes a completion of a batch whose requests have these numbers."""
    return lambda n, completion: on_finished({numbers[n]: completion})


def autocast_for(model: "PreTrainedModel", autocast: bool) -> AbstractContextManager[Any]:
    """Return autocast to bfloat16 for a student that is trained in it, else a context of none."""
    return torch.autocast(model.device.type, torch.bfloat16) if autocast else nullcontext()


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo changes of the environment.

    TRL sets RANK and its like, by which a later training would take itself for one of several.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def cached_casts(model: "PreTrainedModel") -> Iterator[None]:
    """Let autocast cache its casts of frozen weights too.

    It caches those of weights that require a gradient alone, and would cast the others in each of
    the decoding's forward passes.
    """
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
