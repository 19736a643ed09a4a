"""What the start of a preference training said of the pairs, on disk: asked once, then read.

    .cohobate/references/<key>/
        log_probabilities.safetensors    chosen_N, rejected_N: the sum over each answer
        manifest.json                    size and sha256

The key is a hash of the checkpoint, of the pairs as token ids, and of how they are computed; so a
run that goes on, another seed, or the same pairs under other hyperparameters find them, and nothing
else does. What is damaged is named, and asked anew.

Shapes: N pairs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cohobate import sealed_folder
from cohobate.data.examples import Example, fingerprint
from cohobate.errors import UserError
from cohobate.progress import say
from cohobate.training.resuming import content_hash

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

REFERENCES = Path(".cohobate/references")
_FILE = "log_probabilities.safetensors"
_DECIDES = {
    "keep_layers",
    "quantisation",
    "attention",
    "batch_size",
    "micro_batch_size",
    "threads",
}

Both = tuple[Tensor, Tensor]
"""Of the chosen answers, and of the rejected."""


@dataclass(frozen=True)
class ReferenceCache:
    """The reference's log-probabilities of one set of pairs."""

    folder: Path

    @classmethod
    def of(
        cls, how: "Phase", seed: int, chosen: Sequence[Example], rejected: Sequence[Example]
    ) -> "ReferenceCache":
        """Return where those of a phase's start are, or will be."""
        decided_by: list[Any] = [
            content_hash(how.start_folder(seed)),
            how.model_dump(mode="json", include=_DECIDES),
            how.number_format,
            fingerprint(chosen),
            fingerprint(rejected),
        ]
        text = json.dumps(decided_by, sort_keys=True)
        return cls(REFERENCES / hashlib.blake2b(text.encode(), digest_size=8).hexdigest())

    def read_or(self, ask: Callable[[], Both]) -> Both:
        """Return what is stored; else what `ask` finds, which is stored from then on.

        Raises:
            UserError: the disk is full.
        """
        if self.folder.exists():
            try:
                sealed_folder.verify(self.folder)
            except UserError as error:
                say(f"{error.what}: {self.folder} is not used")
                shutil.rmtree(self.folder)
            else:
                stored = load_file(self.folder / _FILE)
                say(f"reference log-probabilities of {len(stored['chosen_N'])} pairs: as stored")
                return stored["chosen_N"], stored["rejected_N"]
        with torch.random.fork_rng():  # the run draws the same whether it asks or reads
            chosen_N, rejected_N = (tensor.cpu().contiguous() for tensor in ask())
        with sealed_folder.staged(self.folder) as partial:
            save_file({"chosen_N": chosen_N, "rejected_N": rejected_N}, partial / _FILE)
        return chosen_N, rejected_N
