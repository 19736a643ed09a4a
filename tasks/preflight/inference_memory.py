"""Memory of a teacher that generates or is captured: weights, a batch's tensors, logits."""

from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
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


def of_capture(size: ModelSize, capture: CaptureParams, device: Device) -> Parts:
    """Return the memory of a forward pass of the teacher, with the logits of one chunk."""
    on_cpu = device.kind == "cpu"
    number = BYTES[resolve(capture.precision, device.kind)]
    a_token = forward_bytes(size, number, _LONG, on_cpu=on_cpu)
    return {
        PROGRAM: PROGRAM_BYTES if on_cpu else GPU_CONTEXT_BYTES,
        WEIGHTS: frozen_bytes(size, number, on_cpu=on_cpu),
        ACTIVATIONS: capture.threads * capture.batch_tokens * a_token,
        LOGITS: capture.threads * capture.chunk_tokens * size.vocabulary * 12,
    }


def of_generation(size: ModelSize, backend: Transformers, device: Device) -> Parts:
    """Return the memory of generation: the KV cache of a batch, and the logits of one token.

    On a CPU that of all workers together, as they share it.
    """
    on_cpu = device.kind == "cpu" and not backend.gpus_each
    number, batch = BYTES[resolve(backend.precision, "cpu" if on_cpu else "cuda")], backend.batching
    cache = 2 * number * size.layers * size.keys
    a_token = cache + forward_bytes(size, number, _LONG, on_cpu=on_cpu)
    threads = backend.threads if backend.workers == 1 else 1
    one = {
        PROGRAM: PROGRAM_BYTES if on_cpu else GPU_CONTEXT_BYTES,
        WEIGHTS: frozen_bytes(size, number, on_cpu=on_cpu),
        ACTIVATIONS: threads * batch.tokens * a_token,
        LOGITS: threads * batch.rows * size.vocabulary * 12,
    }
    return {part: (backend.workers if on_cpu else 1) * amount for part, amount in one.items()}


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
