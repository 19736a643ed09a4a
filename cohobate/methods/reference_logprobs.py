"""Log-probabilities of pairs' answers by the model before preference training, kept on disk.

    .cohobate/references/<key>/
        log_probabilities.safetensors    chosen_N, rejected_N: the sum over each answer
        manifest.json                    size and sha256

They are computed once, before the first update, so that no second model is in memory. The key is a
hash of the checkpoint, of the pairs as token ids, and of how they are computed: a resumed run,
another seed, or the same pairs under other hyperparameters read them, and nothing else does. A
damaged file is named, and computed anew.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cohobate import processes, sealed_folder
from cohobate.data.examples import Example, fingerprint
from cohobate.errors import UserError
from cohobate.progress import say
from cohobate.training.batches import MicroBatches
from cohobate.training.checkpointing import content_hash

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

REFERENCES = Path(".cohobate/references")
_FILE = "log_probabilities.safetensors"
_COMPUTED_BY = "PreferenceLoss.answer_logprobs"
"""Another way to compute them rounds otherwise: what it left on disk is not read."""
_DECIDES = {
    "keep_layers",
    "quantisation",
    "attention",
    "batch_size",
    "micro_batch_size",
    "threads",
    "workers",
}

AnswerLogprobs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`ids_BS, positions_N, labels_N` of a micro-batch to the answers' log-probabilities, (B,)."""


class ReferenceLogprobs:
    """The reference's log-probabilities of parallel chosen and rejected answers.

    As a target collator it gives each micro-batch those of its rows.
    """

    def __init__(
        self, folder: Path, chosen: Sequence[Example], rejected: Sequence[Example], size: int
    ) -> None:
        self.folder, self.chosen, self.rejected, self.size = folder, chosen, rejected, size
        self._of_pair: dict[str, tuple[float, float]] = {}

    @classmethod
    def of(
        cls, phase: "Phase", seed: int, chosen: Sequence[Example], rejected: Sequence[Example]
    ) -> "ReferenceLogprobs":
        """Return those of a phase's initial model."""
        decided_by: list[Any] = [
            content_hash(phase.start_folder(seed)),
            phase.model_dump(mode="json", include=_DECIDES),
            phase.number_format,
            fingerprint(chosen),
            fingerprint(rejected),
            _COMPUTED_BY,
        ]
        adapter = phase.adapter
        if adapter.type == "lora" and adapter.base_format != "float32":
            decided_by.append(adapter.base_format)  # the base's rounding, and no update yet
        if adapter.type == "lora" and adapter.base_precision == "nf4":
            decided_by.append("nf4")
        text = json.dumps(decided_by, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return cls(REFERENCES / key, chosen, rejected, phase.rows_at_once)

    def load_or_compute(self, answer_logprobs: AnswerLogprobs, device: torch.device) -> None:
        """Read them; compute and store them where they are not on disk, each worker its share.

        Raises:
            UserError: the disk is full.
        """
        stored = processes.on_first_worker(self._read)
        if stored is None:
            with torch.random.fork_rng():  # the run draws the same whether it computes or reads
                stored = self._compute(answer_logprobs, device)
            processes.on_first_worker(lambda: self._write(stored))
        columns = (stored["chosen_N"].tolist(), stored["rejected_N"].tolist())
        keys = [row.key for row in self.chosen]
        self._of_pair = dict(zip(keys, zip(*columns, strict=True), strict=True))

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the log-probabilities of a micro-batch: of its chosen answers, then rejected."""
        half = len(rows) // 2
        chosen = [self._of_pair[row.key][0] for row in rows[:half]]
        rejected = [self._of_pair[row.key][1] for row in rows[half:]]
        return {"reference_B": torch.tensor(chosen + rejected)}

    def _read(self) -> dict[str, Tensor] | None:
        if not self.folder.exists():
            return None
        try:
            sealed_folder.verify(self.folder)
        except UserError as error:
            say(f"{error.what}: {self.folder} is not used")
            shutil.rmtree(self.folder)
            return None
        say(f"reference log-probabilities of {len(self.chosen)} pairs: read from {self.folder}")
        stored: dict[str, Tensor] = load_file(self.folder / _FILE)
        return stored

    def _write(self, stored: dict[str, Tensor]) -> None:
        with sealed_folder.staged(self.folder) as partial:
            save_file(stored, partial / _FILE)

    def _compute(self, answer_logprobs: AnswerLogprobs, device: torch.device) -> dict[str, Tensor]:
        own = processes.shard(range(len(self.chosen)))
        data = pair_batches(self.chosen, self.rejected, [own], self.size)
        first = pair_batches(self.chosen, self.rejected, [range(1)], 1)[0]
        parts: list[Tensor] = []
        # as many passes in all workers, which gather their weights where the model is sharded
        for number in range(max(processes.all_gather(len(data)))):
            batch = data[number] if number < len(data) else first
            names = ("ids_BS", "positions_N", "labels_N")
            logp_B = answer_logprobs(*(batch[name].to(device) for name in names))
            if number < len(data):
                # chosen answers are the first half of each micro-batch
                parts.append(logp_B.cpu().view(2, -1))
        logp_2N = torch.empty(2, len(self.chosen))
        # each worker computed its own pairs; all of them get the whole
        for pairs, logps in processes.all_gather((own, torch.cat(parts, -1) if parts else None)):
            if logps is not None:
                logp_2N[:, pairs] = logps
        return {"chosen_N": logp_2N[0].clone(), "rejected_N": logp_2N[1].clone()}


def pair_batches(
    chosen: Sequence[Example],
    rejected: Sequence[Example],
    batches: Sequence[Sequence[int]],
    size: int,
    reference: ReferenceLogprobs | None = None,
) -> MicroBatches:
    """Return micro-batches of `size` pairs, chosen answers first; `batches` number the pairs."""
    rows: list[list[int]] = []
    for batch in batches:
        rows.append([])
        for start in range(0, len(batch), size):
            pairs = batch[start : start + size]
            # rejected answers follow all chosen ones in the list below
            rows[-1] += [*pairs, *(len(chosen) + pair for pair in pairs)]
    return MicroBatches([*chosen, *rejected], rows, 2 * size, reference)
