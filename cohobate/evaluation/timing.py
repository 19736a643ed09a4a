"""Latency, throughput, memory and energy of several models, measured in turns in one run.

These figures vary from run to run: they go to `reports/timings.json`, which nothing hashes. All
models do the same work: prefill a prompt and generate a fixed number of tokens. A classifier or an
embedder reads the prompt once, and its whole answer counts as that many tokens.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from cohobate.evaluation import energy
from cohobate.evaluation.drafting import Drafting
from cohobate.models.number_formats import device_name
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Timing(Section):
    """How long to measure, and the work that is measured."""

    seconds: float = 5.0
    """Time to spend, and as much again where energy is measured; at least two runs of each kind are
    made, however long they take."""
    new_tokens: int = 8
    """Tokens generated after each prompt."""
    batch: int = 8
    """Batch size for throughput; latency is measured at batch size 1."""
    draft: Drafting | None = None
    """Measure the student as the draft of its teacher in speculative decoding, such as `{}` or
    `{tokens: 8}`: both must be causal models with one vocabulary. None: not measured."""

    def measure(
        self, models: Mapping[str, "PreTrainedModel"], prompts: Mapping[str, list[list[int]]]
    ) -> dict[str, Any]:
        """Return each model's latency, throughput, memory and energy, and the conditions.

        `prompts` are the same texts in each model's own tokens; all are cut to the shortest one.
        """
        import torch

        batches = {name: self._batch(prompts[name]) for name in models}
        first = next(iter(batches.values()))
        latencies: dict[str, list[float]] = {name: [] for name in models}
        batch_times: dict[str, list[float]] = {name: [] for name in models}
        # this also warms each model up, before anything is timed
        memory = {name: self._peak_bytes(model, batches[name]) for name, model in models.items()}
        deadline, turn = time.perf_counter() + self.seconds, 0
        while turn < 2 or time.perf_counter() < deadline:
            # in turns: disturbances of the machine affect all models alike
            for name, model in models.items():
                prompts_BS = batches[name]
                row = turn % len(prompts_BS)
                latencies[name].append(self._timed(model, prompts_BS[row : row + 1]))
                # whole batches take longest: in every third turn, and in the first two
                if turn % 3 == 0 or turn < 2:
                    batch_times[name].append(self._timed(model, prompts_BS))
            turn += 1
        works = {name: self._work(model, batches[name]) for name, model in models.items()}
        return {
            "energy": energy.measured(works, self.seconds),
            "models": {
                name: {
                    "latency_ms_p50": round(1e3 * median(latencies[name]), 2),
                    "latency_ms_p95": round(1e3 * quantiles(latencies[name], n=20)[-1], 2),
                    "tokens_per_second": round(
                        len(batches[name]) * self.new_tokens / median(batch_times[name]), 1
                    ),
                    "peak_memory_bytes": memory[name],
                    "runs": len(latencies[name]),
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
        _generate(model, prompts_BS, self.new_tokens)
        return time.perf_counter() - start

    def _work(self, model: "PreTrainedModel", prompts_BS: "Tensor") -> Callable[[], int]:
        """Return a function that generates one batch and returns its number of tokens."""

        def generate() -> int:
            _generate(model, prompts_BS, self.new_tokens)
            return len(prompts_BS) * self.new_tokens

        return generate

    def _batch(self, prompts: list[list[int]]) -> "Tensor":
        import torch

        chosen = prompts[: self.batch]
        # one length: a batch without padding
        length = min(map(len, chosen))
        return torch.tensor([ids[:length] for ids in chosen])

    def _peak_bytes(self, model: "PreTrainedModel", prompts_BS: "Tensor") -> int:
        """Return the bytes of weights and packed copies, plus the peak of generating a batch."""
        from cohobate.evaluation.peak_memory import TensorMemory
        from cohobate.fast.packed_linear import packed_bytes

        weights_and_buffers = [*model.parameters(), *model.buffers()]
        with TensorMemory(weights_and_buffers) as memory:
            _generate(model, prompts_BS, self.new_tokens)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in weights_and_buffers)
        return int(weights + packed_bytes(model) + memory.peak)


def _generate(model: "PreTrainedModel", prompts_BS: "Tensor", new_tokens: int) -> None:
    """Generate `new_tokens` after each prompt, greedily and past any end of sequence.

    The answer of a classifier or an embedder is whole after one pass; a model that sees has a
    picture before each prompt.
    """
    import torch

    from cohobate.models.seeing import blank_inputs

    with torch.inference_mode():
        ids_BS, past = prompts_BS.to(model.device), None
        if not model.can_generate():
            model(input_ids=ids_BS)[0].cpu()
            return
        inputs = blank_inputs(model, ids_BS)
        for _ in range(new_tokens):
            out = model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids_BS, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            inputs = {"input_ids": ids_BS}
        ids_BS.cpu()  # waits for the accelerator to finish
