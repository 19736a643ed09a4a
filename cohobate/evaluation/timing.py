"""Latency, throughput, memory and energy of teacher and student, measured in turns in one run.

These figures vary from run to run: they go to `reports/timings.json`, which nothing hashes. Both
models do the same work: read a prompt and write a fixed number of tokens.

Shapes: B batch, S sequence.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from cohobate.evaluation import energy
from cohobate.models.number_formats import device_name
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Timing(Section):
    """How long to measure, and on what work."""

    seconds: float = 5.0
    """Time to spend, and as much again where energy is read; at least two runs of each kind are
    made, whatever they take."""
    new_tokens: int = 8
    """Tokens written after each prompt."""
    batch: int = 8
    """Prompts at once where throughput is measured; latency is of one prompt at a time."""

    def measure(
        self, models: Mapping[str, "PreTrainedModel"], prompts: Mapping[str, list[list[int]]]
    ) -> dict[str, Any]:
        """Return each model's latency, throughput, memory and energy, and what was measured on.

        `prompts` are the same texts for each model, in its own tokens; they are cut to the same
        length.
        """
        import torch

        batches = {name: self._batch(prompts[name]) for name in models}
        first = next(iter(batches.values()))
        single: dict[str, list[float]] = {name: [] for name in models}
        together: dict[str, list[float]] = {name: [] for name in models}
        memory = {name: self._peak_bytes(model, batches[name]) for name, model in models.items()}
        deadline, turn = time.perf_counter() + self.seconds, 0
        while turn < 2 or time.perf_counter() < deadline:
            for name, model in models.items():  # in turns: both meet the same disturbances
                prompts_BS = batches[name]
                line = turn % len(prompts_BS)
                single[name].append(self._timed(model, prompts_BS[line : line + 1]))
                if turn % 3 == 0 or turn < 2:
                    together[name].append(self._timed(model, prompts_BS))
            turn += 1
        works = {name: self._work(model, batches[name]) for name, model in models.items()}
        return {
            "energy": energy.measured(works, self.seconds),
            "models": {
                name: {
                    "latency_ms_p50": round(1e3 * median(single[name]), 2),
                    "latency_ms_p95": round(1e3 * quantiles(single[name], n=20)[-1], 2),
                    "tokens_per_second": round(
                        len(batches[name]) * self.new_tokens / median(together[name]), 1
                    ),
                    "peak_memory_bytes": memory[name],
                    "runs": len(single[name]),
                }
                for name in models
            },
            "prompt_tokens": first.shape[1],
            "new_tokens": self.new_tokens,
            "batch": len(first),
            "threads": torch.get_num_threads(),
            "machine": device_name(next(iter(models.values())).device.type),
        }

    def _timed(self, model: "PreTrainedModel", prompts_BS: "Tensor") -> float:
        start = time.perf_counter()
        _write(model, prompts_BS, self.new_tokens)
        return time.perf_counter() - start

    def _work(self, model: "PreTrainedModel", prompts_BS: "Tensor") -> Callable[[], int]:
        """Return what writes one batch, and says how many tokens that were."""

        def write() -> int:
            _write(model, prompts_BS, self.new_tokens)
            return len(prompts_BS) * self.new_tokens

        return write

    def _batch(self, prompts: list[list[int]]) -> "Tensor":
        import torch

        chosen = prompts[: self.batch]
        length = min(map(len, chosen))
        return torch.tensor([ids[:length] for ids in chosen])

    def _peak_bytes(self, model: "PreTrainedModel", prompts_BS: "Tensor") -> int:
        """Return the bytes of the weights, and of their packed copies, and the most of a batch."""
        from cohobate.evaluation.peak_memory import Allocations
        from cohobate.fast.packed_linear import packed_bytes

        there = [*model.parameters(), *model.buffers()]
        with Allocations(there) as allocations:
            _write(model, prompts_BS, self.new_tokens)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in there)
        return int(weights + packed_bytes(model) + allocations.peak)


def _write(model: "PreTrainedModel", prompts_BS: "Tensor", new_tokens: int) -> None:
    """Write `new_tokens` after each prompt, greedily and past any end of sequence."""
    import torch

    with torch.inference_mode():
        ids_BS, past = prompts_BS.to(model.device), None
        for _ in range(new_tokens):
            out = model(input_ids=ids_BS, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids_BS, past = out.logits[:, -1:].argmax(-1), out.past_key_values
        ids_BS.cpu()  # waits for an accelerator
