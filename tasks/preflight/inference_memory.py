"""Memory of models that generate, are captured or compared: weights, a batch's tensors, logits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cohobate import params
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.evaluation.answering import Answering
from cohobate.generation.requests import Batching
from cohobate.models.model_size import ModelSize
from cohobate.models.number_formats import BYTES, resolve
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.training.activation_memory import forward_bytes
from cohobate.training.memory import (
    ACTIVATIONS,
    GPU_CONTEXT_BYTES,
    LOGITS,
    PROGRAM,
    PROGRAM_BYTES,
    WEIGHTS,
    frozen_bytes,
)
from tasks.preflight.devices import Device

Parts = dict[str, int]
_LONG = 1024
"""Tokens of a row whose attention is reckoned blockwise."""
_COMPARED = 128
"""Tokens whose distributions two models are compared at (cohobate/evaluation/answer_logprobs.py,
which imports torch)."""


class Inference(NamedTuple):
    """How models generate or are read: one batch for each thread at a time."""

    bytes_per_weight: int
    batching: Batching
    threads: int

    def parts(
        self, sizes: Sequence[ModelSize], device: Device, rows_of: int | None = None
    ) -> Parts:
        """Return the memory of models that are loaded together, of which one generates.

        On a GPU one batch runs at a time.

        Args:
            sizes: of the models.
            device: where they are.
            rows_of: tokens of each row, prompt and answer; as many as `batching` allows where None.
        """
        on_cpu, number, batch = device.kind == "cpu", self.bytes_per_weight, self.batching
        tokens = batch.tokens if rows_of is None else min(batch.tokens, batch.rows * rows_of)
        threads = self.threads if on_cpu else 1
        return {
            PROGRAM: PROGRAM_BYTES if on_cpu else GPU_CONTEXT_BYTES,
            WEIGHTS: sum(frozen_bytes(size, number, on_cpu=on_cpu) for size in sizes),
            ACTIVATIONS: threads * tokens * max(_of_token(one, number, on_cpu) for one in sizes),
            LOGITS: max(threads * batch.rows * one.head // one.width * 12 for one in sizes),
        }


def _of_token(size: ModelSize, number: int, on_cpu: bool) -> int:
    """Return the bytes of a token in the KV cache, and in a forward pass."""
    cache = 2 * number * size.layers * size.keys if size.generates else 0
    return cache + forward_bytes(size, number, _LONG, on_cpu=on_cpu)


def of_evaluation(
    sizes: Sequence[ModelSize], answering: Answering, device: Device, rows_of: int | None = None
) -> Parts:
    """Return the memory of a stage that compares models, `sizes` of them loaded together.

    With vLLM the answers come first: it has one model, and ends before any is loaded. The larger
    of the two needs counts.
    """
    number = BYTES[resolve(answering.precision, device.kind)]
    inference = Inference(number, answering.batching, answering.threads)
    parts = inference.parts(sizes, device, rows_of)
    # log-probabilities of teacher and student over a chunk, and what is compared of them
    compared = max(24 * _COMPARED * one.head // one.width for one in sizes)
    parts[LOGITS] = max(parts[LOGITS], compared)
    if not isinstance(answering.backend, Vllm):
        return parts
    largest = max(sizes, key=lambda size: size.parameters)
    alternatives = [parts, of_vllm(largest, answering.backend, device)]
    return max(alternatives, key=lambda one: sum(one.values()))


def answering_of(document: Mapping[str, Any], section: str) -> Answering:
    """Return how a stage runs the models that it compares, from its section of params.yaml."""
    fields = document.get(section) or {}
    known = {name: fields[name] for name in Answering.model_fields if name in fields}
    answering: Answering = params.validated(Answering, known, section)
    return answering


def of_capture(size: ModelSize, capture: CaptureParams, device: Device) -> Parts:
    """Return the memory of a forward pass of the teacher, with the logits of one chunk."""
    on_cpu = device.kind == "cpu"
    number = BYTES[resolve(capture.precision, device.kind)]
    a_token = forward_bytes(size, number, _LONG, on_cpu=on_cpu)
    threads = capture.threads if on_cpu else 1
    return {
        PROGRAM: PROGRAM_BYTES if on_cpu else GPU_CONTEXT_BYTES,
        WEIGHTS: frozen_bytes(size, number, on_cpu=on_cpu),
        ACTIVATIONS: threads * capture.batch_tokens * a_token,
        LOGITS: threads * capture.chunk_tokens * size.vocabulary * 12,
    }


def of_generation(size: ModelSize, backend: Transformers, device: Device) -> Parts:
    """Return the memory of generation: the KV cache of a batch, and the logits of one token.

    On a CPU that of all workers together, as they share it.
    """
    kind = "cuda" if backend.gpus_each else device.kind
    number = BYTES[resolve(backend.precision, kind)]
    threads = backend.threads if backend.workers == 1 else 1
    inference = Inference(number, backend.batching, threads)
    one = inference.parts([size], Device(kind, None))
    return {
        part: (backend.workers if kind == "cpu" else 1) * amount for part, amount in one.items()
    }


def of_vllm(size: ModelSize, backend: Vllm, device: Device) -> Parts:
    """Return the memory of one of vLLM's GPUs: its share of the weights, and one row's KV cache.

    vLLM fills the share of the GPU that `memory` gives it with further rows.
    """
    number = BYTES[backend.number_format]
    cache, gpus = 2 * number * size.layers * size.keys * _LONG, backend.gpus * backend.stages
    return {
        PROGRAM: GPU_CONTEXT_BYTES,
        WEIGHTS: number * size.parameters // gpus,
        ACTIVATIONS: cache // gpus,
    }
